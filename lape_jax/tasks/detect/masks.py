"""Ground-truth masks in a form that travels, and the 28 x 28 targets that a device makes from it.

An object's mask is kept where its box is: in the window of whole pixels around the box, and one pixel more on each
side. A window of more than SIDE rows is resampled to SIDE rows of cells, and so are columns; a cell is 1 if the mean of
the pixels in it is at least 1/2. So a mask is SIDE x SIDE bits, 1568 bytes, and nothing is lost of objects of up to 110
pixels. What a bitmap has outside of the window is lost.

The targets are Mask R-CNN's, exactly, for the bitmap in which every pixel has the value of its cell.
`benchmarks/detect_masks.md` says how near they come to those of the bitmap itself.
"""

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Num, UInt8

SIDE = 112  # cells of a mask along an axis, at most
SHAPE = (SIDE, SIDE // 8)  # of a compact mask, uint8
TARGET = 28  # pixels of a target along an axis
_MARGIN = 1  # pixels: bitmaps drawn from polygons reach beyond the box by the rounding of both


def _window(low: Any, high: Any, xp: Any) -> tuple[Any, Any]:
    """The first pixel of a window, and how many it has, along one axis of boxes that reach from low to high."""
    first = xp.floor(low).astype(xp.int32) - _MARGIN
    return first, xp.ceil(high).astype(xp.int32) + _MARGIN - first


def _cell(pixel: Any, first: Any, size: Any, side: int, xp: Any) -> Any:
    """The cell that the centre of a pixel lies in, along one axis; -1 outside of the window."""
    behind = pixel - first
    cells = xp.minimum(size, side)
    return xp.where((behind >= 0) & (behind < size), (2 * behind + 1) * cells // (2 * size), -1)  # exact, in integers


# ---- On the host -----------------------------------------------------------------------------------------------------


def compact(bitmap: UInt8[np.ndarray, "h w"], box: Num[np.ndarray, "4"], side: int = SIDE) -> UInt8[np.ndarray, "s e"]:
    """The mask of one object, side x side bits: eight of a row in a byte, the first in its highest bit.

    Args:
        bitmap: 1 where the object is, else 0.
        box: x1, y1, x2, y2 in pixels of the bitmap.
        side: cells along an axis, a multiple of 8.
    """
    x1, y1, x2, y2 = np.asarray(box, np.float32)
    (top, height), (left, width) = _window(y1, y2, np), _window(x1, x2, np)
    window = np.zeros((height, width), np.uint8)
    seen = bitmap[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    window[max(-top, 0) :, max(-left, 0) :][: seen.shape[0], : seen.shape[1]] = seen
    if max(width, height) > side:
        shares = cv2.resize(255 * window, (min(width, side), min(height, side)), interpolation=cv2.INTER_AREA)
        window = (shares >= 128).astype(np.uint8)
    cells = np.zeros((side, side), np.uint8)
    cells[: window.shape[0], : window.shape[1]] = window
    return np.packbits(cells, axis=1)


def expand(
    mask: UInt8[np.ndarray, "s e"], box: Num[np.ndarray, "4"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width}"]:
    """The bitmap that a compact mask stands for: 1 where the object is, else 0.

    Args:
        mask, box: as of `compact`.
        height, width: the size of the bitmap.
    """
    x1, y1, x2, y2 = np.asarray(box, np.float32)
    cells = np.pad(np.unpackbits(mask, axis=1), (0, 1))  # so that cell -1 is empty
    rows = _cell(np.arange(height), *_window(y1, y2, np), len(mask), np)
    columns = _cell(np.arange(width), *_window(x1, x2, np), len(mask), np)
    return cells[rows[:, None], columns]


# ---- On the device ---------------------------------------------------------------------------------------------------


def targets(
    masks: UInt8[Array, "g s e"],
    boxes: Float[Array, "g 4"],
    rois: Float[Array, "r 4"],
    own: Integer[Array, " r"],
    size: Integer[Array, "2"],
    canvas: tuple[int, int],
) -> Bool[Array, "r 28 28"]:
    """What the mask head should answer for RoIs of one image.

    RoIAlign of the object's bitmap over the RoI, cut at the borders of the image: scale 1, aligned, ceil(side / 28)
    samples along each axis of a pixel; then >= 1/2.
    Source: open-mmlab/mmdetection 2.22, `core/mask/mask_target.py`, `core/mask/structures.py`.

    Args:
        masks, boxes: masks and boxes of the objects, see `compact`.
        rois: in pixels of the canvas.
        own: the object that each RoI is to find.
        size: height and width of the image with its padding to multiples of 32.
        canvas: height and width that no image exceeds.
    """
    shifts = jnp.arange(7, -1, -1, dtype=jnp.uint8)
    cells = (masks[own][..., None] >> shifts & 1).reshape(len(rois), masks.shape[1], -1)
    limits = jnp.tile(size[::-1], 2).astype(rois.dtype)
    x1, y1, x2, y2 = jnp.clip(rois, 0, limits).T
    left, top, right, bottom = boxes[own].astype(jnp.float32).T  # as `compact` has them
    most, side = -(-max(canvas) // TARGET), masks.shape[1]
    rows = _shares(y1, y2, _window(top, bottom, jnp), size[0], side, most)
    columns = _shares(x1, x2, _window(left, right, jnp), size[1], side, most)
    exact = jax.lax.Precision.HIGHEST  # a TPU would round to bfloat16, a GPU to tf32
    along = jnp.einsum("ris,rst->rit", rows, cells.astype(rows.dtype), precision=exact)
    return jnp.einsum("rit,rjt->rij", along, columns, precision=exact) >= 0.5


def _shares(
    low: Float[Array, " r"],
    high: Float[Array, " r"],
    window: tuple[Int[Array, " r"], Int[Array, " r"]],
    pixels: Integer[Any, ""],
    side: int,
    most: int,
) -> Float[Array, "r 28 {side}"]:
    """How much the cells of masks count in the pixels of targets, along one axis.

    Args:
        low, high: where the RoIs begin and end.
        window: see `_window`.
        pixels: of the bitmap along the axis; samples outside take the nearest one.
        side: cells of a mask.
        most: samples in a pixel of a target, at most.
    """
    step = ((high - low) / TARGET)[:, None]
    count = jnp.ceil(step)  # 0 if a RoI has no height or width: its share of everything is 0
    first, size = (value[:, None] for value in window)

    def add(sample, total):
        place = jnp.arange(TARGET, dtype=low.dtype) + (sample + 0.5) / jnp.maximum(count, 1)
        at = jnp.clip(low[:, None] - 0.5 + step * place, 0, pixels - 1)  # 0 is the centre of the first pixel
        before = jnp.floor(at)
        part, before = (at - before)[..., None], before.astype(jnp.int32)
        following = jnp.minimum(before + 1, pixels - 1)
        cell, next_cell = (_cell(pixel, first, size, side, jnp)[..., None] for pixel in (before, following))
        numbers = jnp.arange(side)
        share = jnp.where(cell == numbers, 1 - part, 0) + jnp.where(next_cell == numbers, part, 0)
        return total + jnp.where((sample < count)[..., None], share, 0)

    # Sample by sample, as XLA would keep the shares of all of them: 60 MB on a CPU for 128 RoIs, and 5 times as slow.
    total = jax.lax.fori_loop(0, most, add, jnp.zeros((*low.shape, TARGET, side), low.dtype))
    return total / jnp.maximum(count, 1)[..., None]
