"""Convolutions with BatchNorm, and the one that doubles a map."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.batch_norm import BatchNorm


def fan_out_normal(kernel: tuple[int, int], features: int) -> Initializer:
    """N(0, 2 / fan_out) with fan_out = height x width of the kernel x features of a group (He et al. 2015)."""
    return nn.initializers.normal(math.sqrt(2 / (math.prod(kernel) * features)))


class ConvNormReLU(nn.Module):
    """ReLU(BatchNorm(convolution(x))), the kernel k x k with a border of k // 2 zeros and no bias.

    Attributes:
        features: channels of the result.
        kernel: k, odd.
        stride: the stride of the convolution.
        dtype: type to compute in.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        size = (self.kernel, self.kernel)
        convolution = nn.Conv(
            self.features,
            size,
            self.stride,
            padding=self.kernel // 2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=fan_out_normal(size, self.features),
            name="conv",
        )
        return nn.relu(BatchNorm(self.dtype, name="bn")(convolution(x), train))


class Doubling(nn.Module):
    """y[2 i + u, 2 j + v] = x[i, j] kernel[u, v] + bias: PyTorch's ConvTranspose2d with kernel and stride of 2.

    Attributes:
        features: channels of the result.
        dtype: type to compute in.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c2"]:
        batch, rows, columns, channels = x.shape
        shape = (2, 2, channels, self.features)
        kernel = self.param("kernel", fan_out_normal((2, 2), self.features), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = jnp.einsum("bijc,uvcd->biujvd", x.astype(self.dtype), kernel.astype(self.dtype))
        return y.reshape(batch, 2 * rows, 2 * columns, -1) + bias.astype(self.dtype)
