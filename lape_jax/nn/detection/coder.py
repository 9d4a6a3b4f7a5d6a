"""Boxes relative to other boxes, as four numbers that a linear layer can predict.

Source: open-mmlab/mmdetection 2.22, `core/bbox/coder/delta_xywh_bbox_coder.py`; the numbers are R-CNN's.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lape_jax.nn.detection.boxes import clip

LIMIT = abs(math.log(16 / 1000))  # of dw and dh: a side becomes 62.5 times as long at most, or as short
UNIT = (1.0, 1.0, 1.0, 1.0)


def encode(
    anchors: Float[Array, "... 4"], boxes: Float[Array, "... 4"], stds: tuple[float, ...] = UNIT
) -> Float[Array, "... 4"]:
    """(dx, dy, dw, dh) / stds: dx = (x - x_a) / w_a and dw = log(w / w_a) of centre and width; dy and dh likewise.

    A box or anchor with a side of 0 gives numbers that are not finite.

    Args:
        anchors: what the boxes are relative to.
        boxes: to be encoded.
        stds: what each number is divided by.
    """
    (centre_a, side_a), (centre, side) = _centre_and_side(anchors), _centre_and_side(boxes)
    deltas = jnp.concatenate([(centre - centre_a) / side_a, jnp.log(side / side_a)], axis=-1)
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode(
    anchors: Float[Array, "... 4"],
    deltas: Float[Array, "... 4"],
    stds: tuple[float, ...] = UNIT,
    sizes: Shaped[Array, "b 2"] | None = None,
) -> Float[Array, "... 4"]:
    """The inverse of `encode`, in which dw and dh (times stds) are cut at +-`LIMIT`; dx and dy are not.

    Args:
        anchors: what the deltas are relative to.
        deltas: to be decoded.
        stds: what each number is multiplied by.
        sizes: height and width of the images, which are the leading axis of the result: boxes are cut at their borders.
    """
    centre, side = _centre_and_side(anchors)
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    centre = centre + deltas[..., :2] * side
    half = side * jnp.exp(jnp.clip(deltas[..., 2:], -LIMIT, LIMIT)) / 2
    boxes = jnp.concatenate([centre - half, centre + half], axis=-1)
    return boxes if sizes is None else clip(boxes, sizes)


def _centre_and_side(boxes: Float[Array, "*l 4"]) -> tuple[Float[Array, "*l 2"], Float[Array, "*l 2"]]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
