"""Boxes: overlap of those that have an area and those that have none, and the numbers that encode them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.detection.boxes import areas, clip, iou
from lape_jax.nn.detection.coder import decode, encode
from tests.reference.cases import uniform


def boxes(*rows):
    return jnp.asarray(rows, jnp.float32)


def test_iou_by_hand():
    a = boxes([0, 0, 4, 2], [1, 1, 1, 5], [2, 2, 2, 2])
    b = boxes([0, 0, 4, 2], [2, 1, 6, 3], [4, 0, 8, 2], [1, 1, 1, 5], [2, 2, 2, 2])
    np.testing.assert_allclose(areas(a), [8, 0, 0])
    np.testing.assert_allclose(iou(a, b), [[1, 2 / 14, 0, 0, 0], [0] * 5, [0] * 5], rtol=1e-7)
    assert np.isnan(iou(a, b, floor=0.0)[1:, 3:]).all()
    tiny = boxes([0, 0, 1e-3, 1e-4])
    np.testing.assert_allclose(iou(tiny, tiny), [[0.1]], rtol=1e-6)  # its union is a tenth of the floor
    np.testing.assert_allclose(iou(tiny, tiny, floor=0.0), [[1]], rtol=1e-6)
    assert iou(jnp.stack([a, a]), b).shape == (2, 3, 5)


def test_clip_is_by_width_and_height():
    found = clip(boxes([-3, -2, 30, 30])[None].repeat(2, axis=0), jnp.array([[10, 20], [31, 7]]))
    np.testing.assert_array_equal(found, [[[0, 0, 20, 10]], [[0, 0, 7, 30]]])


def test_deltas_by_hand():
    anchors, inside = boxes([0, 0, 10, 20]), boxes([4, 6, 9, 46])
    expected = np.array([0.15, 0.8, math.log(0.5), math.log(2)])
    np.testing.assert_allclose(encode(anchors, inside)[0], expected, rtol=1e-6)
    found = encode(anchors, inside, (0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(found[0], expected / [0.1, 0.1, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decode_is_the_inverse(stds):
    corners, sides = 50 * uniform("corners", (2, 3, 40, 2)), np.exp(uniform("sides", (2, 3, 40, 2)))
    with jax.enable_x64(True):
        anchors, there = jnp.asarray(np.concatenate([corners, corners + sides], axis=-1))
        np.testing.assert_allclose(decode(anchors, encode(anchors, there, stds), stds), there, rtol=1e-10, atol=1e-10)


def test_sides_are_limited_and_centres_are_not():
    found = decode(boxes([0, 0, 16, 16]), boxes([100, 0, 50, -50]))
    np.testing.assert_allclose(found, [[1608 - 500, 8 - 0.128, 1608 + 500, 8 + 0.128]], rtol=1e-5)
    # By standard deviation: it is the product that is limited.
    found = decode(boxes([0, 0, 16, 16]), boxes([0, 0, 20, 30]), (0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(found[0, 2] - found[0, 0], 16 * math.exp(4), rtol=1e-5)
    np.testing.assert_allclose(found[0, 3] - found[0, 1], 1000, rtol=1e-5)


def test_decoded_boxes_are_cut_at_their_image():
    deltas = jnp.zeros((2, 1, 3, 4))
    found = decode(boxes([-8, 4, 40, 40])[None, :, None], deltas, sizes=jnp.array([[32, 16], [100, 100]]))
    np.testing.assert_array_equal(found[0, 0], [[0, 4, 16, 32]] * 3)
    np.testing.assert_array_equal(found[1, 0], [[0, 4, 40, 40]] * 3)
