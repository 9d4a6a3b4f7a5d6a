"""The small parts of a transformer: patch embedding, MLP, LayerNorm, stochastic depth, layer scale."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.gelu import gelu

# PyTorch's trunc_normal_(std=.02) cuts at +-2, a hundred standard deviations away: a normal distribution.
normal_02 = nn.initializers.normal(0.02)

# x Phi(x) with the normal distribution's Phi, and the approximation x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2.
GELUS = {"erf": gelu, "tanh": functools.partial(nn.gelu, approximate=True)}


def torch_uniform(fan_in: int):
    """PyTorch's default initialiser of convolutions, weight and bias: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_norm(eps: float, dtype, name: str, bias: bool = True) -> nn.LayerNorm:
    """LayerNorm over channels: g (z - mean) / sqrt(var + eps) [+ b], two-pass variance, float32 or better throughout.

    The float32 result lets a PE be added before the one rounding to the compute type.
    """
    full = jnp.promote_types(dtype, jnp.float32)
    return nn.LayerNorm(epsilon=eps, dtype=full, use_bias=bias, use_fast_variance=False, name=name)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each linearly (a convolution whose stride is its kernel).

    Attributes:
        width: D, channels of a token.
        patch_size: height and width of a patch in pixels.
        dtype: type to compute in.
        kernel_init: None for PyTorch's default, as for the bias.
    """

    width: int
    patch_size: tuple[int, int]
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b n d"]:
        del train  # of interest to patch embeddings that drop out or keep statistics
        init = torch_uniform(math.prod(self.patch_size) * images.shape[-1])
        project = nn.Conv(
            self.width,
            self.patch_size,
            self.patch_size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=self.kernel_init or init,
            bias_init=init,
            name="proj",
        )
        tokens = project(images)
        return tokens.reshape(tokens.shape[0], -1, self.width)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), and dropout after both layers.

    Attributes:
        hidden: channels between the two layers.
        dropout: probability of dropping a unit.
        dtype: type to compute in.
        gelu: which form of GELU, one of `GELUS`.
    """

    hidden: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    gelu: str = "erf"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=normal_02, name="fc1")(x)
        x = checkpoint_name(x, "fc1")
        x = nn.Dropout(self.dropout, deterministic=not train)(GELUS[self.gelu](x))
        x = nn.Dense(width, dtype=self.dtype, kernel_init=normal_02, name="fc2")(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class LayerScale(nn.Module):
    """x * gamma, one learned gamma per channel, all starting at `initial` (CaiT, Touvron et al. 2021)."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return x * gamma.astype(x.dtype)


def drop_path(branch: Float[Array, "b n d"], rate: Float[Array, ""], key: jax.Array) -> Float[Array, "b n d"]:
    """Stochastic depth: drops the whole branch of a sample with probability `rate`, scales the others by 1/(1-rate)."""
    keep = 1 - rate
    mask = jax.random.bernoulli(key, keep, (branch.shape[0], 1, 1))
    return jnp.where(mask, branch / keep.astype(branch.dtype), 0)
