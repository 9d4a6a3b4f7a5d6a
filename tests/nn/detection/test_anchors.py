"""Anchors and maps by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from lape_jax.nn.detection.anchors import STRIDES, anchors, sizes
from lape_jax.nn.detection.fpn import Pyramid
from lape_jax.nn.detection.rpn import Rule, propose
from tests.quick import jit


def test_anchors_by_hand():
    found = anchors(2, 3, 16)
    assert (found.shape, found.dtype) == ((2, 3, 3, 4), np.float32)
    np.testing.assert_array_equal(found[0, 0, 1], [-64, -64, 64, 64])  # centred on the corner of the image
    np.testing.assert_array_equal(found[1, 2, 1], [32 - 64, 16 - 64, 32 + 64, 16 + 64])
    wide, _, high = found[0, 0]
    np.testing.assert_allclose(wide, [-90.50967, -45.254834, 90.50967, 45.254834], rtol=1e-6)
    np.testing.assert_allclose(high, wide[[1, 0, 3, 2]], rtol=1e-6)
    assert [anchors(1, 1, stride, np.float64)[0, 0, 1, 2] for stride in STRIDES] == [16, 32, 64, 128, 256]
    assert anchors(1, 1, 4, np.float64).dtype == np.float64


def test_sizes_of_the_maps():
    assert sizes(64, 96) == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


def test_the_pyramid_by_hand():
    """With linear layers and convolutions that pass one channel through, each map is the sum of those above it."""
    maps = [10.0**i * jnp.arange(1, 1 + 4 ** (4 - i)).reshape(1, 2 ** (4 - i), -1, 1) for i in range(4)]
    params = {f"lateral_convs_{i}": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)} for i in range(4)}
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params |= {f"fpn_convs_{i}": {"kernel": centre, "bias": jnp.full(1, 0.5)} for i in range(4)}
    found = jit(Pyramid(1).apply)({"params": params}, maps)
    assert [map_.shape[1:3] for map_ in found] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    np.testing.assert_allclose(found[3][0, :, :, 0], [[1000.5, 2000.5], [3000.5, 4000.5]])
    np.testing.assert_allclose(found[2][0, 1, :, 0], [1500.5, 1600.5, 2700.5, 2800.5])
    np.testing.assert_allclose(found[0][0, 3, 9, 0], 0.5 + 58 + 130 + 300 + 2000)
    np.testing.assert_allclose(found[4][0, :, :, 0], [[1000.5]])


def proposals(logits, deltas, size, **rule):
    given = [jnp.asarray(x, jnp.float32) for x in (logits, deltas)]
    around = anchors(logits.shape[1], logits.shape[2], 4)
    rule = Rule(**{"before": 100, "threshold": 0.7, "count": 8, **rule})
    return jit(lambda logits, deltas: propose([logits], [deltas], [around], jnp.asarray([size]), rule))(*given)


def test_proposals_are_cut_dropped_and_filled_up():
    logits = np.zeros((1, 2, 2, 3))
    logits[0, 0, 0, 1], logits[0, 1, 1, 1] = 2.0, 1.0
    deltas = np.zeros((1, 2, 2, 12))
    deltas[0, 0, 0, 4:6] = 3.0  # of the second ratio, 32 wide and high: to (96, 96), outside
    found = proposals(logits, deltas, (20, 12), threshold=0.0)
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 0, 12, 20])
    np.testing.assert_allclose(found["scores"][0, 0], jax.nn.sigmoid(1.0))
    np.testing.assert_array_equal(found["valid"], [[True, *[False] * 7]])
    assert not found["boxes"][0, 1:].any()
    assert not found["scores"][0, 1:].any()


def test_of_equal_scores_the_first_comes_first():
    found = proposals(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 12)), (32, 32), before=5, threshold=0.99)
    expected = np.clip(anchors(8, 8, 4).reshape(-1, 4)[:5], 0, 32)
    np.testing.assert_allclose(found["boxes"][0, :5], expected)
    np.testing.assert_array_equal(found["valid"][0], np.arange(8) < 5)
