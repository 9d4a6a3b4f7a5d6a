"""Random crops of images that lie on the device: random boxes resized as Pillow resizes them, and pad-and-crop."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from lape_jax.errors import UserError
from lape_jax.interpolation import filters_of

DRAWS = 11  # pairs of random numbers for a box: ten tries and a place
FRACTION_BITS = 22  # of Pillow's fixed-point filter coefficients
_SPLIT_BITS = 8
Side = int | Int[Array, ""]  # of an image; if traced, images may have sizes of their own


class Box(NamedTuple):
    """Part of an image, in pixels: rows top to top + height, columns left to left + width."""

    top: Int[Array, "*b"]
    left: Int[Array, "*b"]
    height: Int[Array, "*b"]
    width: Int[Array, "*b"]


def random_resized_crop(
    images: UInt8[Array, "b h w c"],
    keys: jax.Array,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> UInt8[Array, "b {size} {size} c"]:
    """Random resized crop (Szegedy et al., "Going deeper with convolutions", CVPR 2015), as in timm and torchvision.

    The device's twin of `lape_jax.data.decode.train_crop`: the same distribution of boxes, drawn from `keys` (one per
    image), and the same pixels for the same box.

    Args:
      images: the set's images, whole.
      keys: (b,) typed PRNG keys.
      size: side of the result.
      scale: range of the box's area, as a fraction of the image's.
      ratio: range of its width / height.
      interpolation: bicubic | bilinear | random (one of the two for each image).

    Raises:
      UserError: an unknown interpolation.
    """
    filters = filters_of(interpolation)

    def draw(key):
        draws = jax.random.uniform(key, (DRAWS + 1, 2))
        box = crop_box(draws[:-1], *images.shape[1:3], scale, ratio)
        return box, (draws[-1, 0] * len(filters)).astype(jnp.int32)

    boxes, choices = jax.vmap(draw)(keys)
    return resize_boxes(images, boxes, choices, size=size, filters=filters)


def pad_and_crop(images: UInt8[Array, "b h w c"], keys: jax.Array, pad: int, fill: int) -> UInt8[Array, "b h w c"]:
    """Adds `pad` pixels of value `fill` on each side and cuts out the old size at a uniformly random place.

    torchvision's `RandomCrop(padding=pad, fill=fill)`, the standard augmentation of CIFAR (He et al. 2016).
    """
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)

    def cut(image, key):
        top, left = (jax.random.uniform(key, (2,)) * (2 * pad + 1)).astype(jnp.int32)
        return jax.lax.dynamic_slice(image, (top, left, 0), images.shape[1:])

    return jax.vmap(cut)(padded, keys)


def crop_box(
    draws: Float[Array, "n 2"], height: Side, width: Side, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A random box of an image, by timm's rules, as `lape_jax.data.boxes.random_box` draws it on the host."""
    box, fits = random_box(draws, height, width, scale, ratio)
    w = jnp.minimum(width, jnp.maximum(1, jnp.round(height * ratio[1]).astype(jnp.int32)))
    h = jnp.minimum(height, jnp.maximum(1, jnp.round(width / ratio[0]).astype(jnp.int32)))
    centre = Box((height - h) // 2, (width - w) // 2, h, w)
    return Box(*(jnp.where(fits, drawn, fallback) for drawn, fallback in zip(box, centre, strict=True)))


def random_box(
    draws: Float[Array, "n 2"],
    height: Side,
    width: Side,
    area: tuple[float, float],
    ratio: tuple[float, float],
    *,
    margin: int = 0,
) -> tuple[Box, Bool[Array, ""]]:
    """The first box of ten tries that fits, uniformly placed, and whether any did (if not, the box is meaningless).

    Its area is a uniform share `area` of the image, its width / height log-uniform in `ratio`; both sides are rounded.
    It fits if it has pixels and leaves at least `margin` pixels of each side of the image.

    Args:
      draws: uniform in [0, 1), `DRAWS` pairs of them: area and ratio of each try, and then the place.
    """
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws[:-1, 0])
    aspect = jnp.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draws[:-1, 1])
    h = jnp.round(jnp.sqrt(pixels / aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(pixels * aspect)).astype(jnp.int32)
    fits = (h > 0) & (h <= height - margin) & (w > 0) & (w <= width - margin)
    first = jnp.argmax(fits)
    h, w = h[first], w[first]
    # A draw is below 1 by at least 2^-24, so the product stays below the number of places.
    top = (draws[-1, 0] * (height - h + 1)).astype(jnp.int32)
    left = (draws[-1, 1] * (width - w + 1)).astype(jnp.int32)
    return Box(top, left, h, w), fits[first]


def resize_boxes(
    images: UInt8[Array, "b h w c"],
    boxes: Box,
    choices: Int[Array, " b"],
    *,
    size: int,
    filters: tuple[str, ...],
) -> UInt8[Array, "b {size} {size} c"]:
    """Cuts a box out of each image and resizes it, bit for bit as Pillow's `image.crop(box).resize((size, size))`.

    Pillow filters along the rows, rounds to 8 bits, and filters along the columns, with coefficients in fixed point.
    Each pass is a matrix product here, of (size, side) coefficients that are zero outside the box. (A box that is
    higher than `size` may go the other way round since Pillow 13, which then differs by the intermediate rounding.)

    Args:
      images: any images of one size.
      boxes: one per image, not empty.
      choices: for each image, which of `filters` to use.
      size: side of the result.
      filters: names of filters, "bilinear" and "bicubic".
    """
    height, width, channels = images.shape[1:]

    def resize(image, box, choice):
        rows = _coefficients(height, size, filters, choice, box.top, box.height)
        columns = _coefficients(width, size, filters, choice, box.left, box.width)
        image = _filter(columns, image.swapaxes(0, 1).reshape(width, height * channels))
        image = image.reshape(size, height, channels).swapaxes(0, 1)
        return _filter(rows, image.reshape(height, size * channels)).reshape(size, size, channels)

    return jax.vmap(resize)(images, boxes, choices)


def _coefficients(side, size, filters, choice, start, length) -> Int32[Array, "{size} {side}"]:
    """The weights of `side` pixels for each of `size` results, from the pixels start to start + length alone."""
    tables = [_taps(side, size, name) for name in filters]
    depth = max(taps.shape[-1] for taps, _ in tables)
    taps = np.stack([np.pad(taps, ((0, 0), (0, 0), (0, depth - taps.shape[-1]))) for taps, _ in tables])
    first = np.stack([first for _, first in tables])
    taps = jnp.asarray(taps)[choice, length - 1]
    position = start + jnp.asarray(first)[choice, length - 1][:, None] + np.arange(depth)
    return jnp.sum(jnp.where(position[:, :, None] == np.arange(side), taps[:, :, None], 0), axis=1)


def _filter(coefficients: Int32[Array, "m n"], pixels: UInt8[Array, "n p"]) -> UInt8[Array, "m p"]:
    """The product, rounded to integers and clipped to 0 to 255: exact, though in floating point for matrix units.

    Each coefficient is cut into its high bits and its low 8, so that every partial sum is an integer below 2^24: 255
    times the sum of the absolute weights (below 1.5) times 2^14, and 255 times 255 for at most 256 pixels.
    """
    pixels = pixels.astype(jnp.float32)

    def product(part):
        return jnp.matmul(part.astype(jnp.float32), pixels, precision="highest").astype(jnp.int32)

    high, low = coefficients >> _SPLIT_BITS, coefficients & (2**_SPLIT_BITS - 1)
    total = (product(high) << _SPLIT_BITS) + product(low) + 2 ** (FRACTION_BITS - 1)
    return jnp.clip(total >> FRACTION_BITS, 0, 255).astype(jnp.uint8)


@functools.cache
def _taps(side: int, size: int, name: str) -> tuple[Int32[np.ndarray, "{side} {size} k"], Int32[np.ndarray, "side m"]]:
    """For every length from 1 to `side` that is resized to `size`: the weights of each result, and its first pixel."""
    reach, curve = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}[name]
    depth = 2 * math.ceil(reach * max(side / size, 1)) + 1
    if depth > 2**_SPLIT_BITS:
        raise UserError(f"images of side {side} cannot be resized to {size}: that is too small by far")
    taps, firsts = np.zeros((side, size, depth), np.int32), np.zeros((side, size), np.int32)
    for length in range(1, side + 1):
        step = length / size
        stretch = max(step, 1.0)  # where the image shrinks, the filter grows: antialiasing
        centre = (np.arange(size) + 0.5) * step
        first = np.maximum((centre - reach * stretch + 0.5).astype(np.int32), 0)
        end = np.minimum((centre + reach * stretch + 0.5).astype(np.int32), length)
        position = first[:, None] + np.arange(depth)
        weights = curve(np.abs((position - centre[:, None] + 0.5) * (1 / stretch)))
        weights = np.where(position < end[:, None], weights, 0.0)
        weights /= functools.reduce(np.add, weights.T)[:, None]  # summed from left to right, like Pillow's
        taps[length - 1] = np.trunc(weights * 2**FRACTION_BITS + np.copysign(0.5, weights))
        firsts[length - 1] = first
    return taps, firsts


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.5, Pillow's."""
    a = -0.5
    return np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))
