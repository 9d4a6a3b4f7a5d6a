"""Anchors: the boxes, centred on the pixels of maps, that a region proposal network starts from.

Source: open-mmlab/mmdetection 2.22, `core/anchor/anchor_generator.py`, with the settings of its Mask R-CNN.
"""

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

STRIDES = (4, 8, 16, 32, 64)  # of the maps of a `Pyramid`
SCALE = 8  # side of a square anchor, in strides
RATIOS = (0.5, 1.0, 2.0)  # heights to widths


def anchors(
    rows: int, columns: int, stride: int, dtype: DTypeLike = np.float32
) -> Float[np.ndarray, "rows columns 3 4"]:
    """(x1, y1, x2, y2) around (stride j, stride i), without half a pixel added, for each pixel (i, j) of a map.

    Of width 8 stride / sqrt(r) and height 8 stride sqrt(r) for each r of `RATIOS`. All is worked out in `dtype`, so
    that anchors which overlap a box equally do so here, too, as far as they do elsewhere in that type.
    """
    root = np.sqrt(np.asarray(RATIOS, dtype))
    width, height = (stride * SCALE * side for side in (1 / root, root))
    around = np.stack([-width / 2, -height / 2, width / 2, height / 2], axis=-1)
    y, x = (stride * axis.astype(dtype) for axis in np.indices((rows, columns)))
    return np.stack([x, y, x, y], axis=-1)[:, :, None] + around


def sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of the maps of images whose sides are multiples of 32: the last is every other pixel."""
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
