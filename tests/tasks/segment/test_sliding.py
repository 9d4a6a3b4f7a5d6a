"""Windows and their weights, against sums worked out by hand and against the long way round: pixel by pixel."""

import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.tasks.segment import sliding


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (512, [0]),
        (513, [0, 1]),
        (683, [0, 171]),
        (992, [0, 480]),
        (993, [0, 480, 481]),
        (2048, [0, 480, 960, 1440, 1536]),
    ],
)
def test_anchors_of_mmsegmentation(length, expected):
    assert sliding.anchors(length, 512, 480) == expected


def test_anchors_side_by_side():
    assert sliding.anchors(1024, 512, 512) == [0, 512]
    assert sliding.anchors(1100, 512, 512) == [0, 512, 588]


@pytest.mark.parametrize("stride", [0, 513, -1])
def test_gaps_are_a_user_error(stride):
    with pytest.raises(UserError, match=rf"windows of 512 pixels that begin every {stride} leave gaps: use a stride"):
        sliding.anchors(1024, 512, stride)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(32, [0]), (416, [0]), (512, [0]), (704, [0, 192]), (2048, [0, 341, 682, 1023, 1364, 1536])],
)
def test_anchors_of_vit_adapter(length, expected):
    """In MMSegmentation an axis that is shorter than a window is a window as it is."""
    assert sliding.anchors(length, 512, 341) == expected


def test_a_short_axis_is_a_window_of_its_own():
    canvas = np.arange(3 * 6 * 1, dtype=np.uint8).reshape(3, 6, 1)
    assert [window[..., 0].shape for window in sliding.windows(canvas, 4, 3)] == [(3, 4), (3, 4)]
    np.testing.assert_allclose(sliding.weights(3, 6, 16, 12, 3), [sliding.resized(sliding.resized(np.eye(3), 6), 3)])


def test_windows_go_row_by_row():
    canvas = np.arange(5 * 6 * 1, dtype=np.uint8).reshape(5, 6, 1)
    found = sliding.windows(canvas, 4, 3)
    assert [int(window[0, 0, 0]) for window in found] == [0, 2, 6, 8]
    np.testing.assert_array_equal(found[3], canvas[1:5, 2:6])


def test_interpolation_by_hand():
    """Centres at -1/4, 1/4, 3/4, 5/4 of two entries; and at 1/2 and 5/2 of four, so two of them are never seen."""
    np.testing.assert_allclose(sliding.resized(np.array([1.0, 5.0]), 4), [1, 2, 4, 5])
    np.testing.assert_allclose(sliding.resized(np.array([1.0, 5.0, 2.0, 4.0]), 2), [3, 3])
    np.testing.assert_allclose(sliding.resized(np.array([1.0, 5.0, 2.0, 4.0, 8.0, 0.0]), 2), [5, 8])


@pytest.mark.peer
@pytest.mark.parametrize(("old", "new"), [(4, 16), (32, 20), (7, 7), (5, 13), (40, 3), (1, 6)])
def test_interpolation_is_pytorchs(old, new):
    torch = pytest.importorskip("torch")
    lines = np.random.default_rng(0).standard_normal((old, 3))
    image = torch.from_numpy(lines.T[None, :, :, None].copy())
    expected = torch.nn.functional.interpolate(image, (new, 1), mode="bilinear", align_corners=False)[0, :, :, 0].T
    np.testing.assert_allclose(sliding.resized(lines, new), expected, rtol=0, atol=1e-12)


def line(entries, size):
    """Bilinear interpolation of one line, entry by entry."""
    found = []
    for index in range(size):
        position = min(max((index + 0.5) * len(entries) / size - 0.5, 0), len(entries) - 1)
        lower = int(position)
        upper = min(lower + 1, len(entries) - 1)
        found.append(entries[lower] + (position - lower) * (entries[upper] - entries[lower]))
    return np.array(found)


@pytest.mark.parametrize(
    ("length", "canvas", "stride"),
    [(31, 21, 12), (31, 16, 12), (9, 23, 16), (40, 50, 11), (5, 37, 3)],
)
def test_weights_are_the_three_steps_in_one(length, canvas, stride):
    """Upsample four patches to a window of 16, average over the windows, resize: along one axis."""
    weights = sliding.weights(length, canvas, 16, stride, 4)
    starts = sliding.anchors(canvas, 16, stride)
    assert weights.shape == (len(starts), length, 4)
    maps = np.random.default_rng(length).standard_normal((len(starts), 4))
    total, windows = np.zeros(canvas), np.zeros(canvas)
    for start, patches in zip(starts, maps, strict=True):
        total[start : start + 16] += line(patches, 16)
        windows[start : start + 16] += 1
    expected = line(total / windows, length)
    np.testing.assert_allclose(np.einsum("alp,ap->l", weights, maps), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=(0, 2)), 1, rtol=1e-6)
