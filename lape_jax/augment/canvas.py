"""Crops of whole images of any proportions that lie on canvases (`lape_jax.data.canvas`), on the device.

What Pillow does: filter along rows, round to 8 bits, filter along columns. Each step is a product with a matrix of
weights that an image has for itself, zero outside of its box; a canvas is laid out such that neither product needs a
transposition. On GPUs and TPUs a matrix is a sum of two in bfloat16, in which pixels are exact, so that the results
differ from those of Pillow's weights in fixed point by less than 0.01 before rounding; CPUs multiply in float32.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from lape_jax.augment import crop
from lape_jax.interpolation import filters_of

CHANNELS = 3
BF16 = {"exponent_bits": 8, "mantissa_bits": 7}


class Span(NamedTuple):
    """What of an axis becomes a crop: pixels `start` to `start + length`, resized to `scaled`, and of these some from
    `first` on.

    The numbers are of one image or of many.
    """

    start: Int[Array, "*b"] | int
    length: Int[Array, "*b"]
    scaled: Int[Array, "*b"] | int
    first: Int[Array, "*b"] | int


def on_canvas(data: Any) -> bool:
    """Whether the images of a run whose config has this `data` reach the device on canvases, to be cropped there."""
    return data.source == "packed" and not data.resident and not data.pad


def random_resized_crop(
    canvases: UInt8[Array, "b rows side"],
    sizes: Int32[Array, "b 2"],
    keys: jax.Array,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> UInt8[Array, "b {size} {size} 3"]:
    """Random resized crops of the images on canvases: `crop.random_resized_crop`, by the same draws.

    Args:
      sizes: height and width of each image; a place without one has 0 for both.
      keys, size, scale, ratio, interpolation: as there.

    Raises:
      UserError: an unknown interpolation.
    """
    filters = filters_of(interpolation)

    def draw(key, image):
        draws = jax.random.uniform(key, (crop.DRAWS + 1, 2))
        box = crop.crop_box(draws[:-1], image[0], image[1], scale, ratio)
        choice = (draws[-1, 0] * len(filters)).astype(jnp.int32)
        return box, jnp.asarray([name == "bicubic" for name in filters])[choice]

    boxes, cubic = jax.vmap(draw)(keys, jnp.maximum(sizes, 1))
    down = Span(boxes.top, boxes.height, size, 0)
    across = Span(boxes.left, boxes.width, size, 0)
    return resize(canvases, down, across, cubic, size)


def eval_crop(
    canvases: UInt8[Array, "b rows side"], sizes: Int32[Array, "b 2"], *, size: int, crop_ratio: float
) -> UInt8[Array, "b {size} {size} 3"]:
    """The middles of the images on canvases: `lape_jax.data.decode.eval_crop`.

    The shorter side is resized to floor(size / crop_ratio), the longer one in proportion, rounded down.
    """
    height, width = jnp.maximum(sizes, 1).T
    short = math.floor(size / crop_ratio)
    tall = jnp.where(height <= width, short, short * height // width)
    wide = jnp.where(height <= width, short * width // height, short)
    top, left = (jnp.round((side - size) / 2).astype(jnp.int32) for side in (tall, wide))
    cubic = jnp.ones(len(sizes), bool)
    return resize(canvases, Span(0 * height, height, tall, top), Span(0 * width, width, wide, left), cubic, size)


def resize(
    canvases: UInt8[Array, "b rows side"], down: Span, across: Span, cubic: Bool[Array, " b"], size: int
) -> UInt8[Array, "b {size} {size} 3"]:
    """Cuts spans of rows and columns out of each image and resizes them, antialiased.

    Args:
      cubic: for each image, bicubic (a = -1/2) or else bilinear.
      size: the side of the results.
    """
    count, rows, side = canvases.shape
    matrices = jax.vmap(weights, in_axes=(0, None, None, 0))
    down, across = (Span(*(jnp.broadcast_to(value, (count,)) for value in span)) for span in (down, across))
    lines = _product("bjw,bpw->bpj", matrices(across, side, size, cubic), canvases)
    lines = lines.reshape(count, rows // CHANNELS, CHANNELS * size)
    images = _product("bih,bhq->biq", matrices(down, side, size, cubic), lines)
    return images.reshape(count, size, CHANNELS, size).swapaxes(2, 3)


def weights(span: Span, side: int, size: int, cubic: Bool[Array, ""]) -> Float[Array, "{size} {side}"]:
    """What each pixel of an axis contributes to each of `size` results; a row adds up to 1.

    Result i lies at c = start + (first + i + 1/2) s, where s = length / scaled. Pixel p weighs K((p + 1/2 - c) / t),
    where t = max(s, 1): where an image shrinks, the filter K grows, so that no detail is skipped.
    """
    step = span.length / span.scaled
    pixels, places = jnp.arange(side), span.first + jnp.arange(size)
    centres = span.start + (places + 0.5) * step
    x = jnp.abs(pixels + 0.5 - centres[:, None]) / jnp.maximum(step, 1)
    inside = (pixels >= span.start) & (pixels < span.start + span.length)
    found = jnp.where(inside, jnp.where(cubic, _cubic(x), jnp.maximum(1 - x, 0)), 0)
    return found / found.sum(axis=1, keepdims=True)


def _cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic convolution with a = -1/2 at distances x."""
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, inner, jnp.where(x < 2, outer, 0))


def _product(axes: str, matrices: Float[Array, "b m n"], pixels: UInt8[Array, "b p q"]) -> UInt8[Array, "b r s"]:
    """The products, rounded and clipped to 0 to 255."""

    def whole(matrices, pixels):
        return jnp.einsum(axes, matrices, pixels.astype(jnp.float32), precision="highest")

    def halves(matrices, pixels):
        pixels = pixels.astype(jnp.bfloat16)
        # Not by conversion to bfloat16 and back, which XLA may leave out.
        high = jax.lax.reduce_precision(matrices, **BF16)
        parts = (part.astype(jnp.bfloat16) for part in (high, matrices - high))
        return sum(jnp.einsum(axes, part, pixels, preferred_element_type=jnp.float32) for part in parts)

    total = jax.lax.platform_dependent(matrices, pixels, cpu=whole, default=halves)
    return jnp.clip(jnp.floor(total + 0.5), 0, 255).astype(jnp.uint8)
