"""Maps over images, and what figures of them hold."""

import numpy as np
import pytest

from lape_jax.analysis import plots
from lape_jax.errors import UserError
from lape_jax.tasks.classes import palette
from lape_jax.tasks.segment import overlays

CLASSES = ("sky", "sea", "sand, wet", "ship")
TRUTH = np.array([[0, 0, 1], [0, 1, -1]])
PREDICTED = np.array([[0, 3, 1], [0, 1, 0]])
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10


def test_overlay():
    colours = np.array([[255, 0, 0], [0, 101, 255]], np.uint8)
    labels = np.array([[0, 1, -1], [-2, 0, 1]])
    found = overlays.overlay(PIXELS, labels, colours, alpha=0.25)
    expected = [
        # 0.75 * (0, 10, 20) + 0.25 * (255, 0, 0): halves are rounded to even numbers
        [[64, 8, 15], [22, 55, 101], [60, 70, 80]],
        [[90, 100, 110], [154, 98, 105], [112, 145, 191]],
    ]
    np.testing.assert_array_equal(found, expected)
    grey = overlays.overlay(PIXELS[..., :1], labels, colours)
    np.testing.assert_array_equal(grey[0], [[128, 0, 0], [15, 66, 142], [60, 60, 60]])
    np.testing.assert_array_equal(
        overlays.coloured(labels, colours)[:, 1:], [[[0, 101, 255], [0] * 3], [[255, 0, 0], [0, 101, 255]]]
    )
    with pytest.raises(UserError, match="has the label 1, and there are colours for 0 to 0"):
        overlays.overlay(PIXELS, labels, colours[:1])


def test_shares():
    assert overlays.shares(TRUTH, 4) == {0: 0.6, 1: 0.4}
    assert list(overlays.shares(np.array([[3, 1], [1, 3]]), 4)) == [1, 3]
    assert overlays.shares(np.full((2, 2), -1), 4) == {}


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_comparison():
    grey = PIXELS[..., :1]
    rows = [(PIXELS, TRUTH, PREDICTED, TRUTH), (grey, TRUTH, TRUTH, TRUTH)]
    figure = overlays.comparison(rows, CLASSES, ("default", "lape"), ("a.jpg",))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["image", "truth", "default", "lape", *[""] * 4]
    shown = [ax.get_images()[0].get_array() for ax in figure.axes]
    colours = palette(4)
    np.testing.assert_array_equal(shown[0], PIXELS)
    np.testing.assert_array_equal(shown[2], colours[PREDICTED])
    np.testing.assert_array_equal(shown[1][1, 2], [0, 0, 0])
    np.testing.assert_array_equal(shown[4], np.repeat(grey, 3, axis=2))
    assert [figure.axes[0].get_ylabel(), figure.axes[4].get_ylabel()] == ["a.jpg", ""]
    # 0 has most pixels in all maps, 2 none at all
    (legend,) = figure.legends
    assert texts(legend) == ["sky", "sea", "ship", "(no label)"]
    faces = [np.rint(255 * np.array(patch.get_facecolor()[:3])).tolist() for patch in legend.get_patches()]
    assert faces == [*colours[[0, 1, 3]].tolist(), [0, 0, 0]]
    assert plots.render(figure, "png")[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="no images"):
        overlays.comparison([], CLASSES)


def test_legend():
    figure = overlays.legend([3, 2, -1], CLASSES)
    assert texts(figure.legends[0]) == ["ship", "sand, wet", "(no label)"]
    assert plots.render(figure, "png") == plots.render(overlays.legend([3, 2, -1], CLASSES), "png")
