"""RoIAlign with an adaptive number of samples, mask targets and the pasting of masks, in PyTorch.

From the formulas of He et al. 2017, as MMCV 1.4.2 and MMDetection 2.22 have them. Every sample is taken by itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.torch_boxes import STRIDES, clip, level_of


def sample_places(start: float, size: float, out: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """(out * n,) coordinates of an axis, and n = ceil(size / out), the samples of a bin."""
    count = math.ceil(size / out)
    places = [start + (i + (j + 0.5) / count) * (size / out) for i in range(out) for j in range(count)]
    return torch.tensor(places, dtype=dtype), count


def bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(C, len(y), len(x)): maps (C, H, W) read at all pairs of coordinates, where pixel i has coordinate i.

    Beyond -1 and beyond H (or W) there is nothing: zero. Between, coordinates are clamped to the pixels' centres.
    """
    (top, down, y_inside), (left, right, x_inside) = _taps(y, maps.shape[1]), _taps(x, maps.shape[2])
    total = torch.zeros(())
    for row, row_share in (top, down):
        for column, column_share in (left, right):
            total = total + maps[:, row][:, :, column] * (row_share[:, None] * column_share[None])
    return total * (y_inside[:, None] & x_inside[None])


def _taps(places: Tensor, size: int):
    """The pixel before and the one after with their shares, and whether there is anything at all."""
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    before = places.floor().long().clamp(max=size - 1)
    share = places - before
    return (before, 1 - share), ((before + 1).clamp(max=size - 1), share), inside


def roi_align(maps: Tensor, roi: Tensor, scale: float, out: int) -> Tensor:
    """(C, out, out): the means of the samples of the bins of one RoI on one image's maps (C, H, W).

    A RoI without width or height has no samples: zeros.
    """
    x1, y1, x2, y2 = (float(value) * scale for value in roi)
    y, rows = sample_places(y1 - 0.5, y2 - y1, out, maps.dtype)
    x, columns = sample_places(x1 - 0.5, x2 - x1, out, maps.dtype)
    if rows <= 0 or columns <= 0:
        return torch.zeros(maps.shape[0], out, out, dtype=maps.dtype)
    return bilinear(maps, y, x).reshape(-1, out, rows, out, columns).mean(dim=(2, 4))


def roi_features(fpn: Sequence[Tensor], rois: Tensor, out: int) -> Tensor:
    """(r, C, out, out) of RoIs (r, 4), each from the level of its size; fpn: maps (C, h, w) of one image."""
    levels = level_of(rois).tolist()
    found = [roi_align(fpn[i], roi, 1 / STRIDES[i], out) for i, roi in zip(levels, rois, strict=True)]
    return torch.stack(found) if found else torch.zeros(0, fpn[0].shape[0], out, out, dtype=fpn[0].dtype)


def mask_target(bitmap: Tensor, roi: Tensor, pad_shape: tuple[int, int], out: int = 28) -> Tensor:
    """(out, out) of 0 and 1: the share of the object in the bins of the RoI, from 1/2 on.

    The bitmap is the object's on the image padded to `pad_shape`, to which the RoI is clipped.
    """
    assert tuple(bitmap.shape) == tuple(pad_shape), (bitmap.shape, pad_shape)
    value = roi_align(bitmap[None].to(roi.dtype), clip(roi, pad_shape), 1.0, out)[0]
    return (value >= 0.5).to(roi.dtype)


def paste(logits: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) of values 0..1: the mask logits (s, s) of a detection, seen through its box, on an image of that size.

    Pixel (x, y) has the centre (x + 1/2, y + 1/2), which lies at u = (x + 1/2 - x1) / (x2 - x1) * s - 1/2 of the map;
    beyond the map there are zeros, into which its border fades. A side of no length puts all pixels at the middle.
    """
    side, (height, width), (x1, y1, x2, y2) = logits.shape[0], size, box.tolist()
    values = torch.sigmoid(logits)
    found = torch.zeros(height, width, dtype=logits.dtype)
    columns = [_place(x, x1, x2, side) for x in range(width)]
    for y in range(height):
        v = _place(y, y1, y2, side)
        for x, u in enumerate(columns):
            found[y, x] = _read(values, v, u)
    return found


def _place(pixel: int, start: float, end: float, side: int) -> float:
    return (pixel + 0.5 - start) / (end - start) * side - 0.5 if end != start else side / 2 - 0.5


def _read(values: Tensor, v: float, u: float) -> float:
    total, side = 0.0, values.shape[0]
    if not (-1 < v < side and -1 < u < side):
        return total
    for row in (math.floor(v), math.floor(v) + 1):
        for column in (math.floor(u), math.floor(u) + 1):
            if 0 <= row < side and 0 <= column < side:
                total += (1 - abs(v - row)) * (1 - abs(u - column)) * float(values[row, column])
    return total
