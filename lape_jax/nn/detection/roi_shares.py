"""Where RoIAlign looks: which map a region is looked at in, and how much each of its pixels counts in a bin."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lape_jax.nn.detection.boxes import areas

FINEST = 56  # sqrt(area) / 56 < 2: the first map; < 4: the second; and so on


def level(rois: Float[Array, "*l 4"], count: int) -> Int[Array, "*l"]:
    """floor(log2(sqrt(area) / 56 + 1e-6)) within 0 .. count - 1, without a logarithm that might be rounded down."""
    size = jnp.sqrt(areas(rois)) / FINEST + 1e-6
    return jnp.sum(size[..., None] >= 2 ** jnp.arange(1, count), axis=-1, dtype=jnp.int32)


def shares(
    start: Float[Array, "*l"], end: Float[Array, "*l"], out: int, size: int | Int[Array, "*l"], length: int
) -> Float[Array, "*l {out} {length}"]:
    """How much each of `length` pixels, the first `size` of a map, counts in each of `out` bins from `start` to `end`.

    Samples t_j = t_0 + j d, and the pixels k at both sides of one share it: with m of them in (k - 1, k] whose mean is
    u, and m' in (k, k + 1] whose mean is v, pixel k has (m (u - k + 1) + m' (k + 1 - v)) / n.
    """
    side = jnp.maximum(end - start, 0)[..., None, None]
    samples = jnp.ceil(side / out)
    step = side / out / jnp.maximum(samples, 1)
    first = start[..., None, None] + (jnp.arange(out)[:, None] * (side / out) + step / 2)
    step = jnp.where(step > 0, step, 1)

    def until(limit):
        """Samples that are not greater."""
        return jnp.clip(jnp.floor((limit - first) / step) + 1, 0, samples)

    def before(limit):
        """Samples that are less."""
        return jnp.clip(jnp.ceil((limit - first) / step), 0, samples)

    def total(low, high, offset):
        """Sums t_j - offset over j from low to high - 1."""
        return (high - low) * (first - offset + step * (low + high - 1) / 2)

    size = jnp.asarray(size)[..., None, None]
    pixel = jnp.arange(length, dtype=start.dtype)
    limits = jnp.arange(-1, length + 1, dtype=start.dtype)  # and beyond the last centre
    counts = until(limits)
    left, here, right = counts[..., :-2], counts[..., 1:-1], counts[..., 2:]
    rising = jnp.where(pixel > 0, total(left, here, pixel - 1), here - before(jnp.full((), -1, start.dtype)))
    falling = jnp.where(pixel < size - 1, -total(here, right, pixel + 1), right - here)
    return jnp.where(pixel < size, (rising + falling) / jnp.maximum(samples, 1), 0)
