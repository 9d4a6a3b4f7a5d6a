"""BatchNorm, whose running statistics are variables in the collection `batch_stats`."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias per channel (Ioffe and Szegedy 2015), in float32 or better.

    In training mean and var are those of the n numbers that a channel has over batch and pixels (var over n, two-pass),
    and with a momentum of m the running ones move as PyTorch's do:

        running mean <- (1 - m) running mean + m mean;  running var <- (1 - m) running var + m n / (n - 1) var.

    In evaluation mean and var are the running ones. The batch is the whole one: where jit splits it over devices, the
    means are taken over all of them. Rows that stand for an image that could not be read count like any other.

    Attributes:
        dtype: type of the result.
        eps: added to the variance.
        momentum: m, see above.
    """

    dtype: DTypeLike = jnp.float32
    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], train: bool) -> Float[Array, "*b c"]:
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        channels = x.shape[-1:]
        scale = self.param("scale", ones, channels, jnp.float32)
        bias = self.param("bias", zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        mean, var = running_mean.value, running_var.value
        if train:
            axes, count = range(x.ndim - 1), math.prod(x.shape[:-1])
            mean = jnp.mean(x, axes)
            var = jnp.mean((x - mean) ** 2, axes)
            if not self.is_initializing():
                self._move(running_mean, mean)
                self._move(running_var, var * (count / max(count - 1, 1)))
        return ((x - mean) * (lax.rsqrt(var + self.eps) * scale) + bias).astype(self.dtype)

    def _move(self, running: nn.Variable, value: Float[Array, " c"]) -> None:
        moved = (1 - self.momentum) * running.value + self.momentum * lax.stop_gradient(value)
        running.value = moved.astype(running.value.dtype)
