"""The detection cases themselves: no answer hangs on a rounding, and everything that can happen does."""

import itertools
import pathlib

import numpy as np
import pytest

from tests.reference.mask_rcnn_cases import CASES, REGIONS, golden, stored

torch = pytest.importorskip("torch")
from tests.reference import mask_rcnn_answers as answers  # noqa: E402  (they need torch)
from tests.reference import torch_boxes, torch_detection_losses, torch_mask_rcnn, torch_roi_align  # noqa: E402
from tests.reference.torch_detection_losses import IGNORED, NEGATIVE  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.slow]

NEAR = 1e-8
GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "golden" / "mask_rcnn.npz"
IDLE = ("backbone.up.bias", "backbone.spm.fc1.bias")  # before a BatchNorm: their gradients are rounding


def clear(values, limit: float) -> bool:
    return bool(((values - limit).abs() > NEAR).all())


def watching(function, calls: list):
    """The function, which notes its arguments and what it gave."""

    def call(*args, **options):
        found = function(*args, **options)
        calls.append((args, found))
        return found

    return call


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def watched(request):
    """A case, its answer, and the arguments and results of all calls of what decides."""
    seen: dict[str, list] = {}
    patch = pytest.MonkeyPatch()
    for module, name in itertools.product(
        (torch_boxes, torch_roi_align, torch_mask_rcnn, torch_detection_losses),
        ("nms", "choose", "assign", "level_of", "roi_align", "paste", "proposals"),
    ):
        if hasattr(module, name):
            patch.setattr(module, name, watching(getattr(module, name), seen.setdefault(name, [])))
    patch.setattr(answers, "paste", torch_roi_align.paste)
    found = answers.answer(request.param)
    patch.undo()
    return request.param, found, seen


def test_goldens_are_these_answers(watched):
    case, found, _ = watched
    expected, found = golden(GOLDEN, case.name), stored(found)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if not name.endswith(IDLE):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-10 * np.abs(value).max(initial=1e-6))


def test_nms_is_clear(watched):
    _, _, seen = watched
    for (boxes, scores, threshold), kept in seen["nms"]:
        order = scores.argsort(descending=True)
        same = (boxes[order][1:] == boxes[order][:-1]).all(dim=1)  # the whole image, from two levels: equal in all
        assert ((scores[order].diff() < -1e-10) | same).all()
        assert clear(torch_boxes.iou(boxes, boxes), threshold)
        assert len(kept) > 0
    assert any(len(kept) < len(args[1]) for args, kept in seen["nms"])


def test_best_anchors_are_clear(watched):
    case, _, seen = watched
    # Boxes of different levels do not take each other: else there would be fewer.
    assert any(len(torch_boxes.nms(*found, 0.7)) < len(found[0]) for _, found in seen["proposals"])
    for (logits, _, image, _, limits), (boxes, scores) in seen["proposals"]:
        for level in logits:
            score = level[image].flatten().sigmoid().sort(descending=True).values[: limits.pre_nms + 1]
            assert (-score.diff()).min() > 1e-10
        assert len(boxes) == case.proposals  # there are more
        assert (-scores.diff()).min() > 1e-10


def test_detections_are_clear(watched):
    _, found, seen = watched
    for (_, logits, _, _, limits, _), (boxes, scores, _) in seen["choose"]:
        every = torch.softmax(logits, dim=-1)[:, :-1]
        assert clear(every, limits.score)
        assert (every <= limits.score).any()
        assert ((every > limits.score).sum(dim=1) > 1).any()  # a region of several classes
        assert len(boxes) == limits.detections
        assert (-scores.diff()).min() > 1e-10
    for i in (0, 1):
        assert len(np.unique(found[f"labels {i}"])) >= 3


def test_assignments_are_clear(watched):
    case, found, seen = watched
    for (boxes, objects, matching), _ in seen["assign"]:
        if len(objects):
            overlaps = torch_boxes.iou(boxes, objects)
            assert clear(overlaps, matching.positive)
            assert clear(overlaps, matching.negative)
            for j, column in enumerate(overlaps.T):
                close = (column > column.max() - NEAR).nonzero()[:, 0]
                ties = column[close] == column.max()
                assert len(close) == 1 or bool((objects[j] == objects[j].round()).all() & ties.all())
    assert {NEGATIVE, IGNORED, 0, 1} <= set(found["train anchor objects 0"])
    assert (found["train anchor objects 1"] == IGNORED).any() == (case.name == "default-96x128")
    assert sum((found[f"train region objects {i}"] >= 0).sum() > len(case.objects[i]) for i in (0, 1)) > 0


def test_masks_are_clear(watched):
    _, found, seen = watched
    values = [value for args, value in seen["roi_align"] if args[2] == 1.0]
    targets = sum(len(found[f"train mask targets {i}"]) for i in (0, 1))
    assert len(values) == 3 * targets  # the targets, the losses, the losses by image
    assert all(clear(value, 0.5) for value in values)
    assert all(clear(value, 0.5) for _, value in seen["paste"])
    assert 0.1 < np.mean(found["train mask targets 0"]) < 0.9
    assert all(0.001 < found[f"{kind}pasted {i}"].mean() < 0.9 for i in (0, 1) for kind in ("", "scaled "))


def test_counts_of_samples_are_clear(watched):
    _, _, seen = watched
    for (_, roi, scale, out), _ in seen["roi_align"]:
        sides = (roi[2:] - roi[:2]) * scale / out
        assert clear(sides, 0) or tuple(roi.tolist()) in REGIONS
        assert (((sides - sides.round()).abs() > NEAR) | (sides == sides.round())).all()


def test_regions_are_of_all_levels(watched):
    _, found, _ = watched
    levels = torch_boxes.level_of(torch.tensor(REGIONS, dtype=torch.float64))
    assert set(levels.tolist()) == {0, 1, 2, 3}
    assert all(np.abs(found[f"box features {j}"]).max() > 0 for j in range(len(REGIONS)) if j not in (11, 12))


def test_losses_by_image_are_others(watched):
    _, found, _ = watched
    for name in torch_detection_losses.NAMES:
        assert abs(found[f"train {name}"] - found[f"train grouped {name}"]) > 1e-4
