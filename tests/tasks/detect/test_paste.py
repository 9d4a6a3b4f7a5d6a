"""Masks on their images: by hand, against a loop over pixels, and for boxes of every kind."""

import math

import numpy as np
import pytest

from lape_jax.tasks.detect.paste import paste

SIDE, HEIGHT, WIDTH = 28, 24, 40
BOXES = {
    "usual": (5.3, 4.1, 30.2, 18.8),
    "whole": (0, 0, 40, 24),
    "beyond the borders": (-10.2, -5.5, 52.1, 30.3),
    "less than a pixel": (10.2, 7.3, 10.7, 7.9),
    "flat": (3.0, 9.45, 37.0, 9.6),
    "outside": (-20, -20, -5, -5),
    "on the other side": (60, 30, 80, 50),
}


def by_hand(mask, box, height, width):
    x1, y1, x2, y2 = box
    found = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        v, u = (y + 0.5 - y1) / (y2 - y1) * len(mask) - 0.5, (x + 0.5 - x1) / (x2 - x1) * len(mask) - 0.5
        for row in (math.floor(v), math.floor(v) + 1):
            for column in (math.floor(u), math.floor(u) + 1):
                if 0 <= row < len(mask) and 0 <= column < len(mask):
                    found[y, x] += (1 - abs(v - row)) * (1 - abs(u - column)) * mask[row, column]
    return found


@pytest.mark.parametrize("name", BOXES)
def test_against_a_loop(name):
    mask = np.random.default_rng(0).random((SIDE, SIDE)) ** 0.3
    value = by_hand(mask, BOXES[name], HEIGHT, WIDTH)
    assert np.abs(value - 0.5).min() > 1e-5
    box = np.asarray(BOXES[name], np.float64)
    found = paste(mask, box, HEIGHT, WIDTH)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, value >= 0.5)
    assert found.any() == ("side" not in name)


def test_a_full_mask_is_its_box():
    """Pixels whose centre is in the box: at its border the mask has faded to 1/2."""
    found = paste(np.ones((4, 4)), np.asarray([3.5, 2.0, 7.5, 4.4]), 8, 10)
    expected = np.zeros((8, 10))
    expected[2:4, 3:8] = 1
    np.testing.assert_array_equal(found, expected)


def test_equal_to_one_half_is_inside():
    np.testing.assert_array_equal(paste(np.full((2, 2), 0.5), np.asarray([0.0, 0, 2, 2]), 2, 2), [[1, 1], [1, 1]])
    assert not paste(np.full((2, 2), 0.499), np.asarray([0.0, 0, 2, 2]), 2, 2).any()


def test_boxes_without_a_side():
    found = paste(np.ones((SIDE, SIDE)), np.asarray([10, 4, 10, 12], np.float32), HEIGHT, WIDTH)
    assert found[5:11, 9:11].all()
    assert found.sum() <= 3 * 8
    assert not paste(np.zeros((SIDE, SIDE)), np.zeros(4, np.float32), HEIGHT, WIDTH).any()
