"""Augmentations that move pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike, UInt8

from lape_jax.augment.warp import BICUBIC, Affine, sample


def random_flip(images: UInt8[Array, "b h w c"], keys: jax.Array) -> UInt8[Array, "b h w c"]:
    """Mirrors each image left to right with probability 1/2, by its own key; keys (b,)."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def rotation(degrees: ScalarLike, height: int, width: int) -> Affine:
    """Counter-clockwise about the middle of the image."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    sine, shrink = jnp.sin(angle), -2 * jnp.square(jnp.sin(angle / 2))  # shrink = cos - 1, without cancellation
    return Affine(shrink, -sine, sine, shrink, cx=width / 2, cy=height / 2)


def rotate(
    image: UInt8[Array, "h w c"], degrees: ScalarLike, fill: tuple[int, ...], method: ScalarLike = BICUBIC
) -> UInt8[Array, "h w c"]:
    """Rotates counter-clockwise about the middle of the image, whose size stays (Image.rotate)."""
    return sample(image, rotation(degrees, *image.shape[:2]), fill, method)


def shear_x(
    image: UInt8[Array, "h w c"], factor: ScalarLike, fill: tuple[int, ...], method: ScalarLike = BICUBIC
) -> UInt8[Array, "h w c"]:
    """The pixel at height y comes from `factor` y further right."""
    return sample(image, Affine(dxy=factor), fill, method)


def shear_y(
    image: UInt8[Array, "h w c"], factor: ScalarLike, fill: tuple[int, ...], method: ScalarLike = BICUBIC
) -> UInt8[Array, "h w c"]:
    """The pixel at x comes from `factor` x further down."""
    return sample(image, Affine(dyx=factor), fill, method)


def translate_x(
    image: UInt8[Array, "h w c"], fraction: ScalarLike, fill: tuple[int, ...], method: ScalarLike = BICUBIC
) -> UInt8[Array, "h w c"]:
    """Every pixel comes from `fraction` of the width further right."""
    return sample(image, Affine(tx=fraction * image.shape[1]), fill, method)


def translate_y(
    image: UInt8[Array, "h w c"], fraction: ScalarLike, fill: tuple[int, ...], method: ScalarLike = BICUBIC
) -> UInt8[Array, "h w c"]:
    """Every pixel comes from `fraction` of the height further down."""
    return sample(image, Affine(ty=fraction * image.shape[0]), fill, method)
