"""Affine sampling of one image with Pillow's pixel centres, borders and kernels (Image.transform with AFFINE)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike, UInt8

from lape_jax.errors import UserError

NEAREST, BILINEAR, BICUBIC = range(3)

TAPS = (-1, 0, 1, 2)  # where the kernel's 4 pixels are from the one at or just before the source point
TILE, PATCH = 16, 32  # a tile's sources and their taps span at most 15 * 1.8 + 4 < 32 pixels


class Affine(NamedTuple):
    """Where the pixel at p = (x + 1/2, y + 1/2) of the result comes from: p + D (p - centre) + t.

    The displacement, not the place, because it is small and float32 then holds it to a few millionths of a pixel.
    """

    dxx: ScalarLike = 0.0
    dxy: ScalarLike = 0.0
    dyx: ScalarLike = 0.0
    dyy: ScalarLike = 0.0
    tx: ScalarLike = 0.0
    ty: ScalarLike = 0.0
    cx: ScalarLike = 0.0
    cy: ScalarLike = 0.0


def sample(
    image: UInt8[Array, "h w c"], affine: Affine, fill: tuple[int, ...], method: ScalarLike
) -> UInt8[Array, "h w c"]:
    """The image seen through an affine map; pixels that come from outside of it get the fill colour.

    A source point is inside if 0 <= x < w and 0 <= y < h; taps beyond the border repeat it. The bicubic kernel is the
    cubic convolution with a = -1 (Pillow's resize uses a = -1/2), results are clipped and truncated, not rounded.

    Args:
        affine: what it magnifies or shears it must do by less than 1.8 (|1 + dxx| + |dxy|, likewise y), for a TPU.
        fill: one value 0..255 per channel.
        method: NEAREST, BILINEAR or BICUBIC; may be traced.

    Raises:
        UserError: the fill colour has another number of channels than the image.
    """
    if len(fill) != image.shape[-1]:
        raise UserError(f"The fill colour {fill} has {len(fill)} channels, but the image has {image.shape[-1]}.")
    affine = Affine(*(jnp.asarray(value, jnp.float32) for value in affine))
    arguments = image, affine, jnp.asarray(fill, jnp.uint8), jnp.asarray(method)
    return jax.lax.platform_dependent(*arguments, tpu=_by_tiles, default=_in_image)


def sample_rows(
    images: UInt8[Array, "b h w c"],
    rows: Int[Array, " n"],
    affine: Affine,
    fill: tuple[int, ...],
    method: Int[Array, " n"],
) -> UInt8[Array, "n h w c"]:
    """`sample` of the images with these numbers, each by its own map (fields of shape (n,)) and method; for a GPU."""
    _, height, width, channels = images.shape
    row_of_all, start = images.reshape(-1), rows[:, None, None] * (height * width)

    def read(row, column):
        place = (start + row * width + column)[..., None] * channels + jnp.arange(channels)
        return row_of_all.at[place].get(mode="promise_in_bounds")

    affine, method = jax.tree.map(lambda field: field[:, None, None], (affine, method))
    return _by_pixels(read, height, width, affine, jnp.asarray(fill, jnp.uint8), method)


def _in_image(image, affine, fill, method):
    def read(row, column):
        return image.at[row, column].get(mode="promise_in_bounds")

    return _by_pixels(read, *image.shape[:2], affine, fill, method)


def _by_pixels(read, height, width, affine, fill, method):
    """Reads the 16 taps of every pixel where they are, and interpolates them by Pillow's own formula."""
    xs, ys = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    (left, dx), (top, dy) = _source(affine, xs, ys, method)
    columns, rows = (
        [jnp.clip(first + tap, 0, size - 1) for tap in TAPS] for first, size in ((left, width), (top, height))
    )
    inside = _inside(left, dx, width) & _inside(top, dy, height)
    dx, dy, cubic = dx[..., None], dy[..., None], (method == BICUBIC)[..., None]
    lines = []
    for row in rows:
        values = [read(row, column).astype(jnp.float32) for column in columns]
        lines.append(_interpolate(values, dx, cubic))
    value = jnp.clip(_interpolate(lines, dy, cubic), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], value, fill)


def _by_tiles(image, affine, fill, method):
    """The same without reading single pixels, which a TPU's compiler estimates at ten times as many cycles.

    The result is cut into tiles. All that a tile needs lies in a patch of the image, which products with matrices of
    zeros and ones pick out; products with the interpolation weights (each a column of a matrix with 4 numbers that are
    not zero) make the tile of it. Differs from `_in_image` by float32 rounding, in about one pixel of a thousand by 1.
    """
    height, width, channels = image.shape
    down, across = -(-height // TILE), -(-width // TILE)
    tile, pixel = jnp.arange(down * across)[:, None], jnp.arange(TILE**2)
    xs, ys = tile % across * TILE + pixel % TILE, tile // across * TILE + pixel // TILE
    (left, dx), (top, dy) = _source(affine, xs, ys, method)
    origin_x, origin_y = (first.min(1, keepdims=True) + TAPS[0] for first in (left, top))

    def pick(origin, size):  # tile, place in the patch, place in the image
        return (jnp.clip(origin + jnp.arange(PATCH), 0, size - 1)[..., None] == jnp.arange(size)).astype(jnp.bfloat16)

    def weights(first, d, origin):  # tile, place in the patch, pixel
        taps = jnp.moveaxis(_interpolate(jnp.eye(4), d[..., None], method == BICUBIC), -1, 0)
        places = (first + tap - origin for tap in TAPS)
        return sum(
            jnp.where(jnp.arange(PATCH)[:, None] == place[:, None], weight[:, None], 0)
            for place, weight in zip(places, taps, strict=True)
        )

    rows = image.transpose(0, 2, 1).astype(jnp.bfloat16)  # which holds 0..255 exactly
    patch = jnp.einsum("tih,hcw->ticw", pick(origin_y, height), rows)
    patch = jnp.einsum("ticw,tjw->tcji", patch, pick(origin_x, width)).astype(jnp.float32)
    lines = jnp.einsum("tcji,tip->tcjp", patch, weights(top, dy, origin_y), precision="highest")
    value = (lines * weights(left, dx, origin_x)[:, None]).sum(2)
    # The weights add up to 1 but for rounding: without the small number, flat areas would be truncated to one less.
    value = jnp.clip(value + 2**-10, 0, 255).astype(jnp.uint8)
    inside = _inside(left, dx, width) & _inside(top, dy, height)
    value = jnp.where(inside[:, None], value, fill[:, None])
    value = value.reshape(down, across, channels, TILE, TILE).transpose(0, 3, 1, 4, 2)
    return value.reshape(down * TILE, across * TILE, channels)[:height, :width]


def _source(d, xs, ys, method):
    """For x and y: the pixel whose centre is at or just before the source point, and how far beyond it the point is."""
    px, py = xs + 0.5 - d.cx, ys + 0.5 - d.cy

    def one(along, of_x, of_y, shift, start):
        offset = of_x * px + of_y * py + shift
        whole = jnp.floor(offset)
        # Pillow's nearest neighbour counts in 1/65536 of a pixel.
        fixed = _fixed(of_x) * xs + _fixed(of_y) * ys + _fixed(start)
        first = along + jnp.where(method == NEAREST, fixed >> 16, whole.astype(jnp.int32))
        return first, jnp.where(method == NEAREST, 0, offset - whole)

    start_x = 0.5 + d.tx + (d.dxx * (0.5 - d.cx) + d.dxy * (0.5 - d.cy))
    start_y = 0.5 + d.ty + (d.dyx * (0.5 - d.cx) + d.dyy * (0.5 - d.cy))
    return one(xs, d.dxx, d.dxy, d.tx, start_x), one(ys, d.dyx, d.dyy, d.ty, start_y)


def _inside(first, fraction, size):
    nearest = first + (fraction >= 0.5)
    return (nearest >= 0) & (nearest < size)


def _fixed(value):
    return jnp.floor(value * 65536 + 0.5).astype(jnp.int32)


def _interpolate(taps, d, cubic):
    """The cubic (or linear) through 4 equidistant values, at d in [0, 1) beyond the second; equal values stay exact."""
    a, b, c, e = taps
    slope = jnp.where(cubic, c - a, c - b)
    square = jnp.where(cubic, 2 * (a - b) + c - e, 0)
    cube = jnp.where(cubic, b - a + e - c, 0)
    return b + d * (slope + d * (square + d * cube))
