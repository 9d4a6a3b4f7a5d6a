"""Figures of arrays: what is drawn where, and that files can be made again byte by byte."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lape_jax.analysis import plots
from lape_jax.errors import UserError

FIXED, OWN = (0.0, 1.0), None


def panels(count, limits=FIXED):
    rng = np.random.default_rng(0)
    return [plots.Panel(rng.random((3, 4)), f"layer {i + 1}", limits, (1, 2)) for i in range(count)]


def drawn(figure):
    """Axes that show an image, by row and column of the figure; and those of colour bars."""
    shown = [ax for ax in figure.axes if ax.get_images()]
    return shown, [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]


def test_a_row_for_each_name():
    rows = {"one": panels(3), "other": panels(2)}
    shown, bars = drawn(plots.maps(rows, "title"))
    assert [ax.get_title() for ax in shown] == ["layer 1", "layer 2", "layer 3", "layer 1", "layer 2"]
    assert [ax.get_ylabel() for ax in shown] == ["one", "", "", "other", ""]
    assert len(bars) == 1
    for ax, panel in zip(shown, [*rows["one"], *rows["other"]], strict=True):
        (image,) = ax.get_images()
        np.testing.assert_array_equal(image.get_array(), panel.image)
        assert image.get_clim() == (0, 1)
        assert image.get_cmap().name == "viridis"
        assert [(x, y) for line in ax.get_lines() for x, y in line.get_xydata()] == [(2, 1)]


@pytest.mark.parametrize(("count", "lines"), [(6, [6]), (7, [4, 3]), (12, [6, 6]), (1, [1])])
def test_one_name_takes_as_many_rows_as_it_needs(count, lines):
    shown, _ = drawn(plots.maps({"": panels(count)}))
    starts = [ax.get_subplotspec().colspan.start for ax in shown]
    assert starts == [column for line in lines for column in range(line)]


def test_colour_bars():
    """One for a figure or neighbours in a row with fixed limits, and one for each map that has its own."""
    assert len(drawn(plots.maps({"a": panels(2), "b": panels(2)}))[1]) == 1
    assert len(drawn(plots.maps({"a": panels(2), "b": panels(3, OWN)}))[1]) == 4
    assert len(drawn(plots.maps({"a": panels(1, OWN) + panels(2), "b": panels(2)}))[1]) == 3
    assert len(drawn(plots.maps({"a": panels(1) + panels(1, OWN) + panels(2)}))[1]) == 3
    shown, _ = drawn(plots.maps({"a": panels(2, OWN)}))
    images = [ax.get_images()[0] for ax in shown]
    assert [image.get_clim() for image in images] == [(x.image.min(), x.image.max()) for x in panels(2)]


@pytest.mark.parametrize(
    ("low", "high", "limits", "tips"),
    [
        (0, 1, FIXED, "neither"),
        (-0.1, 1 + 1e-9, FIXED, "min"),
        (0, 2, FIXED, "max"),
        (-1, 2, FIXED, "both"),
        (-1, 2, OWN, "neither"),
    ],
)
def test_tips_of_colour_bars_say_that_values_go_on(low, high, limits, tips):
    panels = [plots.Panel(np.array([[0.5, value]]), limits=limits) for value in (low, high)]
    figure = plots.maps({"": panels})
    assert {panel.colorbar.extend for ax in drawn(figure)[0] for panel in ax.get_images() if panel.colorbar} == {tips}


LONG = "lape_sharing, learnable+relative (/somewhere/or/other/with_a_long_name_{})"


def test_long_names_stay_in_the_figure():
    """Those of rows do not meet either."""
    names = [LONG.format(i) for i in range(4)]
    figure = plots.maps({name: panels(3) for name in names})
    figure.draw_without_rendering()
    boxes = [ax.yaxis.label.get_window_extent() for ax in figure.axes if ax.get_ylabel()]
    assert len(boxes) == 4
    assert min(box.x0 for box in boxes) >= 0
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
    assert 0 <= min(box.y0 for box in boxes) < max(box.y1 for box in boxes) <= figure.bbox.height
    for drawing in (
        plots.curves({"": {name: ([0], [0]) for name in names}}),
        plots.spread({"": {name: [1.0] for name in names}}),
    ):
        drawing.draw_without_rendering()
        box = drawing.legends[0].get_window_extent()
        assert 0 <= box.x0 < box.x1 <= drawing.bbox.width


def test_curves():
    x = np.arange(5)
    lines = {"loss": {"default": (x, x**2 + 1), "lape": (x, x)}, "lr": {"lape": (x, [1, 2, np.nan, 3, 4])}}
    figure = plots.curves(lines, "epoch", "title", log=("loss",), limits={"lr": (0, 5)})
    loss, lr = figure.axes
    assert [line.get_color() for line in loss.get_lines()] == ["#0072B2", "#D55E00"]
    assert [line.get_color() for line in lr.get_lines()] == ["#D55E00"]
    assert (loss.get_yscale(), lr.get_yscale()) == ("log", "linear")
    assert lr.get_ylim() == (0, 5)
    assert (loss.get_title(), lr.get_xlabel()) == ("loss", "epoch")
    np.testing.assert_array_equal(loss.get_lines()[0].get_ydata(), x**2 + 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["default", "lape"]


def test_one_curve_has_no_legend_and_many_have_no_marks():
    figure = plots.curves({"loss": {"train": (range(100), range(100))}})
    (ax,) = figure.axes
    assert figure.legends == []
    assert ax.get_lines()[0].get_marker() == "None"


@pytest.mark.parametrize(
    ("greatest", "scale"), [(9.9, "linear"), (10.1, "log"), (np.inf, "linear"), (np.nan, "linear")]
)
def test_less_than_a_decade_needs_no_logarithm(greatest, scale):
    figure = plots.curves({"a": {"x": (range(3), [1, 5, greatest]), "y": ([0], [0])}}, log=("a",))
    assert figure.axes[0].get_yscale() == scale


def test_lines_on_each_other_are_all_seen():
    (ax,) = plots.curves({"": {name: (range(3), [1, 1, 1]) for name in "abcd"}}).axes
    assert len({line.get_linestyle() for line in ax.get_lines()}) == 4


def test_layers_are_whole_numbers():
    (ax,) = plots.curves({"": {"": ([1, 2], [0, 1])}}).axes
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_more_lines_than_colours_differ_in_dashes():
    figure = plots.curves({"": {str(i): ([0], [i]) for i in range(16)}})
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(styles) == 16


def test_values_side_by_side():
    rows = {"ViT": {"default": [], "other": [1.0, 4.0], "lape": [2.0]}, "Swin": {"lape": [5.0], "default": [6.0]}}
    figure = plots.spread(rows, "top-1, %", "title")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["ViT", "Swin"]
    assert (ax.get_ylabel(), figure.get_suptitle()) == ("top-1, %", "title")
    points, bars = ax.get_lines()[::2], ax.get_lines()[1::2]
    # Places beside each other around the row's, and only for columns that have values there; a step is 0.8 / 3.
    middles = [-0.4 / 3, 0.4 / 3, 1 - 0.4 / 3, 1 + 0.4 / 3]
    drawn_points = [line.get_xydata().tolist() for line in points]
    assert [len(xy) for xy in drawn_points] == [2, 1, 1, 1]
    for xy, middle in zip(drawn_points, middles, strict=True):
        assert [x for x, _ in xy] == pytest.approx([middle] * len(xy))
    assert [[y for _, y in xy] for xy in drawn_points] == [[1, 4], [2], [6], [5]]
    assert [bar.get_ydata().tolist() for bar in bars] == [[2.5, 2.5], [2, 2], [6, 6], [5, 5]]
    assert [np.mean(bar.get_xdata()) for bar in bars] == pytest.approx(middles)
    colours = [line.get_color() for line in points]
    assert colours == [plots.OKABE_ITO[i] for i in (1, 2, 0, 2)]
    assert [bar.get_color() for bar in bars] == colours
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["default", "other", "lape"]


@pytest.mark.parametrize("rows", [{}, {"a": {}}, {"a": {"x": [], "y": []}}, {"a": {"x": [1.0], "y": []}}])
def test_nothing_to_tell_apart(rows):
    figure = plots.spread(rows)
    assert figure.legends == []
    assert plots.render(figure, "png") == plots.render(plots.spread(rows), "png")


def test_a_sheet_of_images():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[1, 0, 0] = 255
    figure = plots.image_sheet(images, ["a", "b", "c"], columns=2)
    shown, _ = drawn(figure)
    assert [ax.get_title() for ax in shown] == ["a", "b", "c"]
    np.testing.assert_array_equal(shown[1].get_images()[0].get_array(), images[1] / 255)


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2, 2, 1)])
def test_normalised_images_from_black_to_white(shape):
    images = np.array([-2, -1, 0, 1, 2, 2, 2, 2], np.float32).reshape(shape)
    shown, _ = drawn(plots.image_sheet(images))
    assert shown[0].get_images()[0].get_array().tolist() == [[0, 0.25], [0.5, 0.75]]
    shown, _ = drawn(plots.image_sheet(images, limits=(-1, 1)))
    assert shown[0].get_images()[0].get_array().tolist() == [[0, 0], [0.5, 1]]


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2, 4), (0, 2, 2)])
def test_what_is_no_image(shape):
    with pytest.raises(UserError, match="a sheet is of images"):
        plots.image_sheet(np.zeros(shape))


@pytest.mark.parametrize("form", ["png", "pdf"])
def test_files_are_the_same_each_time(form):
    def contents():
        return plots.render(plots.maps({"a": panels(2)}, "title"), form)

    once = contents()
    assert once == contents()
    assert once.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[form])
    assert b"Matplotlib" not in once
    assert b"CreationDate" not in once


def test_colours_in_the_file():
    """The first and the last of viridis, dark purple and yellow."""
    figure = plots.maps({"": [plots.Panel(np.array([[0.0, 1.0]]))]})
    pixels = np.asarray(Image.open(io.BytesIO(plots.render(figure, "png"))).convert("RGB")).reshape(-1, 3)
    for colour in ((68, 1, 84), (253, 231, 37)):
        near = np.abs(pixels.astype(int) - colour).max(-1) <= 2
        assert near.mean() > 0.1


def test_unknown_form():
    with pytest.raises(UserError, match="form='jpg' is not one of png, pdf"):
        plots.render(plots.curves({"": {"": ([0], [0])}}), "jpg")


@pytest.mark.slow
def test_matplotlib_waits_until_something_is_drawn():
    code = "import sys, lape_jax.analysis.study; sys.exit(any(name.startswith('matplotlib') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
