"""The mask of a detection, as the pixels of its image that belong to the object."""

import math

import numpy as np
from jaxtyping import Float, UInt8

THRESHOLD = 0.5


def paste(
    mask: Float[np.ndarray, "s s"], box: Float[np.ndarray, "4"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width}"]:
    """1 where the mask, seen through its box, is at least 1/2, and 0 elsewhere.

    It is read between its values (bilinear) at the centre of each pixel: x + 1/2 is at u = (x + 1/2 - x1) / (x2 - x1) s
    - 1/2, and y likewise. Beyond the mask there are zeros, into which its border fades within half a cell: outside of
    the box nothing is 1. If a side of the box is 0, the pixels next to it are at the middle of the mask.

    Args:
        mask: probabilities.
        box: x1, y1, x2, y2 in pixels of the image.
        height, width: the size of the image.

    Source: open-mmlab/mmdetection 2.22, `models/roi_heads/mask_heads/fcn_mask_head.py`.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    rows, down = _shares(y1, y2, height, len(mask))
    columns, across = _shares(x1, x2, width, len(mask))
    found = np.zeros((height, width), np.uint8)
    found[rows, columns] = down @ np.asarray(mask, np.float64) @ across.T >= THRESHOLD
    return found


def _shares(start: float, end: float, size: int, cells: int) -> tuple[slice, Float[np.ndarray, "n {cells}"]]:
    """The pixels, of `size` in a row, that the box can reach, and how much each cell of the mask counts in them."""
    first = min(max(math.floor(start) - 1, 0), size)
    last = max(min(math.ceil(end) + 1, size), first)
    centre = np.arange(first, last) + 0.5
    at = (centre - start) / (end - start) * cells - 0.5 if end > start else np.full(len(centre), (cells - 1) / 2)
    return slice(first, last), np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
