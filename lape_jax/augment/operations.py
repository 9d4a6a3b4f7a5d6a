"""The 15 operations of AutoAugment and RandAugment behind one index, to draw among them on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from lape_jax.augment import filters, geometry, histogram, photometric
from lape_jax.augment.warp import Affine, sample

POINTWISE = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
NAMES = POINTWISE + GEOMETRIC
IDENTITY = NAMES.index("identity")


class Drawn(NamedTuple):
    """What a policy has drawn for an image: operations to apply one after the other.

    Attributes:
        operation: index into NAMES.
        argument: of that operation, in its own unit (degrees, factor, bits, ...); some ignore it.
        method: interpolation of geometric operations, as in warp.sample.
    """

    operation: Int[Array, " n"]
    argument: Float[Array, " n"]
    method: Int[Array, " n"]


def apply(image: UInt8[Array, "h w c"], drawn: Drawn, fill: tuple[int, ...]) -> UInt8[Array, "h w c"]:
    """The image after all operations drawn for it."""

    def step(image, drawn):
        return _apply_one(image, *drawn, fill), None

    return jax.lax.scan(step, image, drawn)[0]


def affine(operation: Int[Array, ""], argument: Float[Array, ""], height: int, width: int) -> Affine:
    """The map of a geometric operation; any for others."""
    maps = (
        geometry.rotation(argument, height, width),
        Affine(dxy=argument),
        Affine(dyx=argument),
        Affine(tx=argument * width),
        Affine(ty=argument * height),
    )
    kind = jnp.maximum(operation - len(POINTWISE), 0)
    return Affine(*(jnp.stack([jnp.float32(v) for v in values])[kind] for values in zip(*maps, strict=True)))


def _apply_one(image, operation, argument, method, fill):
    def warp(image):
        return sample(image, affine(operation, argument, *image.shape[:2]), fill, method)

    branches = (
        lambda image: image,
        histogram.autocontrast,
        histogram.equalize,
        photometric.invert,
        lambda image: photometric.posterize(image, argument),
        lambda image: photometric.solarize(image, argument),
        lambda image: photometric.solarize_add(image, argument),
        lambda image: photometric.color(image, argument),
        lambda image: photometric.contrast(image, argument),
        lambda image: photometric.brightness(image, argument),
        lambda image: filters.sharpness(image, argument),
        warp,  # one branch for all, so that its gathers are compiled once
    )
    return jax.lax.switch(jnp.minimum(operation, len(POINTWISE)), branches, image)
