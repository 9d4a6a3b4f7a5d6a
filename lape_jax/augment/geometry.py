"""Augmentations that move pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8


def random_flip(images: UInt8[Array, "b h w c"], key: jax.Array) -> UInt8[Array, "b h w c"]:
    """Mirrors each image left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
