"""Boxes (x1, y1, x2, y2) in pixels, with continuous coordinates: x2 - x1 is the width, and 1 is nowhere added to it.

Source: open-mmlab/mmdetection 2.22, `core/bbox/iou_calculators/iou2d_calculator.py`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

FLOOR = 1e-6  # of the union of two boxes, in square pixels


def areas(boxes: Float[Array, "*l 4"]) -> Float[Array, "*l"]:
    """(x2 - x1) (y2 - y1); of a box that is inside out, negative or of no meaning."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Float[Array, "... n 4"], b: Float[Array, "... m 4"], floor: float = FLOOR) -> Float[Array, "... n m"]:
    """Intersection over union of each box in `a` with each in `b`.

    Args:
        floor: of the union: two boxes of no area have an IoU of 0. Without a floor, 0, theirs is NaN.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    sides = jnp.maximum(sides, 0)
    overlap = sides[..., 0] * sides[..., 1]
    union = areas(a) + areas(b) - overlap
    return overlap / (jnp.maximum(union, floor) if floor else union)


def clip(boxes: Float[Array, "b *l 4"], sizes: Shaped[Array, "b 2"]) -> Float[Array, "b *l 4"]:
    """Boxes cut at the borders of their images: x to 0 .. width, y to 0 .. height.

    Args:
        sizes: height and width of each image.
    """
    height, width = sizes.astype(boxes.dtype).T
    limits = jnp.stack([width, height, width, height], axis=-1)
    return jnp.clip(boxes, 0, limits.reshape(-1, *(1,) * (boxes.ndim - 2), 4))
