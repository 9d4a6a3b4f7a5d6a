"""RoIAlign (He et al. 2017, "Mask R-CNN", arXiv:1703.06870): a grid of features of any box, whatever its size.

As open-mmlab/mmcv 1.4.2 does it (`ops/csrc/pytorch/cpu/roi_align.cpp`, aligned, sampling_ratio 0): exact, for tiny and
for elongated boxes too, as sums over samples are written down in closed form.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lape_jax.nn.by_blocks import by_blocks
from lape_jax.nn.detection.boxes import areas

FINEST = 56  # sqrt(area) / 56 < 2: the first map; < 4: the second; and so on
MULTIPLIED = 448  # rows of bins at a time, of all regions of an image


def pooled(
    maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"], strides: Sequence[int], out: int
) -> Float[Array, "b r {out} {out} c"]:
    """`roi_align` of each region in the one map that fits its size, see `level`."""
    chosen = level(rois, len(maps))
    return sum(
        roi_align(map_, rois, 1 / stride, out, chosen == index)
        for index, (map_, stride) in enumerate(zip(maps, strides, strict=True))
    )


def level(rois: Float[Array, "*l 4"], count: int) -> Int[Array, "*l"]:
    """floor(log2(sqrt(area) / 56 + 1e-6)) within 0 .. count - 1, without a logarithm that might be rounded down."""
    size = jnp.sqrt(areas(rois)) / FINEST + 1e-6
    return sum((size >= 2**index).astype(jnp.int32) for index in range(1, count))


def roi_align(
    maps: Float[Array, "b h w c"],
    rois: Float[Array, "b r 4"],
    scale: float,
    out: int,
    chosen: Bool[Array, "b r"] | None = None,
) -> Float[Array, "b r {out} {out} c"]:
    """Means of bilinear samples in out x out equal bins of each region, of which no gradient is taken.

    In a bin there are ceil(s / out) samples along either axis, s the side of the region in pixels of the map, evenly
    spaced. The centre of pixel i is at i + 1/2; beyond the first and last centre, by one pixel at most, a sample is
    what the nearest pixel is; further outside it is 0, and counts. A region with a side of 0 has no samples, and is 0.

    With the samples of a bin summed up, a region is Y map X^T for matrices (out, h) of rows and (out, w) of columns:
    two products, of some regions at a time, forward and backward. In the type of the maps.

    Args:
        maps: an image's each.
        rois: regions of the image, in its pixels.
        scale: pixels of the map to one of the image.
        out: bins along either axis.
        chosen: regions to look at; others are 0.
    """
    _, rows, columns, _ = maps.shape
    box = lax.stop_gradient(rois) * scale - 0.5
    down, across = (shares(box[..., i], box[..., i + 2], out, size) for i, size in ((1, rows), (0, columns)))
    if chosen is not None:
        down = jnp.where(chosen[..., None, None], down, 0)
    full = jnp.promote_types(maps.dtype, jnp.float32)  # in which gradients add up
    product = {"precision": lax.Precision.HIGHEST if maps.dtype == full else None, "preferred_element_type": full}

    def some(_, down, across, maps_full):
        values = maps_full.astype(maps.dtype)
        taken = jnp.einsum("bryh,bhwc->brywc", down.astype(maps.dtype), values, **product).astype(maps.dtype)
        return jnp.einsum("brxw,brywc->bryxc", across.astype(maps.dtype), taken, **product)

    found = by_blocks(some, [down, across], [maps.astype(full)], axis=1, into=1, block=max(MULTIPLIED // out, 1))
    return found.astype(maps.dtype)


def shares(start: Float[Array, "*l"], end: Float[Array, "*l"], out: int, size: int) -> Float[Array, "*l {out} {size}"]:
    """How much each of `size` pixels in a row counts in each of `out` bins between `start` and `end`.

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
        """Of t_j - offset, j from low to high - 1."""
        return (high - low) * (first - offset + step * (low + high - 1) / 2)

    pixel = jnp.arange(size, dtype=start.dtype)
    # Between the centres of pixels -1 and `size`; from the first one on, to the last.
    limits = jnp.arange(-1, size + 1, dtype=start.dtype)
    counts = until(limits)
    left, here, right = counts[..., :-2], counts[..., 1:-1], counts[..., 2:]
    rising = jnp.where(pixel > 0, total(left, here, pixel - 1), here - before(jnp.full((), -1, start.dtype)))
    falling = jnp.where(pixel < size - 1, -total(here, right, pixel + 1), right - here)
    return (rising + falling) / jnp.maximum(samples, 1)
