"""Compact masks: what of a bitmap survives, and the targets against RoIAlign written as loops."""

import functools

import jax
import numpy as np
import pytest

from lape_jax.tasks.detect import masks
from tests.quick import jit

SIZE = (96, 160)  # of an image with its padding


def drawn(height, width, box, seed=0):
    """A bitmap with random pixels inside of a box, or up to one pixel beyond."""
    x1, y1, x2, y2 = np.add(box, [-1, -1, 1, 1])
    rows, columns = np.arange(height)[:, None], np.arange(width)
    inside = (rows >= np.floor(y1)) & (rows < np.ceil(y2)) & (columns >= np.floor(x1)) & (columns < np.ceil(x2))
    return (inside & (np.random.default_rng(seed).random((height, width)) < 0.5)).astype(np.uint8)


BOXES = {
    "inside": (20.3, 10.7, 77.2, 61.5),
    "on pixels": (20, 10, 77, 61),
    "largest that is exact": (30, 20, 140, 96),
    "at the upper left": (0, 0, 12.5, 3.25),
    "at the lower right": (150.5, 90, 160, 96),
    "less than a pixel": (31.2, 50.3, 31.7, 50.9),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_small_objects_survive_whole(box):
    bitmap = drawn(*SIZE, box)
    mask = masks.compact(bitmap, np.float32(box))
    assert (mask.shape, mask.dtype, bitmap.sum() > 0) == (masks.SHAPE, np.uint8, True)
    np.testing.assert_array_equal(masks.expand(mask, np.float32(box), *SIZE), bitmap)


def test_large_objects_are_resampled_each_axis_alone():
    """A window of 16 x 6 pixels in 8 x 6 cells: cells of one row of two pixels, half of which are enough."""
    bitmap = np.zeros((10, 20), np.uint8)
    bitmap[3, 2:10] = [1, 1, 0, 1, 0, 0, 0, 0]
    box = np.float32([3, 3, 17, 7])
    mask = masks.compact(bitmap, box, side=8)
    expected = np.zeros((8, 8), np.uint8)
    expected[1, :2] = 1  # columns 2, 3 and 4, 5
    np.testing.assert_array_equal(np.unpackbits(mask, axis=1), expected)
    seen = np.zeros_like(bitmap)
    seen[3, 2:6] = 1
    np.testing.assert_array_equal(masks.expand(mask, box, 10, 20), seen)


def test_what_is_outside_of_the_window_is_lost():
    bitmap = np.ones((20, 20), np.uint8)
    box = np.float32([5, 6, 10, 12])
    seen = masks.expand(masks.compact(bitmap, box), box, 20, 20)
    expected = np.zeros((20, 20), np.uint8)
    expected[5:13, 4:11] = 1
    np.testing.assert_array_equal(seen, expected)


# ---- Targets ---------------------------------------------------------------------------------------------------------


def roi_align(bitmap, roi):
    """The mean of bilinear samples, each of four pixels."""
    height, width = bitmap.shape
    x1, y1, x2, y2 = np.clip(np.float64(roi), 0, [width, height, width, height])

    def samples(low, high, pixels):
        step = (high - low) / 28
        count = int(np.ceil(step))
        at = low - 0.5 + step * (np.arange(28)[:, None] + (np.arange(count) + 0.5) / max(count, 1))
        at = np.clip(at, 0, pixels - 1).ravel()
        before = at.astype(int)
        return before, np.minimum(before + 1, pixels - 1), at - before

    y, below, down = samples(y1, y2, height)
    x, beside, right = samples(x1, x2, width)
    if not (y.size and x.size):
        return np.zeros((28, 28))
    upper, lower = (bitmap[rows][:, x] * (1 - right) + bitmap[rows][:, beside] * right for rows in (y, below))
    values = upper * (1 - down[:, None]) + lower * down[:, None]
    return values.reshape(28, y.size // 28, 28, x.size // 28).mean(axis=(1, 3))


OBJECTS = np.float32([(20.3, 10.7, 77.2, 61.5), (0, 0, 160, 96), (100, 50, 160, 96), (31.2, 50.3, 31.7, 50.9)])
ROIS = np.float32(
    [
        [20.3, 10.7, 77.2, 61.5],
        [11.1, 20.2, 70.4, 70.9],
        [-300, -200, 400.5, 300.7],  # beyond all borders, where it is cut
        [3.3, 5.1, 150.2, 95.9],
        [97.7, 47.1, 160, 96],  # at the lower right
        [30.9, 50.1, 32, 51.2],
        [31.2, 50.3, 31.7, 50.9],  # one sample for each pixel of the target
        [80, 70, 90, 80],  # where the object is not
        [40, 40, 40, 60],  # without a width
    ]
)
OWN = np.int32([0, 0, 1, 1, 2, 3, 3, 0, 0])


@functools.cache
def objects():
    """Bitmaps that their masks stand for, and the masks."""
    blobs = [np.kron(drawn(12, 20, (0, 0, 20, 12), seed), np.ones((8, 8), np.uint8)) for seed in range(len(OBJECTS))]
    found = np.stack([masks.compact(blob, box) for blob, box in zip(blobs, OBJECTS, strict=True)])
    seen = [masks.expand(mask, box, *SIZE) for mask, box in zip(found, OBJECTS, strict=True)]
    return seen, found


def test_targets_are_those_of_the_bitmap():
    seen, found = objects()
    with jax.enable_x64(True):
        targets = jit(functools.partial(masks.targets, canvas=(256, 256)))
        given = targets(found, OBJECTS, ROIS.astype(np.float64), OWN, np.int32(SIZE))
    assert given.dtype == bool
    share = []
    for roi, own, target in zip(ROIS, OWN, given, strict=True):
        exact = roi_align(seen[own], roi)
        clear = np.abs(exact - 0.5) > 1e-9
        np.testing.assert_array_equal(np.asarray(target)[clear], exact[clear] >= 0.5)
        share.append(np.mean(target))
    assert 0.2 < np.mean(share[:5]) < 0.8
    assert share[-2:] == [0, 0]


in_float32 = jit(functools.partial(masks.targets, canvas=SIZE))


def test_targets_in_float32():
    seen, found = objects()
    given = in_float32(found, OBJECTS, ROIS, OWN, np.int32(SIZE))
    for roi, own, target in zip(ROIS, OWN, given, strict=True):
        exact = roi_align(seen[own], roi)
        clear = np.abs(exact - 0.5) > 1e-4
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(np.asarray(target)[clear], exact[clear] >= 0.5)


def test_nothing_lies_in_an_empty_mask():
    empty = np.zeros((len(OBJECTS), *masks.SHAPE), np.uint8)
    assert not in_float32(empty, OBJECTS, ROIS, OWN, np.int32(SIZE)).any()
