"""The operations of AutoAugment and RandAugment behind one index, to draw among them on the device.

`OPERATIONS` says all of them, a row for each, and everything else follows from it. To add one, write a row. It is drawn
by those policies alone that name it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from lape_jax.augment import filters, geometry, histogram, photometric
from lape_jax.augment.warp import Affine, sample


class Statistics(NamedTuple):
    """What an operation may have to know of one image."""

    low: Int[Array, " c"]  # extremes of each channel
    high: Int[Array, " c"]
    counts: Array  # histograms of the channels, of images that have drawn an operation with `counts`
    mean: Array  # mean luma


class Operation(NamedTuple):
    """A row: an operation on values has `change` and one of `by_value`, `table` and `blend`; one on places has `place`.

    Attributes:
        name: what policies call it.
        argument: (level, sign, increasing) -> its argument at a level of RandAugment (10 is full strength), in its own
            unit, see `lape_jax.augment.randaugment.arguments`.
        change: (image, argument) -> image.
        by_value: whether a value of the result depends on that value alone; a whole batch is then changed by tables of
            what becomes of all values, which `change` makes of them.
        table: (values, argument, statistics) -> that table, (c, 256) or (256, 1, 1), where it depends on the image.
        counts: whether that takes histograms.
        blend: image -> the other image that `change` blends it with by its argument, if there is no such table.
        place: (argument, height, width) -> the map to where a pixel comes from.
    """

    name: str
    argument: Callable
    change: Callable | None = None
    by_value: bool = False
    table: Callable | None = None
    counts: bool = False
    blend: Callable | None = None
    place: Callable | None = None


def _none(level, sign, increasing):
    return 0.0


def _factor(level, sign, increasing):
    return jnp.maximum(1 + sign * 0.09 * level, 0.1) if increasing else 0.1 + 0.18 * level


def _bits(level, sign, increasing):
    bits = jnp.floor(0.4 * level)
    return 4 - bits if increasing else bits


def _threshold(level, sign, increasing):
    threshold = jnp.minimum(jnp.floor(25.6 * level), 256)
    return 256 - threshold if increasing else threshold


def _added(level, sign, increasing):
    return jnp.minimum(jnp.floor(11 * level), 128)


def _signed(unit):
    return lambda level, sign, increasing: sign * unit * level


OPERATIONS = (
    Operation("identity", _none, lambda image, _: image, by_value=True),
    Operation(
        "autocontrast",
        _none,
        lambda image, _: histogram.autocontrast(image),
        table=lambda values, _, found: jax.vmap(histogram.stretching)(found.low, found.high),
    ),
    Operation(
        "equalize",
        _none,
        lambda image, _: histogram.equalize(image),
        table=lambda values, _, found: jax.vmap(histogram.equalizing)(found.counts),
        counts=True,
    ),
    Operation("invert", _none, lambda image, _: photometric.invert(image), by_value=True),
    Operation("posterize", _bits, photometric.posterize, by_value=True),
    Operation("solarize", _threshold, photometric.solarize, by_value=True),
    Operation("solarize_add", _added, photometric.solarize_add, by_value=True),
    Operation("color", _factor, photometric.color, blend=photometric.luma),
    Operation(
        "contrast",
        _factor,
        photometric.contrast,
        table=lambda values, factor, found: photometric.blend(found.mean, values, factor),
    ),
    Operation("brightness", _factor, photometric.brightness, by_value=True),
    Operation("sharpness", _factor, filters.sharpness, blend=filters.smooth),
    Operation("rotate", _signed(3), place=geometry.rotation),
    Operation("shear_x", _signed(0.03), place=lambda shear, height, width: Affine(dxy=shear)),
    Operation("shear_y", _signed(0.03), place=lambda shear, height, width: Affine(dyx=shear)),
    Operation("translate_x", _signed(0.045), place=lambda share, height, width: Affine(tx=share * width)),
    Operation("translate_y", _signed(0.045), place=lambda share, height, width: Affine(ty=share * height)),
)
NAMES = tuple(row.name for row in OPERATIONS)
POINTWISE = tuple(row.name for row in OPERATIONS if row.change)
GEOMETRIC = tuple(row.name for row in OPERATIONS if row.place)
IDENTITY = NAMES.index("identity")
for _row in OPERATIONS:
    if bool(_row.by_value) + bool(_row.table) + bool(_row.blend) != bool(_row.change):
        raise ValueError(f"the operation {_row.name} should say once how it changes the values of a batch")
if POINTWISE + GEOMETRIC != NAMES or len({*NAMES}) < len(NAMES):
    raise ValueError("operations have names of their own, and those on places come behind those on values")


class Drawn(NamedTuple):
    """What a policy has drawn for an image: operations to apply one after the other.

    Attributes:
        operation: index into NAMES.
        argument: how much that operation changes, in its own unit (degrees, factor, bits, ...); some ignore it.
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
    maps = [row.place(argument, height, width) for row in OPERATIONS if row.place]
    kind = jnp.maximum(operation - len(POINTWISE), 0)
    return Affine(*(jnp.stack([jnp.float32(v) for v in values])[kind] for values in zip(*maps, strict=True)))


def _apply_one(image, operation, argument, method, fill):
    def warp(image):
        return sample(image, affine(operation, argument, *image.shape[:2]), fill, method)

    branches = [lambda image, row=row: row.change(image, argument) for row in OPERATIONS if row.change]
    # One branch for all that are geometric, so that its gathers are compiled once.
    return jax.lax.switch(jnp.minimum(operation, len(POINTWISE)), [*branches, warp], image)
