"""RoIAlign (He et al. 2017, "Mask R-CNN", arXiv:1703.06870): a grid of features of any box, whatever its size.

As open-mmlab/mmcv 1.4.2 does it (`ops/csrc/pytorch/cpu/roi_align.cpp`, aligned, sampling_ratio 0): exact, for tiny and
for elongated boxes too, as sums over samples are written down in closed form.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lape_jax.nn.by_blocks import by_blocks
from lape_jax.nn.detection import roi_gathers
from lape_jax.nn.detection.roi_shares import level, shares

MULTIPLIED = 448  # rows of bins at a time, of all regions of an image


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pooled(
    maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"], strides: Sequence[int], out: int
) -> Float[Array, "b r {out} {out} c"]:
    """`roi_align` of each region in the one map that fits its size, see `level`; in the way that suits the device."""
    return lax.platform_dependent(
        maps,
        rois,
        cpu=lambda maps, rois: roi_gathers.features(maps, rois, strides, out),
        default=lambda maps, rois: by_products(maps, rois, strides, out),
    )


def _gradient(strides: Sequence[int], out: int, given: tuple, g: Float[Array, "b r out out c"]) -> tuple:
    maps, rois = given

    def products(maps, rois, g):
        return jax.vjp(lambda maps: by_products(maps, rois, strides, out), list(maps))[1](g)[0]

    found = lax.platform_dependent(
        maps, rois, g, cpu=lambda *args: roi_gathers.gradient(*args, strides), default=products
    )
    return jax.tree.unflatten(jax.tree.structure(maps), found), jnp.zeros_like(rois)


pooled.defvjp(lambda maps, rois, strides, out: (pooled(maps, rois, strides, out), (maps, rois)), _gradient)


def by_products(
    maps: Sequence[Float[Array, "b _h _w c"]], rois: Float[Array, "b r 4"], strides: Sequence[int], out: int
) -> Float[Array, "b r {out} {out} c"]:
    """`pooled`, each region looked at in all maps, of which all but its own count nothing."""
    chosen = level(rois, len(maps))
    return sum(
        roi_align(map_, rois, 1 / stride, out, chosen == index)
        for index, (map_, stride) in enumerate(zip(maps, strides, strict=True))
    )


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
    down, across = (shares(box[..., i], box[..., i + 2], out, size, size) for i, size in ((1, rows), (0, columns)))
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
