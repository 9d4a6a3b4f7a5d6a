"""The yardstick of detection's training itself, against values worked out by hand."""

import math

import pytest

from tests.reference.cases import uniform
from tests.reference.mask_rcnn_states import random_values, tiny

torch = pytest.importorskip("torch")
from tests.reference import torch_boxes  # noqa: E402  (they need torch)
from tests.reference import torch_detection_losses as training  # noqa: E402
from tests.reference.torch_detection_losses import (  # noqa: E402
    ANCHORS,
    IGNORED,
    NEGATIVE,
    REGIONS,
    Matching,
    Sample,
    Truth,
)
from tests.reference.torch_vit_adapter import tensors  # noqa: E402

pytestmark = pytest.mark.peer

SIZES = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]  # of a canvas of 64 x 96
NOTHING = torch.zeros(0, dtype=torch.long)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def truth(boxes=(), labels=(), pad_shape=(64, 96)):
    boxes = double(boxes).reshape(-1, 4)
    bitmaps = torch.zeros(len(boxes), *pad_shape)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.round().long().tolist(), strict=True):
        bitmap[y1:y2, x1:x2] = 1
    return Truth(boxes, torch.tensor(labels, dtype=torch.long), bitmaps, pad_shape)


def answers(images: int):
    """Of an RPN: all logits zero, all deltas zero."""
    logits = [torch.zeros(images, *size, 3, dtype=torch.float64) for size in SIZES]
    return logits, [torch.zeros(*x.shape, 4, dtype=torch.float64) for x in logits]


def head():
    """A state, and a pyramid for two images of 64 x 96."""
    fpn = [torch.from_numpy(uniform(f"fpn {i}", (2, 8, *size))) for i, size in enumerate(SIZES)]
    return tensors(random_values(tiny(), (4, 6))), fpn


# ---- assignment


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_object_takes_all_anchors_that_tie(dtype):
    # 24 x 24 within nine squares of 32 x 32, whose corners are multiples of 4: IoU 576 / 1024 with all.
    found = training.assign_anchors(SIZES, truth([[24, 20, 48, 44]], [0]), dtype)
    chosen = torch.nonzero(found >= 0)[:, 0]
    assert len(chosen) == 9
    boxes = training.flat_anchors(SIZES, dtype)[chosen]
    assert (boxes[:, 2] - boxes[:, 0]).tolist() == [32] * 9
    assert sorted(boxes[:, :2].tolist()) == [[x, y] for x in (16, 20, 24) for y in (12, 16, 20)]
    assert len(torch.nonzero(training.assign_anchors(SIZES, truth([[23, 20, 47, 44]], [0]), dtype) >= 0)) == 6


def test_thresholds_of_the_assignment():
    # Parts of a box of 10 x 10 as its IoU.
    objects = double([[0, 0, 10, 10], [100, 0, 110, 10]])
    parts = [0.29, 0.3, 0.69, 0.7, 1.0]
    boxes = double([[0, 0, 10, 10 * part] for part in parts] + [[100, 0, 110, 4]])
    expected = [NEGATIVE, IGNORED, IGNORED, 0, 0, 1]
    assert training.assign(boxes, objects, ANCHORS).tolist() == expected
    boxes[5] = double([100, 0, 110, 2.9])
    assert training.assign(boxes, objects, ANCHORS).tolist() == [*expected[:5], NEGATIVE]
    boxes = double([[0, 0, 10, 4.9], [0, 0, 10, 5], [0, 0, 10, 6]])
    assert training.assign(boxes, objects, REGIONS).tolist() == [NEGATIVE, 0, 0]
    assert training.assign(boxes, objects[:0], REGIONS).tolist() == [NEGATIVE] * 3


def test_an_object_takes_its_best_box_even_from_a_better_match():
    # The first box overlaps more with the first object (.9), and is the best of the second (.6).
    objects = double([[0, 0, 10, 10], [0, 0, 10, 6]])
    boxes = double([[0, 0, 10, 9], [0, 0, 10, 10]])
    assert training.assign(boxes[:1], objects[:1], REGIONS).tolist() == [0]
    assert training.assign(boxes, objects, REGIONS).tolist() == [1, 0]
    # Of two objects with the same best box the later one has it.
    assert training.assign(boxes[:1], objects, REGIONS).tolist() == [1]
    assert training.assign(boxes[:1], objects.flip(0), REGIONS).tolist() == [1]
    # What ties for the highest IoU goes to the first, unless it is the best of the second.
    same = double([[0, 0, 10, 8], [0, 2, 10, 10]])
    boxes = double([[0, 1, 10, 9], [0, 0, 10, 8], [0, 2, 10, 10]])
    assert training.assign(boxes, same, Matching(0.7, 0.3, 0.3)).tolist() == [0, 0, 1]


def test_anchors_of_cells_beyond_the_padded_image_are_ignored():
    image = truth([[24, 8, 48, 30]], [0], (32, 64))
    found = training.assign_anchors(SIZES, image)
    valid = torch_boxes.valid_anchors(SIZES, (32, 64))
    assert (found[~valid] == IGNORED).all()
    assert (found[valid] >= 0).any()
    nothing = training.assign_anchors(SIZES, truth(pad_shape=(32, 64)))
    assert (nothing[valid] == NEGATIVE).all()
    assert (nothing[~valid] == IGNORED).all()


def test_objects_stand_before_the_proposals():
    image, proposals = truth([[0, 0, 10, 10], [0, 0, 10, 6]], [3, 4]), double([[50, 0, 60, 9], [0, 0, 10, 9]])
    assert training.candidates(proposals, image).tolist()[:2] == image.boxes.tolist()
    assert training.assign_regions(proposals, image).tolist() == [0, 1, NEGATIVE, 1]


# ---- losses


def test_an_image_without_objects_counts_257():
    logits, deltas = answers(1)
    sample = Sample(NOTHING, torch.arange(256), NOTHING, NOTHING)
    score, box = training.rpn_losses(logits, deltas, [truth()], [sample])
    assert float(score) == pytest.approx(256 * math.log(2) / 257, rel=1e-14)
    assert float(box) == 0


def test_rpn_losses_by_hand():
    # Of the second image one positive, a square of 32 at (16, 12), and three negatives; of the first two negatives.
    logits, deltas = answers(2)
    image = truth([[24, 20, 48, 44]], [0])
    positives = torch.nonzero(training.assign_anchors(SIZES, image) == 0)[:, 0]
    boxes = training.flat_anchors(SIZES, torch.float64)
    one = torch.tensor([i for i in positives.tolist() if boxes[i].tolist() == [16, 12, 48, 44]])
    samples = [Sample(NOTHING, torch.tensor([0, 7]), NOTHING, NOTHING)]
    samples.append(Sample(one, torch.tensor([1, 2, 3]), NOTHING, NOTHING))
    logits[0][1].view(-1)[int(one)] = 2.0
    logits[0][0].view(-1)[7] = -1.0
    score, box = training.rpn_losses(logits, deltas, [truth(), image], samples)
    count = (1 + 2) + (1 + 3)
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + 4 * math.log(2)
    assert float(score) == pytest.approx(expected / count, rel=1e-14)
    # Centres differ by 4 of 32, sides by 24 over 32.
    assert float(box) == pytest.approx((2 * 4 / 32 + 2 * math.log(32 / 24)) / count, rel=1e-14)


def test_region_losses_by_hand():
    state, fpn = head()
    for name in state:
        if name.startswith(("roi_head.bbox_head.fc", "roi_head.mask_head.conv_logits")):
            state[name].zero_()
    state["roi_head.bbox_head.fc_cls.bias"][5] = 1.0
    state["roi_head.mask_head.conv_logits.bias"][2] = 0.5
    state["roi_head.bbox_head.fc_reg.bias"].view(5, 4)[2] = double([0.5, 0, 0, 1])
    image = truth([[8, 8, 36, 36]], [2])
    proposals = double([[8, 8, 36, 36], [60, 8, 64, 20], [50, 8, 64, 20]])
    sample = Sample(NOTHING, NOTHING, torch.tensor([0, 1]), torch.tensor([3]))
    empty = Sample(NOTHING, NOTHING, NOTHING, torch.tensor([2]))
    sampled = [
        training.regions(proposals, image, sample, 5),
        training.regions(proposals, truth(), empty, 5),
    ]
    assert sampled[0].labels.tolist() == [2, 2, 5]
    assert sampled[1].rois.tolist() == [[50, 8, 64, 20]]
    found = training.region_losses(state, fpn, [image, truth()], sampled)
    total = math.log(5 + math.e)
    assert float(found[0]) == pytest.approx((4 * total - 2) / 4, rel=1e-13)
    assert float(found[1]) == pytest.approx(2 * 1.5 / 4, rel=1e-13)  # two positives of four regions
    assert float(found[2]) == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-13)  # the mask is all of the box
    # No positive in any image: nothing for boxes and masks.
    found = training.region_losses(state, fpn, [truth(), truth()], [sampled[1], sampled[1]])
    assert [float(x) for x in found[1:]] == [0, 0]
    assert float(found[0]) == pytest.approx(total - 1, rel=1e-13)


def test_masks_have_one_mean_over_the_positives_of_all_images():
    state, fpn = head()
    image, other = truth([[8, 8, 36, 36], [40, 2, 70, 50]], [2, 1]), truth([[5, 5, 60, 40]], [4])
    take = lambda *which: Sample(NOTHING, NOTHING, torch.tensor(which), NOTHING)  # noqa: E731
    none = double([]).reshape(0, 4)
    both = [training.regions(none, image, take(0, 1), 5), training.regions(none, other, take(0), 5)]
    whole = training.region_losses(state, fpn, [image, other], both)[2]
    first = training.region_losses(state, [x[:1] for x in fpn], [image], both[:1])[2]
    second = training.region_losses(state, [x[1:] for x in fpn], [other], both[1:])[2]
    assert float(whole) == pytest.approx(float(2 * first + second) / 3, rel=1e-12)


def test_groups_are_normalised_on_their_own():
    state, fpn = head()
    logits, deltas = answers(2)
    logits = [x + torch.from_numpy(uniform("logits", x.shape)) for x in logits]
    truths = [truth([[24, 20, 48, 44]], [1]), truth([[5, 5, 60, 40], [24, 20, 48, 44]], [4, 0])]
    proposals = [double([[24, 18, 47, 44], [0, 0, 9, 9]])] * 2
    samples = []
    for i, image in enumerate(truths):
        found = training.assign_anchors(SIZES, image)
        yes, no = (torch.nonzero(x)[:, 0] for x in (found >= 0, found == NEGATIVE))
        regions = training.assign_regions(proposals[i], image)
        own = (torch.nonzero(x)[:, 0] for x in (regions >= 0, regions == NEGATIVE))
        samples.append(Sample(yes[: 3 + i], no[: 5 + 4 * i], *own))
    args = truths, samples, proposals
    whole = training.losses(state, fpn, logits, deltas, *args)
    assert float(whole["loss"]) == pytest.approx(sum(float(whole[name]) for name in training.NAMES), rel=1e-14)
    halves = []
    for i in (0, 1):
        one = [[x[i : i + 1] for x in kind] for kind in (fpn, logits, deltas)]
        halves.append(training.losses(state, *one, *(kind[i : i + 1] for kind in args)))
    grouped = training.losses(state, fpn, logits, deltas, *args, group=1)
    for name, value in grouped.items():
        assert float(value) == pytest.approx(float(halves[0][name] + halves[1][name]) / 2, rel=1e-14)
        assert float(value) != pytest.approx(float(whole[name]), rel=1e-4)
    pair = training.losses(state, fpn, logits, deltas, *args, group=2)
    assert all(float(pair[name]) == float(whole[name]) for name in whole)
