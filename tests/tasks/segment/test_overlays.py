"""Colours that can be told apart, maps over images, and what figures and tables of them hold."""

import csv
import io

import numpy as np
import pytest

from lape_jax.analysis import plots
from lape_jax.errors import UserError
from lape_jax.tasks.segment import overlays

CLASSES = ("sky", "sea", "sand, wet", "ship")
TRUTH = np.array([[0, 0, 1], [0, 1, -1]])
PREDICTED = np.array([[0, 3, 1], [0, 1, 0]])
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10


def cielab(colours):
    """CIE 1976 L*a*b* of sRGB colours under D65: another measure of distance than the one they are chosen by."""
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x = linear @ np.transpose(matrix) / [0.9505, 1.0, 1.089]
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def least_distance(points):
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    return distances[~np.eye(len(points), dtype=bool)].min()


@pytest.mark.parametrize(("count", "least"), [(8, 48), (12, 43), (21, 20), (150, 5.5)])
def test_colours_are_far_from_each_other_and_from_black_and_white(count, least):
    """2.3 is a difference that can just be noticed; random colours come as close as 20, 13, 8 and 1.8 on average."""
    colours = overlays.palette(count)
    assert (colours.dtype, colours.shape) == (np.uint8, (count, 3))
    assert least_distance(cielab([[0, 0, 0], [255, 255, 255], *colours])) > least


def test_the_first_colours_are_told_apart_by_the_colour_blind():
    """Of the plane that is left to people without the cones for green: its blues and yellows, and lightness.

    Their confusion lines by Viénot, Brettel and Mollon 1999, another simulation than the palette's.
    """
    values = (overlays.palette(8) / 255) ** 2.2
    rgb_to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    seen = values @ (np.linalg.inv(rgb_to_lms) @ blind @ rgb_to_lms).T
    shown = 255 * np.clip(seen, 0, 1) ** (1 / 2.2)
    assert least_distance(cielab(shown)) > 24  # random ones: 8 on average


def test_a_shorter_palette_is_the_beginning_of_a_longer_one():
    np.testing.assert_array_equal(overlays.palette(5), overlays.palette(40)[:5])
    assert overlays.palette(0).shape == (0, 3)


def test_as_many_colours_as_there_are():
    assert len(np.unique(overlays.palette(600), axis=0)) == 600
    with pytest.raises(UserError, match=r"no colours for 5,832 classes: use at most 5,\d{3}"):
        overlays.palette(18**3)


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
    colours = overlays.palette(4)
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


def test_iou_chart():
    (ax,) = overlays.iou_chart(CLASSES, np.array([50.0, np.nan, 0.0, 100.0]), "run").axes
    assert [bar.get_width() for bar in ax.patches] == [0, 50, 100]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["sand, wet", "sky", "ship"]
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [50.0]
    assert ax.figure.get_suptitle() == "run: mean 50.00 %, 3 of 4 classes occur"
    empty = overlays.iou_chart(CLASSES, np.full(4, np.nan))
    assert empty.get_suptitle() == ""
    assert plots.render(empty, "png")


def test_class_table():
    text = overlays.class_table(
        CLASSES, {"iou": np.array([1 / 3, np.nan, 0, 100]), "pixels": np.array([7, 0, 3, 2**40])}
    )
    assert list(csv.reader(io.StringIO(text))) == [
        ["number", "class", "iou", "pixels"],
        ["0", "sky", "0.3333", "7"],
        ["1", "sea", "", "0"],
        ["2", "sand, wet", "0.0000", "3"],
        ["3", "ship", "100.0000", str(2**40)],
    ]
