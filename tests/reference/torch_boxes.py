"""Boxes of a two-stage detector in PyTorch, from the formulas of Faster R-CNN and FPN, as MMDetection has them.

A box is (x1, y1, x2, y2) in pixels, in continuous coordinates: its width is x2 - x1. All is computed in the dtype that
comes in.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64)
SCALE, RATIOS = 8, (0.5, 1.0, 2.0)
LARGEST_LOG = abs(math.log(16 / 1000))  # of a decoded width or height over the anchor's
BOX_STDS = (0.1, 0.1, 0.2, 0.2)


def anchors_of(height: int, width: int, stride: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(height, width, 3, 4): around (x * stride, y * stride), no half pixel; area (8 stride)^2, h / w the ratio."""
    found = torch.zeros(height, width, len(RATIOS), 4, dtype=dtype)
    x = torch.arange(width, dtype=dtype) * stride
    y = torch.arange(height, dtype=dtype)[:, None] * stride
    for i, ratio in enumerate(RATIOS):
        root = torch.tensor(ratio, dtype=dtype).sqrt()
        half_width, half_height = stride * SCALE / root / 2, stride * SCALE * root / 2
        for place, value in enumerate((x - half_width, y - half_height, x + half_width, y + half_height)):
            found[:, :, i, place] = value
    return found


def anchors(sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """For maps of these sizes at strides 4, 8, 16, ..."""
    return [anchors_of(*size, stride, dtype) for size, stride in zip(sizes, STRIDES, strict=True)]


def valid_anchors(sizes: Sequence[tuple[int, int]], pad_shape: tuple[int, int]) -> Tensor:
    """(N,) bool, over all levels: the cell lies within the image padded to `pad_shape` (height, width)."""
    found = []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        rows, columns = (math.ceil(side / stride) for side in pad_shape)
        inside = torch.zeros(height, width, len(RATIOS), dtype=torch.bool)
        inside[:rows, :columns] = True
        found.append(inside.flatten())
    return torch.cat(found)


def area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(n, m), of boxes (n, 4) and (m, 4)."""
    left_top = torch.maximum(a[:, None, :2], b[None, :, :2])
    right_bottom = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    return (right_bottom - left_top).clamp(min=0).prod(dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(n, m); the union is at least 1e-6, so that a box of no area has IoU 0 with all."""
    inner = intersection(a, b)
    return inner / (area(a)[:, None] + area(b)[None] - inner).clamp(min=1e-6)


def encode(anchors: Tensor, boxes: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """(dx, dy, dw, dh): shift of the centre over the anchor's side, log of the sides' ratio; all divided by `stds`."""
    (x, y, w, h), (gx, gy, gw, gh) = centred(anchors), centred(boxes)
    deltas = torch.stack([(gx - x) / w, (gy - y) / h, torch.log(gw / w), torch.log(gh / h)], dim=-1)
    return deltas / torch.tensor(stds, dtype=deltas.dtype)


def decode(anchors: Tensor, deltas: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes of deltas; dw and dh are clamped to +-|log(16 / 1000)|, the shift is not."""
    x, y, w, h = centred(anchors)
    dx, dy, dw, dh = (deltas * torch.tensor(stds, dtype=deltas.dtype)).unbind(-1)
    dw, dh = (value.clamp(-LARGEST_LOG, LARGEST_LOG) for value in (dw, dh))
    gx, gy, gw, gh = x + dx * w, y + dy * h, w * dw.exp(), h * dh.exp()
    return torch.stack([gx - gw / 2, gy - gh / 2, gx + gw / 2, gy + gh / 2], dim=-1)


def centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y of the centre, width, height."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """To an image of size (height, width): x to [0, width], y to [0, height]."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """What is kept, best first: each box that no better kept one overlaps with an IoU **above** the threshold.

    Tied scores keep the order of the boxes. Two boxes of no area have no IoU (0 / 0) and leave each other alone.
    """
    left = torch.argsort(scores, descending=True, stable=True).tolist()
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        if left:
            others = boxes[left]
            inner = intersection(boxes[best : best + 1], others)[0]
            overlap = inner / (area(boxes[best]) + area(others) - inner)
            left = [index for index, value in zip(left, overlap.tolist(), strict=True) if not value > threshold]
    return kept


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    """`nms` of every class on its own; all that are kept, best first."""
    kept = []
    for label in sorted(set(labels.tolist())):
        own = torch.nonzero(labels == label)[:, 0]
        kept += own[nms(boxes[own], scores[own], threshold)].tolist()
    kept.sort()
    return [kept[i] for i in torch.argsort(scores[kept], descending=True, stable=True).tolist()]


def level_of(rois: Tensor) -> Tensor:
    """(n,) from 0 to 3: the map of the pyramid that a RoI is read from: one up with every doubling from 112 pixels."""
    root = area(rois).sqrt()
    return torch.floor(torch.log2(root / 56 + 1e-6)).clamp(0, 3).long()
