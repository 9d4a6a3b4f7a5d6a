"""Augmentations that move pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike, UInt8

from lape_jax.augment.warp import Affine


def random_flip(images: UInt8[Array, "b h w c"], keys: jax.Array) -> UInt8[Array, "b h w c"]:
    """Mirrors each image left to right with probability 1/2, by its own key; keys (b,)."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def rotation(degrees: ScalarLike, height: int, width: int) -> Affine:
    """Where pixels come from when an image is turned counter-clockwise about its middle."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    sine, shrink = jnp.sin(angle), -2 * jnp.square(jnp.sin(angle / 2))  # shrink = cos - 1, without cancellation
    return Affine(shrink, -sine, sine, shrink, cx=width / 2, cy=height / 2)
