"""Operations on pixel values."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def normalise(images: UInt8[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "b h w c"]:
    """(x / 255 - mean) / std per channel, in float32."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std
