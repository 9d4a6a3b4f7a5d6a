"""What makes few tokens of many: unfolding, and the two self-attentions that T2T-ViT puts before it.

Both attentions change the width, from what the unfolding gives to a small one, so that the residual connection leads
past the attention from the values v. Source: yitu-opensource/T2T-ViT, `models/token_{performer,transformer}.py`.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.attention import attend_in_blocks
from lape_jax.nn.choice import Choice, OnDevices, Site, by_shards, choose
from lape_jax.nn.cudnn import attend_cudnn
from lape_jax.nn.layers import Mlp, layer_norm, normal_02

EPS = 1e-8  # added to the normaliser of linear attention


def unfold(
    x: Float[Array, "b h w c"], kernel: int, stride: int, padding: int
) -> Float[Array, "b rows columns c*{kernel}*{kernel}"]:
    """All `kernel` x `kernel` windows of the zero-padded `x`, flattened channel by channel as in `torch.nn.Unfold`.

    Channel c of the pixel (y, x) of a window is feature (c * kernel + y) * kernel + x.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for axis in (1, 2):
        windows = (x.shape[axis] - kernel) // stride + 1
        last = stride * (windows - 1) + 1
        taps = [lax.slice_in_dim(x, first, first + last, stride, axis) for first in range(kernel)]
        x = jnp.stack(taps, axis=-1)
    return x.reshape(*x.shape[:3], -1)


class TokenTransformer(nn.Module):
    """v + proj(softmax(q k^T / sqrt(f)) v), and on top y + Mlp(LN2(y)); q, k, v are linear in LN1(x), without bias.

    One head. The logits are divided by the root of the width f that comes in, not of the width of q.

    Attributes:
        width: channels of q, k, v, the hidden layer and the result.
        dropout: rate after the projection and after the MLP.
        ln_eps: epsilon of the LayerNorms.
        gelu: which form of GELU, one of `lape_jax.nn.layers.GELUS`.
        attention: as in `lape_jax.nn.attention.Attention`, but for "pallas"; of no concern to linear attention.
        dtype: type to compute in.
    """

    width: int
    dropout: float = 0.0
    ln_eps: float = 1e-5
    gelu: str = "erf"
    attention: str | OnDevices = "xla"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n f"], train: bool = False) -> Float[Array, "b n d"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        mixed, v = self.mix(layer_norm(self.ln_eps, self.dtype, "norm1")(x))
        x = v + drop(nn.Dense(self.width, dtype=self.dtype, kernel_init=normal_02, name="proj")(mixed))
        mlp = Mlp(self.width, dtype=self.dtype, gelu=self.gelu, name="mlp")
        y = mlp(layer_norm(self.ln_eps, self.dtype, "norm2")(x), train)
        return x + drop(y)

    def mix(self, x: Float[Array, "b n f"]) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """The mixed values, and the values."""
        q, k, v = jnp.split(self.project(x, "qkv", use_bias=False), 3, axis=-1)
        name = self.choice(q.shape).name
        if name != "xla":
            q = q * math.sqrt(self.width / x.shape[-1])  # their scale is the root of the width of q
            heads = (part[:, :, None] for part in (q, k, v))
            fused = partial(by_shards, attend_cudnn, self.attention, True)
            y = fused(*heads, None) if name == "cudnn" else attend_in_blocks(*heads)
            return y[:, :, 0], v
        full = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=full) / math.sqrt(x.shape[-1])
        return jax.nn.softmax(logits, axis=-1).astype(v.dtype) @ v, v

    def choice(self, shape: tuple[int, ...]) -> Choice:
        """Which implementation attends, of queries and keys of this shape (sequences, tokens, channels)."""
        batch, tokens, size = shape
        found = choose(self.attention, Site(batch, tokens, tokens, 1, size, jnp.dtype(self.dtype), False))
        return Choice("xla", "one head of a width of its own") if found.name == "pallas" else found

    def project(self, x: Float[Array, "b n f"], name: str, use_bias: bool) -> Float[Array, "b n k"]:
        dense = {"dtype": self.dtype, "kernel_init": normal_02}
        return nn.Dense(3 * self.width, use_bias=use_bias, name=name, **dense)(x)


class TokenPerformer(TokenTransformer):
    """`TokenTransformer` with the linear attention of Performers, and a bias in the projection to k, q and v.

    With phi(u) = exp(w u - |u|^2 / 2) / sqrt(m), attention is phi(q) (phi(k)^T v) / (phi(q) . sum_n phi(k_n) + 1e-8).
    The m = width / 2 random features w (m, width) are orthogonal rows of length sqrt(m). Nobody learns them, but the
    weights are worth nothing without: they are the variable "w" of the collection "constants".
    """

    def mix(self, x: Float[Array, "b n f"]) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """The mixed values, and the values."""
        k, q, v = jnp.split(self.project(x, "kqv", use_bias=True), 3, axis=-1)  # in this order
        w = self.variable("constants", "w", self.random_features).value
        # Exponentials of sums of squares: all in float32 or better, as in the reference.
        full = jnp.promote_types(self.dtype, jnp.float32)
        phi_q, phi_k = (positive_features(u.astype(full), jnp.asarray(w, full)) for u in (q, k))
        normaliser = jnp.einsum("bnm,bm->bn", phi_q, phi_k.sum(axis=1))[..., None] + EPS
        values = jnp.einsum("bnm,bnd->bmd", phi_k, v.astype(full))
        return (jnp.einsum("bnm,bmd->bnd", phi_q, values) / normaliser).astype(v.dtype), v

    def random_features(self) -> Float[Array, "m d"]:
        features = self.width // 2
        init = nn.initializers.orthogonal(math.sqrt(features))
        return init(self.make_rng("params"), (features, self.width), jnp.float32)


def positive_features(u: Float[Array, "b n d"], w: Float[Array, "m d"]) -> Float[Array, "b n m"]:
    """phi(u) = exp(w u - |u|^2 / 2) / sqrt(m), without subtraction of a maximum.

    An error of the exponent is a relative error of the result: the product is as exact as the type.
    """
    product = jnp.einsum("bnd,md->bnm", u, w, precision=lax.Precision.HIGHEST)
    return jnp.exp(product - jnp.sum(u * u, axis=-1, keepdims=True) / 2) / math.sqrt(len(w))
