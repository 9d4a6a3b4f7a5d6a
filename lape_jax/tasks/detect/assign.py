"""Which object each anchor or RoI is to find, by the overlap of boxes.

Source: open-mmlab/mmdetection 2.22, `core/bbox/assigners/max_iou_assigner.py`. Functions are of one image, and of
static shapes: places that hold no object and candidates that are not there are marked, and take no part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer

from lape_jax.nn.detection.boxes import iou

BACKGROUND = -1  # instead of an object's number
IGNORED = -2  # ... neither an object nor background
DIVISOR = 32  # images are padded to multiples of it: see `valid_anchors`


class Limits(NamedTuple):
    """IoU: background is below `negative`, an object from `positive` on; `least` is what an object's best one needs."""

    positive: float
    negative: float
    least: float


ANCHORS = Limits(0.7, 0.3, 0.3)
ROIS = Limits(0.5, 0.5, 0.5)


def assign(
    candidates: Float[Array, "n 4"],
    usable: Bool[Array, " n"],
    boxes: Float[Array, "g 4"],
    valid: Bool[Array, " g"],
    limits: Limits,
) -> Int32[Array, " n"]:
    """The number of the object that each candidate is to find, else BACKGROUND or IGNORED.

    1. The object with the largest IoU, the first among equals, if that is at least `limits.positive`; background if it
       is below `limits.negative`.
    2. For each object in turn, if its best IoU is at least `limits.least`: every candidate of exactly that IoU gets
       this object, even one that overlaps more with another.

    Without objects all is background.

    Args:
        candidates: anchors or proposals.
        usable: which of them take part; the others are IGNORED.
        boxes: of objects.
        valid: which places of `boxes` hold one.
        limits: see `Limits`.
    """

    def add(carry, one):
        most, own, forced = carry
        number, box, there = one
        overlap = jnp.where(usable & there, iou(candidates, box[None])[:, 0], -1)
        # Worked out once: compiled a second time into what follows, it might be rounded otherwise, and equal nothing.
        overlap = jax.lax.optimization_barrier(overlap)
        best = jnp.max(overlap)
        own = jnp.where(overlap > most, number, own)
        forced = jnp.where((overlap == best) & (best >= limits.least), number, forced)
        return (jnp.maximum(most, overlap), own, forced), None

    # Object by object, as the IoU of all with 261,888 anchors takes 105 MB per image for 100 objects.
    none = jnp.full(len(candidates), -1, jnp.promote_types(candidates.dtype, boxes.dtype))
    nobody = jnp.full(len(candidates), BACKGROUND, jnp.int32)
    numbers = jnp.arange(len(boxes), dtype=jnp.int32)
    (most, own, forced), _ = jax.lax.scan(add, (none, nobody, nobody), (numbers, boxes, valid))
    found = jnp.where(most >= limits.positive, own, jnp.where(most < limits.negative, BACKGROUND, IGNORED))
    return jnp.where(usable, jnp.where(forced >= 0, forced, found), IGNORED)


def with_objects(
    proposals: Float[Array, "n 4"], usable: Bool[Array, " n"], boxes: Float[Array, "g 4"], valid: Bool[Array, " g"]
) -> tuple[Float[Array, "m 4"], Int32[Array, " m"]]:
    """Candidates: the objects' boxes, then the proposals; and whom each is to find, itself or as `assign` says."""
    themselves = jnp.where(valid, jnp.arange(len(boxes), dtype=jnp.int32), IGNORED)
    found = assign(proposals, usable, boxes, valid, ROIS)
    return jnp.concatenate([boxes, proposals]), jnp.concatenate([themselves, found])


def padded(size: Integer[Array, "*b 2"]) -> Integer[Array, "*b 2"]:
    """Height and width of images with their padding to multiples of DIVISOR."""
    return -(-size // DIVISOR) * DIVISOR


def valid_anchors(
    grids: Sequence[tuple[int, int, int]], strides: Sequence[int], size: Integer[Array, "2"]
) -> Bool[Array, " n"]:
    """Which anchors have their cell in the padded image: row < ceil(height / stride), and columns likewise.

    Args:
        grids: rows, columns and anchors per cell of each level.
        strides: pixels from cell to cell, for each level.
        size: height and width of the image, without padding.
    """
    valid = []
    for (rows, columns, ratios), stride in zip(grids, strides, strict=True):
        height, width = -(-padded(size) // stride)
        inside = (jnp.arange(rows) < height)[:, None] & (jnp.arange(columns) < width)
        valid.append(jnp.repeat(inside.ravel(), ratios))
    return jnp.concatenate(valid)
