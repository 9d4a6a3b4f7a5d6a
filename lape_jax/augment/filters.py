"""Operations on a pixel and its neighbours, as Pillow's filters compute them on the same uint8 image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, ScalarLike, UInt8

from lape_jax.augment.photometric import blend, signed


def smooth(image: UInt8[Array, "h w c"]) -> Integer[Array, "h w c"]:
    """(the sum of the 3x3 neighbours + 4 x) / 13, rounded; pixels on the border stay (ImageFilter.SMOOTH)."""
    height, width, _ = image.shape
    x = image.astype(jnp.int32)
    if min(height, width) < 3:
        return x
    columns = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = columns[:-2] + columns[1:-1] + columns[2:] + 4 * x[1:-1, 1:-1]
    # 13 is odd, so total / 13 + 1/2 is never a whole number and Pillow's float32 sum truncates to the same integer.
    inside = jnp.pad((2 * total + 13) // 26, ((1, 1), (1, 1), (0, 0)))
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(border, x, inside)  # chosen, not put in: a compiler need not store either


def sharpness(image: UInt8[Array, "h w c"], factor: ScalarLike) -> UInt8[Array, "h w c"]:
    """Blends from the smoothed image (factor 0) to the image (1) and beyond."""
    return blend(smooth(image), image, factor)


def gaussian_blur(image: UInt8[Array, "h w c"], sigma: ScalarLike) -> UInt8[Array, "h w c"]:
    """Three extended box filters per axis in 24-bit fixed point, as ImageFilter.GaussianBlur(sigma), 0 < sigma < 2.4.

    The box of radius l + a (whole and fractional part) weighs 2 l + 1 pixels fully and the next on either side by a;
    l and a are chosen such that three of them have the variance sigma^2 (Gwosdek et al., SSVM 2011, eq. 7, 11, 14).
    """
    whole, full, partial = _box_weights(jnp.asarray(sigma, jnp.float32))
    near, far = jnp.where(whole > 0, full, partial), jnp.where(whole > 0, partial, 0)

    def box(x):  # along the first axis, repeating the border
        size = x.shape[0]
        p = jnp.pad(x, [(2, 2), (0, 0), (0, 0)], mode="edge").astype(jnp.uint32)
        left2, left, centre, right, right2 = (p[k : k + size] for k in range(5))
        total = full * centre + near * (left + right) + far * (left2 + right2)
        return ((total + 2**23) >> 24).astype(jnp.uint8)

    for _ in range(2):  # columns of the transposed image are the rows
        image = box(box(box(image.transpose(1, 0, 2))))
    return image


def _box_weights(sigma):
    """l (0 or 1 for these sigmas), and the weights of full and partial pixels times 2^24, rounded as in Pillow's C."""
    passes = jnp.where(sigma > 0, 3, 1)  # not the constant 3, by which XLA divides as by a rounded 1/3
    variance = jnp.square(sigma) / passes
    thrice = signed(3 * variance, jax.lax.bitcast_convert_type(-sigma, jnp.int32))
    whole = (12 * variance + 1 >= 9).astype(jnp.float32)  # floor((sqrt(12 variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) + thrice) / (6 * (variance - jnp.square(whole + 1)))
    full = (2**24 / (2 * (whole + part) + 1)).astype(jnp.uint32)
    return whole, full, (2**24 - (2 * whole + 1).astype(jnp.uint32) * full) // 2
