"""Colours of classes that can be told apart, and what charts and tables of their scores hold."""

import csv
import io

import numpy as np
import pytest

from lape_jax.analysis import plots
from lape_jax.errors import UserError
from lape_jax.tasks import classes

CLASSES = ("sky", "sea", "sand, wet", "ship")


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
    colours = classes.palette(count)
    assert (colours.dtype, colours.shape) == (np.uint8, (count, 3))
    assert least_distance(cielab([[0, 0, 0], [255, 255, 255], *colours])) > least


def test_the_first_colours_are_told_apart_by_the_colour_blind():
    """Of the plane that is left to people without the cones for green: its blues and yellows, and lightness.

    Their confusion lines by Viénot, Brettel and Mollon 1999, another simulation than the palette's.
    """
    values = (classes.palette(8) / 255) ** 2.2
    rgb_to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    seen = values @ (np.linalg.inv(rgb_to_lms) @ blind @ rgb_to_lms).T
    shown = 255 * np.clip(seen, 0, 1) ** (1 / 2.2)
    assert least_distance(cielab(shown)) > 24  # random ones: 8 on average


def test_a_shorter_palette_is_the_beginning_of_a_longer_one():
    np.testing.assert_array_equal(classes.palette(5), classes.palette(40)[:5])
    assert classes.palette(0).shape == (0, 3)


def test_as_many_colours_as_there_are():
    assert len(np.unique(classes.palette(600), axis=0)) == 600
    with pytest.raises(UserError, match=r"no colours for 5,832 classes: use at most 5,\d{3}"):
        classes.palette(18**3)


def test_chart():
    (ax,) = classes.chart(CLASSES, np.array([50.0, np.nan, 0.0, 100.0]), "IoU", "run").axes
    assert [bar.get_width() for bar in ax.patches] == [0, 50, 100]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["sand, wet", "sky", "ship"]
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [50.0]
    assert ax.get_xlabel() == "IoU, %"
    assert ax.figure.get_suptitle() == "run: mean 50.00 %, 3 of 4 classes occur"
    empty = classes.chart(CLASSES, np.full(4, np.nan), "IoU")
    assert empty.get_suptitle() == ""
    assert plots.render(empty, "png")


def test_table():
    text = classes.table(CLASSES, {"iou": np.array([1 / 3, np.nan, 0, 100]), "pixels": np.array([7, 0, 3, 2**40])})
    assert list(csv.reader(io.StringIO(text))) == [
        ["number", "class", "iou", "pixels"],
        ["0", "sky", "0.3333", "7"],
        ["1", "sea", "", "0"],
        ["2", "sand, wet", "0.0000", "3"],
        ["3", "ship", "100.0000", str(2**40)],
    ]
