"""Operations on pixel values: bit for bit what Pillow computes on the same uint8 image.

An image has 3 channels (red, green, blue) or 1 (grey); where colours matter, a grey image is its own luma.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer, ScalarLike, UInt8


def normalise(images: UInt8[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "b h w c"]:
    """(x / 255 - mean) / std per channel, in float32.

    Computed as (x - 255 mean) * (1 / (255 std)), which leaves a compiler nothing to contract or to replace: the bits do
    not depend on what else is compiled with it.
    """
    offset, scale = 255 * np.asarray(mean, np.float64), 1 / (255 * np.asarray(std, np.float64))
    return (images.astype(jnp.float32) - offset.astype(np.float32)) * scale.astype(np.float32)


def luma(image: UInt8[Array, "h w c"]) -> Int32[Array, "h w 1"]:
    """ITU-R 601 luma (19595 r + 38470 g + 7471 b) / 65536 rounded half up, as Pillow's mode "L"."""
    image = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return image
    weighted = 19595 * image[..., 0:1] + 38470 * image[..., 1:2] + 7471 * image[..., 2:3]
    return (weighted + 32768) >> 16


def blend(
    base: Integer[Array, "#h #w #c"] | int, image: UInt8[Array, "h w c"], factor: ScalarLike
) -> UInt8[Array, "h w c"]:
    """base + factor (image - base), clipped to 0..255 and truncated, as Pillow's Image.blend."""
    difference = image.astype(jnp.int32) - base
    product = jnp.asarray(factor, jnp.float32) * jnp.abs(difference).astype(jnp.float32)
    total = jnp.asarray(base).astype(jnp.float32) + signed(product, difference)
    return jnp.clip(total, 0, 255).astype(jnp.uint8)


def signed(product: Float[Array, "*shape"], sign: Int32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The product, negated where the integer is negative.

    Pillow rounds a product and then the sum it goes into; a compiler may contract the two to a fused multiply-add,
    which rounds once, and some grey levels come out differently. Integer operations on the way keep them apart.
    """
    bits = jax.lax.bitcast_convert_type(product, jnp.int32) ^ (sign & jnp.int32(-(2**31)))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def grayscale(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """The luma in every channel."""
    return jnp.broadcast_to(luma(image).astype(jnp.uint8), image.shape)


def invert(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """255 - x."""
    return 255 - image


def posterize(image: UInt8[Array, "h w c"], bits: ScalarLike) -> UInt8[Array, "h w c"]:
    """Keeps the `bits` most significant bits of x: at 8 and more all of them, at 0 and fewer none (a black image)."""
    mask = 256 - (1 << (8 - jnp.clip(jnp.asarray(bits, jnp.int32), 0, 8)))
    return image & mask.astype(jnp.uint8)


def solarize(image: UInt8[Array, "h w c"], threshold: ScalarLike) -> UInt8[Array, "h w c"]:
    """x below the threshold, 255 - x from it on."""
    return jnp.where(image.astype(jnp.float32) < threshold, image, 255 - image)


def solarize_add(image: UInt8[Array, "h w c"], amount: ScalarLike) -> UInt8[Array, "h w c"]:
    """x + amount, at most 255, where x < 128; x elsewhere. The amount is a whole number (timm's SolarizeAdd)."""
    brighter = jnp.minimum(image.astype(jnp.int32) + jnp.asarray(amount, jnp.int32), 255)
    return jnp.where(image < 128, brighter.astype(jnp.uint8), image)


def brightness(image: UInt8[Array, "h w c"], factor: ScalarLike) -> UInt8[Array, "h w c"]:
    """Blends from black (factor 0) to the image (1) and beyond."""
    return blend(0, image, factor)


def mean_luma(image: UInt8[Array, "h w c"]) -> Int32[Array, "1 1 1"]:
    """Rounded half up; of up to 4 million pixels."""
    pixels = image.shape[0] * image.shape[1]
    mean = (2 * luma(image).sum() + pixels) // (2 * pixels)
    return mean.reshape(1, 1, 1)


def contrast(image: UInt8[Array, "h w c"], factor: ScalarLike) -> UInt8[Array, "h w c"]:
    """Blends from the mean luma (factor 0) to the image (1) and beyond."""
    return blend(mean_luma(image), image, factor)


def color(image: UInt8[Array, "h w c"], factor: ScalarLike) -> UInt8[Array, "h w c"]:
    """Blends from the luma (factor 0) to the image (1) and beyond."""
    return blend(luma(image), image, factor)
