"""Which object a box is to find: against loops, and where ties, paddings and emptiness decide."""

import jax
import numpy as np
import pytest

from lape_jax.nn.detection import anchors
from lape_jax.tasks.detect import assign
from lape_jax.tasks.detect.assign import ANCHORS, BACKGROUND, IGNORED, ROIS
from tests.quick import jit

jitted = jit(assign.assign, static_argnames="limits")
CANVAS = (128, 192)


def all_anchors(height=CANVAS[0], width=CANVAS[1]):
    shapes = zip(anchors.sizes(height, width), anchors.STRIDES, strict=True)
    return np.concatenate([anchors.anchors(*size, stride).reshape(-1, 4) for size, stride in shapes])


def slowly(candidates, boxes, limits):
    """The rule, candidate by candidate and object by object, in float32 as written."""
    found = np.full(len(candidates), BACKGROUND)
    if not len(boxes):
        return found
    x1, y1, x2, y2 = (np.float32(candidates)[:, None, i] for i in range(4))
    u1, v1, u2, v2 = (np.float32(boxes)[None, :, i] for i in range(4))
    shared = np.maximum(np.minimum(x2, u2) - np.maximum(x1, u1), 0) * np.maximum(
        np.minimum(y2, v2) - np.maximum(y1, v1), 0
    )
    overlaps = shared / np.maximum((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared, np.float32(1e-6))
    for i, row in enumerate(overlaps):
        if row.max() >= limits.positive:
            found[i] = row.argmax()
        elif row.max() >= limits.negative:
            found[i] = IGNORED
    for j, column in enumerate(overlaps.T):
        if column.max() >= limits.least:
            found[column == column.max()] = j
    return found


def whole_boxes(rng, count, most=64):
    """On whole pixels and of whole areas, so that float32 is exact, and equal is equal, in any order of rounding."""
    first = rng.integers(0, 100, (count, 2))
    return np.concatenate([first, first + rng.integers(1, most, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("limits", [ANCHORS, ROIS], ids=["anchors", "rois"])
def test_as_the_loops_say(limits):
    rng = np.random.default_rng(0)
    candidates, boxes = whole_boxes(rng, 500), whole_boxes(rng, 12)
    candidates[:40] = np.repeat(boxes[:10], 4, axis=0) + rng.integers(-2, 3, (40, 4))
    usable, valid = rng.random(500) < 0.8, rng.random(12) < 0.8
    found = np.asarray(jitted(candidates, usable, boxes, valid, limits=limits))
    numbers = np.flatnonzero(valid)
    expected = slowly(candidates[usable], boxes[valid], limits)
    expected[expected >= 0] = numbers[expected[expected >= 0]]
    np.testing.assert_array_equal(found[usable], expected)
    assert (found[~usable] == IGNORED).all()
    assert set(found[usable]) >= {*numbers[:6], BACKGROUND}


def on_canvas(*boxes, limits=ANCHORS):
    every, valid = all_anchors(), np.ones(len(boxes), bool)
    found = jitted(every, np.ones(len(every), bool), np.float32(boxes).reshape(-1, 4), valid, limits=limits)
    return np.asarray(found)


def test_all_anchors_that_tie_get_the_object():
    """24 x 24 pixels lie in nine anchors of 32 x 32, at distances of 4: their IoU, 9/16, is below 0.7."""
    found = on_canvas((24, 24, 48, 48))
    chosen = all_anchors()[found == 0]
    assert sorted(chosen[:, :2].tolist()) == [[x, y] for x in (16, 20, 24) for y in (16, 20, 24)]
    assert (chosen[:, 2:] - chosen[:, :2] == 32).all()


def test_of_two_objects_that_tie_the_later_one_gets_the_anchors():
    """Of step 2; in step 1 it is the first one."""
    assert (on_canvas((24, 24, 48, 48), (24, 24, 48, 48)) == 1).sum() == 9
    every = np.float32([[0, 0, 10, 10], [0, 0, 10, 9]])
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 10]])
    found = jitted(every, np.ones(2, bool), boxes, np.ones(2, bool), limits=ROIS)
    assert found.tolist() == [1, 0]


def test_the_best_box_of_an_object_is_taken_from_one_that_it_overlaps_more_with():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 6]])
    candidates = np.float32([[0, 0, 10, 9]])  # IoU 0.9 and 2/3
    found = jitted(candidates, np.ones(1, bool), boxes, np.ones(2, bool), limits=ROIS)
    assert found.tolist() == [1]


@pytest.mark.parametrize(
    "box",
    [(50.001, 50.001, 50.002, 50.002), (60, 60, 60, 60), (-500, -500, -400, -400), (50, 50, 90, 50)],
    ids=["tiny", "a point", "outside", "a line"],
)
def test_what_hardly_overlaps_gets_no_anchor(box):
    assert (on_canvas(box) == BACKGROUND).all()


def test_a_huge_object_gets_the_largest_anchors_that_overlap_enough():
    chosen = all_anchors()[on_canvas((0, 0, 192, 128)) == 0]
    areas = (chosen[:, 2:] - chosen[:, :2]).prod(axis=1)
    np.testing.assert_allclose(areas, 128**2, rtol=1e-6)  # two thirds of it; those of 256 x 256 reach beyond
    assert areas.size > 0
    assert (on_canvas((-1e4, -1e4, 1e4, 1e4)) == BACKGROUND).all()


@pytest.mark.parametrize("places", [0, 3])
def test_without_objects_all_is_background(places):
    every = all_anchors(64, 64)
    usable = np.arange(len(every)) % 2 == 0
    found = jitted(every, usable, np.zeros((places, 4), np.float32), np.zeros(places, bool), limits=ANCHORS)
    np.testing.assert_array_equal(found, np.where(usable, BACKGROUND, IGNORED))


def test_every_object_finds_its_best_anchor_whatever_the_rounding():
    """With boxes of any float32: the IoU that is the largest is equal to the largest, also in a compiled program."""
    rng = np.random.default_rng(1)
    centres, sides = rng.uniform(0, 128, (2, 40, 2)), rng.uniform(20, 60, (2, 40, 2))
    boxes = np.float32(np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1))
    every = all_anchors(128, 128)
    usable, valid = np.ones((2, len(every)), bool), np.ones((2, 40), bool)
    batched = jax.vmap(lambda *given: assign.assign(*given, ANCHORS), (None, 0, 0, 0))
    for compiled in (jax.jit(batched), jit(batched)):
        best = np.asarray(compiled(every, usable, boxes, valid))
        for found, objects in zip(best, boxes, strict=True):
            expected = slowly(every, objects, ANCHORS)
            assert set(found) == set(expected)
            assert np.mean(found == expected) > 0.998  # ties may be rounded apart


# ---- Candidates and cells --------------------------------------------------------------------------------------------


def test_objects_are_candidates_that_find_themselves():
    boxes = np.float32([[0, 0, 10, 10], [7, 7, 9, 9], [0, 0, 10, 10]])
    proposals = np.float32([[0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 0, 0]])
    candidates, found = jit(assign.with_objects)(
        proposals, np.array([True, True, False]), boxes, np.array([True, False, True])
    )
    np.testing.assert_array_equal(candidates, np.concatenate([boxes, proposals]))
    assert found.tolist() == [0, IGNORED, 2, 2, BACKGROUND, IGNORED]


def test_cells_of_the_padded_image_count():
    """33 x 64 pixels are padded to 64 x 64."""
    grids = [(*size, 3) for size in anchors.sizes(*CANVAS)]
    cells = jit(jax.vmap(lambda size: assign.valid_anchors(grids, anchors.STRIDES, size)))
    valid, every = np.asarray(cells(np.int32([[33, 64], CANVAS])))
    assert every.all()
    ends = np.cumsum([rows * columns * 3 for rows, columns, _ in grids])
    for level, stride, grid in zip(np.split(valid, ends[:-1]), anchors.STRIDES, grids, strict=True):
        level = level.reshape(grid)
        assert level[: 64 // stride, : 64 // stride].all()
        assert level.sum() == 3 * (64 // stride) ** 2


def test_half_a_cell_counts():
    """A side of 96 pixels has one and a half cells of 64: two, as it has two pixels on the last map."""
    valid = jit(lambda size: assign.valid_anchors([(2, 2, 1)], [64], size))(np.int32([96, 64]))
    assert valid.tolist() == [True, False, True, False]
