"""The yardstick of boxes, RoIAlign and masks, against values worked out by hand and PyTorch's own layers."""

import math

import numpy as np
import pytest

from tests.reference.cases import uniform

torch = pytest.importorskip("torch")
from tests.reference import torch_boxes, torch_roi_align  # noqa: E402  (they need torch)

pytestmark = pytest.mark.peer


def draw(name: str, *shape: int):
    return torch.from_numpy(uniform(name, shape))


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def maximum(tensor) -> float:
    return float(tensor.detach().abs().max())


# ---- boxes


def test_anchors_of_the_first_level():
    found = torch_boxes.anchors_of(2, 3, 4)
    root = math.sqrt(2)
    first = [
        [-16 * root, -8 * root, 16 * root, 8 * root],
        [-16, -16, 16, 16],
        [-8 * root, -16 * root, 8 * root, 16 * root],
    ]
    assert maximum(found[0, 0] - double(first)) < 1e-13
    assert maximum(found[1, 2] - double(first) - double([8, 4, 8, 4])) < 1e-13
    assert found[1, 2, 1].tolist() == [-8, -12, 24, 20]
    assert torch_boxes.anchors_of(1, 1, 64)[0, 0, 1].tolist() == [-256, -256, 256, 256]


def test_valid_cells_are_those_of_the_padded_image():
    # 33 rows, 64 columns of a canvas of 64 x 96: cells 9 x 16, 5 x 8, 3 x 4, 2 x 2, 1 x 1.
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    found = torch_boxes.valid_anchors(sizes, (33, 64))
    assert found.dtype == torch.bool
    parts = found.split([h * w * 3 for h, w in sizes])
    assert [int(part.sum()) for part in parts] == [9 * 16 * 3, 5 * 8 * 3, 3 * 4 * 3, 2 * 2 * 3, 3]
    assert parts[0].reshape(16, 24, 3)[8, 15].tolist() == [True] * 3
    assert not parts[0].reshape(16, 24, 3)[9].any()
    assert not parts[0].reshape(16, 24, 3)[:, 16].any()


def test_iou_by_hand():
    a = double([[0, 0, 4, 2], [1, 1, 1, 5], [0, 0, 1, 1]])
    b = double([[2, 0, 6, 2], [1, 1, 1, 5], [10, 10, 12, 12]])
    assert torch_boxes.iou(a, b).tolist() == [[4 / 12, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_coder_by_hand_and_there_and_back():
    anchor, box = double([[0, 0, 10, 20]]), double([[2, 4, 22, 14]])
    expected = [[0.7, -0.05, math.log(2), math.log(0.5)]]
    assert maximum(torch_boxes.encode(anchor, box) - double(expected)) < 1e-15
    scaled = torch_boxes.encode(anchor, box, torch_boxes.BOX_STDS)
    assert maximum(scaled - double([[7, -0.5, 5 * math.log(2), 5 * math.log(0.5)]])) < 1e-13
    assert maximum(torch_boxes.decode(anchor, scaled, torch_boxes.BOX_STDS) - box) < 1e-13
    # exp(4.135) = 62.5 at the most; the shift is not clamped.
    found = torch_boxes.decode(anchor, double([[100, -100, 9, -9]]))
    assert maximum(found - double([[1005 - 312.5, -1990 - 0.16, 1005 + 312.5, -1990 + 0.16]])) < 1e-10


def test_nms_keeps_at_the_threshold():
    # Boxes of 10 x 10, shifted by 5: IoU 50 / 150 = 1/3; by 2: 80 / 120.
    boxes = double([[0, 0, 10, 10], [5, 0, 15, 10], [2, 0, 12, 10]])
    scores = double([0.9, 0.8, 0.95])
    assert torch_boxes.nms(boxes, scores, 0.5) == [2]  # the last two have 70 / 130
    assert torch_boxes.nms(boxes[:2], scores[:2], 50 / 150) == [0, 1]
    assert torch_boxes.nms(boxes[:2], scores[:2], np.nextafter(50 / 150, 0)) == [0]
    halves = double([[0, 0, 10, 10], [0, 0, 10, 5]])
    assert torch_boxes.nms(halves, double([0.5, 0.6]), 0.5) == [1, 0]
    assert torch_boxes.nms(halves, double([0.5, 0.5]), 0.4) == [0]


def test_nms_of_what_is_suppressed_suppresses_nothing():
    # A chain: the first takes the second, which would have taken the third.
    boxes = double([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert torch_boxes.nms(boxes, double([3, 2, 1]), 0.4) == [0, 2]


def test_nms_of_boxes_without_area():
    boxes = double([[1, 1, 1, 5], [1, 1, 1, 5], [0, 0, 2, 6]])
    assert torch_boxes.nms(boxes, double([3, 2, 1]), 0.5) == [0, 1, 2]


def test_nms_by_class_leaves_other_classes_alone():
    boxes = double([[0, 0, 10, 10]] * 4)
    found = torch_boxes.nms_by_class(boxes, double([0.3, 0.9, 0.5, 0.7]), torch.tensor([0, 1, 0, 1]), 0.5)
    assert found == [1, 2]


def test_levels_change_at_112_224_448():
    sides = [1, 111.9, 112, 223.9, 224, 447.9, 448, 5000]
    boxes = double([[3, 5, 3 + side, 5 + side] for side in sides])
    assert torch_boxes.level_of(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch_boxes.level_of(double([[0, 0, 56, 224], [0, 0, 0, 9]])).tolist() == [1, 0]


# ---- RoIAlign


def test_roi_align_of_a_ramp_is_the_ramp_at_the_bins_centres():
    # Pixel i has its centre at i + 1/2: a map of x - 1/2 + 10 (y - 1/2) gives at every bin its centre's value.
    y, x = torch.meshgrid(
        torch.arange(20.0, dtype=torch.float64), torch.arange(30.0, dtype=torch.float64), indexing="ij"
    )
    maps = torch.stack([x, 10 * y])
    roi = double([12.0, 8.8, 75.2, 60.4])  # on a map of stride 4: 3 to 18.8, 2.2 to 15.1
    found = torch_roi_align.roi_align(maps, roi, 0.25, 7)
    centres = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    assert maximum(found[0] - (3 + 15.8 * centres - 0.5).expand(7, 7)) < 1e-12
    assert maximum(found[1] - 10 * (2.2 + 12.9 * centres - 0.5)[:, None].expand(7, 7)) < 1e-12


def test_roi_align_at_and_beyond_the_border():
    maps = torch.full((1, 4, 4), 2.0, dtype=torch.float64)
    # One sample a bin, at -1.5 + .5 = -1, 0, 1, ...: the first is on the limit, and counts.
    assert torch_roi_align.roi_align(maps, double([-1, -1, 2, 2]), 1, 3).tolist() == [[[2.0] * 3] * 3]
    found = torch_roi_align.roi_align(maps, double([-1.25, 0, 1.75, 3]), 1, 3)
    assert found.tolist() == [[[0.0, 2.0, 2.0]] * 3]
    # Two samples a bin: at x = 2.375, 3.125; 3.875, 4.625 (beyond 4). A sample outside counts in the mean.
    assert torch_roi_align.roi_align(maps, double([2.5, 1, 5.5, 4]), 1, 2)[0, 0].tolist() == [2, 1]
    assert torch_roi_align.roi_align(maps, double([2.5, 1, 5.5, 4]), 1, 1)[0].tolist() == [[2 * 2 / 3]]
    assert torch_roi_align.roi_align(maps, double([1, 1, 1, 3]), 1, 2).tolist() == [[[0.0] * 2] * 2]


def by_loops(maps, roi, scale: float, out: int):
    """RoIAlign, sample by sample."""
    x1, y1, x2, y2 = (float(value) * scale for value in roi)
    height, width = maps.shape[1:]
    rows, columns = math.ceil((y2 - y1) / out), math.ceil((x2 - x1) / out)
    found = torch.zeros(maps.shape[0], out, out, dtype=maps.dtype)
    for i in range(out * rows):
        for j in range(out * columns):
            y = y1 - 0.5 + (i // rows + (i % rows + 0.5) / rows) * (y2 - y1) / out
            x = x1 - 0.5 + (j // columns + (j % columns + 0.5) / columns) * (x2 - x1) / out
            if -1 <= y <= height and -1 <= x <= width:
                y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                top, left = min(int(y), height - 2), min(int(x), width - 2)
                block, v, u = maps[:, top : top + 2, left : left + 2], y - top, x - left
                row = block[:, 0] * (1 - v) + block[:, 1] * v
                found[:, i // rows, j // columns] += (row[:, 0] * (1 - u) + row[:, 1] * u) / (rows * columns)
    return found


@pytest.mark.parametrize("roi", [(3, 5, 90, 60), (-9, 8, 300, 11), (7.2, 1.3, 9.1, 170), (100, 60, 101, 61)])
def test_roi_align_sample_by_sample(roi):
    maps = draw("maps", 2, 16, 24)
    found = torch_roi_align.roi_align(maps, double(roi), 0.25, 7)
    assert maximum(found - by_loops(maps, double(roi), 0.25, 7)) < 1e-13


def test_regions_are_read_from_the_level_of_their_size():
    fpn = [torch.full((1, 120, 120), float(level), dtype=torch.float64) for level in range(4)]
    rois = double([[0, 0, 20, 20], [0, 0, 30, 900], [0, 0, 300, 300], [0, 0, 448, 448]])
    found = torch_roi_align.roi_features(fpn, rois[[0, 3, 1, 2]], 2)
    assert found[:, 0, 0, 0].tolist() == [0, 3, 1, 2]
    assert torch_roi_align.roi_features(fpn, rois[:0], 2).shape == (0, 1, 2, 2)


# ---- masks


def test_mask_target_of_half_an_object():
    bitmap = torch.zeros(32, 64, dtype=torch.uint8)
    bitmap[:, 20:] = 1
    found = torch_roi_align.mask_target(bitmap, double([6, 2, 34, 30]), (32, 64))
    assert found.tolist() == [[0.0] * 14 + [1.0] * 14] * 28
    # What lies outside of the padded image is cut off, before the bins are made.
    found = torch_roi_align.mask_target(bitmap, double([-50, -5, 40, 90]), (32, 64))
    assert found.tolist() == [[0.0] * 14 + [1.0] * 14] * 28


def test_pasting_is_that_of_grid_sample():
    logits, (height, width) = draw("mask", 28, 28), (21, 37)
    for box in ([3.3, 4.1, 30.2, 15.7], [-7.0, 2.0, 12.0, 40.0], [10.2, 10.1, 10.9, 10.6]):
        x = (torch.arange(width, dtype=torch.float64) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(height, dtype=torch.float64) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)[None]
        expected = torch.nn.functional.grid_sample(logits.sigmoid()[None, None], grid, align_corners=False)[0, 0]
        found = torch_roi_align.paste(logits, double(box), (height, width))
        assert maximum(found - expected) < 1e-13
        assert maximum(found) > 0.1
        outside = torch.ones(height, width, dtype=torch.bool)
        rows = slice(max(math.ceil(box[1] - 0.5), 0), max(math.floor(box[3] + 0.5), 0))
        outside[rows, max(math.ceil(box[0] - 0.5), 0) : max(math.floor(box[2] + 0.5), 0)] = False
        assert (found[outside] < 0.5).all()


def test_a_box_of_no_length_shows_the_middle_of_its_mask():
    logits = draw("mask", 4, 4)
    middle = float(logits.sigmoid()[1:3, 1:3].mean())
    assert maximum(torch_roi_align.paste(logits, double([2, 2, 2, 2]), (3, 3)) - middle) < 1e-14
