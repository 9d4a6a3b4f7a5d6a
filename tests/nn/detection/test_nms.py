"""Suppression against loops over one box at a time, in which nothing is moved apart, with ties and empty boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.detection.nms import best_of_classes, suppress
from tests.quick import jit


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def greedy(boxes, order, threshold):
    """Indices that are left, in the order in which they are looked at."""
    kept = []
    for i in order:
        if all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def crowd(seed, *shape, span=60, side=30):
    """Boxes on whole pixels, which overlap a lot; some are empty, some the same."""
    rng = np.random.default_rng(seed)
    corner, sides = rng.integers(0, span, (*shape, 2)), rng.integers(0, side, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_the_same_as_one_at_a_time(threshold):
    boxes, valid = crowd(0, 3, 120), np.random.default_rng(1).random((3, 120)) < 0.9
    found = jit(lambda boxes, valid: suppress(boxes, valid, threshold))(boxes, valid)
    for image in range(3):
        left = greedy(boxes[image], np.flatnonzero(valid[image]), threshold)
        assert np.flatnonzero(found[image]).tolist() == left
        assert 5 < len(left) < valid[image].sum()


def test_a_chain_in_which_each_would_suppress_the_next():
    """As many rounds as boxes: every other one is left."""
    start = 6.0 * np.arange(50)
    boxes = np.stack([start, 0 * start, start + 20, 0 * start + 10], axis=-1).astype(np.float32)
    found = jit(lambda boxes: suppress(boxes, jnp.ones(50, bool), 0.5))(boxes)  # 14/26 of neighbours, 8/32 of others
    np.testing.assert_array_equal(found, np.arange(50) % 2 == 0)


def test_equal_to_the_threshold_stays_and_empty_boxes_overlap_nothing():
    boxes = jnp.asarray([[0, 0, 4, 4], [0, 0, 4, 2], [1, 1, 1, 3], [1, 1, 1, 3], [0, 0, 4, 4]], jnp.float32)
    found = suppress(boxes, jnp.ones(5, bool), 0.5)  # 1/2 of the first two
    np.testing.assert_array_equal(found, [True, True, True, True, False])
    found = suppress(boxes, jnp.asarray([False, True, True, True, True]), 0.5)
    np.testing.assert_array_equal(found, [False, True, True, True, True])


def expected_best(boxes, scores, threshold, at_least, count):
    """(region, class) of all that are left, by a loop over classes, and then sorted by score and place."""
    left = []
    for label in range(scores.shape[1]):
        places = [r for r in range(len(scores)) if scores[r, label] > at_least]
        places.sort(key=lambda r: -scores[r, label])  # Python's sort is stable
        left += [(r, label) for r in greedy(boxes[:, label], places, threshold)]
    return sorted(left, key=lambda pair: (-scores[pair], pair))[:count]


@pytest.mark.parametrize("count", [20, 150])
def test_best_of_classes_against_loops(count):
    rng = np.random.default_rng(2)
    boxes = crowd(3, 2, 40, 5)
    scores = (rng.integers(0, 20, (2, 40, 5)) / 20).astype(np.float32)  # a lot of ties
    found = jit(lambda boxes, scores: best_of_classes(boxes, scores, 0.5, 0.05, count))(boxes, scores)
    for image in range(2):
        region, label, score = (np.asarray(part[image]) for part in found)
        expected = expected_best(boxes[image], scores[image], 0.5, 0.05, count)
        number = len(expected)
        assert number == min(count, number) > 15
        assert list(zip(region[:number].tolist(), label[:number].tolist(), strict=True)) == expected
        np.testing.assert_array_equal(score[:number], [scores[image][pair] for pair in expected])
        assert np.isneginf(score[number:]).all()
        assert not region[number:].any()
        assert not label[number:].any()


def test_classes_do_not_suppress_each_other_far_from_the_origin():
    """The same two boxes in all classes; moved away from each other by class in float32, they would overlap less."""
    box = np.asarray([[1300.0, 700.0, 1300.01, 700.01], [1300.0, 700.0, 1300.01, 700.012]], np.float32)
    boxes = np.broadcast_to(box[None, :, None], (1, 2, 80, 4))
    scores = np.broadcast_to(np.asarray([0.9, 0.8], np.float32)[None, :, None], (1, 2, 80))
    region, label, _ = best_of_classes(jnp.asarray(boxes), jnp.asarray(scores), 0.5, 0.05, 100)
    np.testing.assert_array_equal(label[0, :80], np.arange(80))
    assert not region.any()


def test_all_pairs_may_be_candidates():
    """19 classes above the threshold in each region, and nothing that overlaps: the best are taken of them all."""
    with jax.enable_x64(True):
        corner = 10.0 * np.arange(30)
        boxes = np.stack([corner, corner, corner + 5, corner + 5], axis=-1)[None, :, None].repeat(19, axis=2)
        scores = 0.051 + 1e-5 * np.random.default_rng(0).permutation(30 * 19).reshape(1, 30, 19)
        region, label, score = best_of_classes(jnp.asarray(boxes), jnp.asarray(scores), 0.5, 0.05, 100)
        flat = np.argsort(-scores.ravel())[:100]
        np.testing.assert_array_equal(region[0] * 19 + label[0], flat)
        np.testing.assert_array_equal(score[0], scores.ravel()[flat])
