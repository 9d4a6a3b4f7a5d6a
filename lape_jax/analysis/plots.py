"""Figures of arrays: maps, lines, images. What the arrays are of is told by the words that come with them.

Figures are matplotlib's, made without its global state (no pyplot) and drawn by Agg; `render` gives the same bytes for
the same arrays, whenever it is called. Colours can be told apart by the colour-blind: viridis for maps, Okabe and Ito's
for lines, which differ in their dashes, too, so that one is seen under another that lies on it. matplotlib takes long
to import and is imported by the functions that draw.
"""

import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lape_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.image

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", ":", "-.")
FORMATS = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
SIDE = 1.35  # inches of a map
LABEL = 0.2  # inches for what is written to the left of rows of maps
DPI = 150
Range = tuple[float | int, float | int]
FEW = 40  # points of a line, which are then marked


class Panel(NamedTuple):
    """A map to be drawn."""

    image: np.ndarray  # (rows, columns)
    title: str = ""
    limits: Range | None = (0.0, 1.0)  # values of the first and last colour; None: the map's own range
    mark: tuple[int, int] | None = None  # row and column of a cross


def maps(
    rows: Mapping[str, Sequence[Panel]], title: str = "", side: float = SIDE, columns: int = 6
) -> "matplotlib.figure.Figure":
    """Maps side by side: a row for each name, or, if there is one name alone, as many rows as its maps need.

    Panels with the same fixed limits share a colour bar: all of the figure, or neighbours in a row; any other panel has
    its own. A bar has a tip at an end where values go on: they have its last colour.

    Args:
        rows: maps by what is written to the left of their row ("" for nothing), in lines no longer than a map is high.
        title: above all.
        side: the side of a map, in inches.
        columns: maps in a row, where there is one name alone.
    """
    from matplotlib.figure import Figure

    labels, lines = list(rows), [list(panels) for panels in rows.values()]
    if len(lines) == 1:
        count = len(lines[0])
        columns = math.ceil(count / math.ceil(count / columns))  # rows of about the same length
        lines = [lines[0][start : start + columns] for start in range(0, count, columns)]
        labels = labels + [""] * (len(lines) - 1)
    wide = max(map(len, lines))
    figure = Figure(figsize=(side * wide + 1.2, (side + 0.25) * len(lines) + 0.5), dpi=DPI, layout="constrained")
    # Where rows have bars of their own, the layout forgets what is written to the left of them.
    beside = LABEL / figure.get_figwidth() if any(labels) else 0.0
    figure.get_layout_engine().set(rect=(beside, 0, 1 - beside, 1))
    axes = figure.subplots(len(lines), wide, squeeze=False)
    drawn = []
    for line, label, panels in zip(axes, labels, lines, strict=True):
        drawn.append([(ax, _draw(ax, panel), panel) for ax, panel in zip(line, panels, strict=False)])
        line[0].set_ylabel(_wrapped(label, 72 * side, 7.0), fontsize=7)
        for ax in line[len(panels) :]:
            ax.set_axis_off()
    for group in _sharing(drawn):
        extend = _beyond([panel for _, _, panel in group])
        over = [ax for ax, _, _ in group]
        bar = figure.colorbar(group[0][1], ax=over, shrink=0.9, fraction=0.04, pad=0.01, extend=extend)
        bar.ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=9)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    xlabel: str = "step",
    title: str = "",
    log: Collection[str] = (),
    limits: Mapping[str, Range] | None = None,
    columns: int = 2,
) -> "matplotlib.figure.Figure":
    """Lines, a panel for each title of `panels`, with one legend.

    Args:
        panels: by title, and in each by name of a line, its x and y of the same length; NaN leaves a gap. A name has
            the same colour in all panels. x are whole numbers.
        xlabel: what x is.
        title: above all.
        log: titles of the panels with a logarithmic y axis, if their values are a decade apart or more.
        limits: ends of the y axis, by title of a panel; others take those of their lines.
        columns: panels in a row.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows + 0.6), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    handles = {}
    for ax, (above, lines) in zip(axes, panels.items(), strict=False):
        for name, (x, y) in lines.items():
            number = names.index(name)
            again = number // len(OKABE_ITO)  # each time that the colours begin anew, dashes begin one further
            style = {"color": OKABE_ITO[number % len(OKABE_ITO)], "linestyle": DASHES[(number + again) % len(DASHES)]}
            marker = "o" if len(np.atleast_1d(x)) <= FEW else None
            (handles[name],) = ax.plot(x, y, linewidth=1.3, marker=marker, markersize=2.5, **style)
        ax.set_title(above, fontsize=8)
        ax.set_xlabel(xlabel, fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.tick_params(labelsize=6)
        ax.grid(alpha=0.3, linewidth=0.5)
        ax.set_yscale("log" if above in log and _decades(lines) >= 1 else "linear")
        ax.set_ylim((limits or {}).get(above))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    if len(names) > 1:
        _legend(figure, handles, most=3)
    figure.suptitle(title, fontsize=9)
    return figure


def spread(
    rows: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str = "", title: str = ""
) -> "matplotlib.figure.Figure":
    """Values side by side: a group for each row, in it a place for each column that has values there, a dot for each
    value, a bar at the mean.

    Args:
        rows: values by row and column; a column has one colour in all rows.
        ylabel: what the values are.
        title: above all.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for columns in rows.values() for name in columns))
    figure = Figure(figsize=(1.6 + 1.1 * len(rows) + 0.12 * len(names) * len(rows), 3.2), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    step = 0.8 / max(len(names), 1)
    handles = {}
    for group, columns in enumerate(rows.values()):
        present = [name for name in names if columns.get(name)]
        for place, name in enumerate(present):
            values = np.asarray(columns[name])
            x = group + step * (place - (len(present) - 1) / 2)
            colour = OKABE_ITO[names.index(name) % len(OKABE_ITO)]
            ax.plot(np.full(len(values), x), values, "o", color=colour, markersize=3, alpha=0.6, markeredgewidth=0)
            ends = [x - 0.35 * step, x + 0.35 * step]
            (handles[name],) = ax.plot(ends, [values.mean()] * 2, color=colour, linewidth=2)
    ax.set_xticks(range(len(rows)), list(rows), fontsize=7)
    ax.set_xlim(-0.6, len(rows) - 0.4)
    ax.tick_params(axis="y", labelsize=7)
    ax.set_ylabel(ylabel, fontsize=8)
    ax.grid(axis="y", alpha=0.3, linewidth=0.5)
    if len(handles) > 1:
        handles = {name: handles[name] for name in names if name in handles}
        _legend(figure, handles, most=5)
    figure.suptitle(title, fontsize=9)
    return figure


def drawable(name: str) -> str:
    r"""A name as matplotlib draws it: what is no text as an escape, and no formula.

    >>> drawable("5 $")
    '5 \\$'
    """
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def image_sheet(
    images: ArrayLike,
    titles: Sequence[str] = (),
    title: str = "",
    limits: Range | None = None,
    columns: int = 8,
) -> "matplotlib.figure.Figure":
    """Images in rows, each pixel as it is.

    Args:
        images: (b, h, w, 3), (b, h, w, 1) or (b, h, w), of whole numbers or floats.
        titles: one for each image, or none.
        title: above all.
        limits: values of black and white, cut off beyond; by default 0 and 255 for whole numbers, and for floats the
            least and the greatest of all images, so that normalised ones can be shown as they are.
        columns: images in a row.
    """
    from matplotlib.figure import Figure

    images = np.asarray(images)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)) or not images.size:
        raise UserError(f"a sheet is of images (b, h, w, 3), (b, h, w, 1) or (b, h, w), not of shape {images.shape}")
    if limits is None:
        whole = np.issubdtype(images.dtype, np.integer)
        limits = (0, 255) if whole else (float(images.min()), float(images.max()))
    low, high = limits
    shown = np.clip((images.astype(np.float64) - low) / ((high - low) or 1), 0, 1)
    shown = shown[..., 0] if shown.ndim == 4 and shown.shape[-1] == 1 else shown
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.2 * columns, 1.2 * rows + 0.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for index, ax in enumerate(axes):
        ax.set_axis_off()
        if index < len(shown):
            ax.imshow(shown[index], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(drawable(titles[index]) if titles else "", fontsize=6, pad=2)
    figure.suptitle(title, fontsize=9)
    return figure


def render(figure: "matplotlib.figure.Figure", form: str) -> bytes:
    """The contents of a file of the figure, `form` being "png" or "pdf", without the time and the program's version."""
    if form not in FORMATS:
        raise UserError(f"form={nearest(form, FORMATS)}")
    file = io.BytesIO()
    figure.savefig(file, format=form, metadata=FORMATS[form])
    return file.getvalue()


def _draw(ax: "matplotlib.axes.Axes", panel: Panel) -> "matplotlib.image.AxesImage":
    low, high = panel.limits or (None, None)
    drawn = ax.imshow(panel.image, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(panel.title, fontsize=7, pad=3)
    if panel.mark is not None:
        row, column = panel.mark
        ax.plot(column, row, marker="x", color="black", markersize=4, markeredgewidth=0.9)
    return drawn


def _sharing(drawn: list[list[tuple]]) -> list[list[tuple]]:
    """The panels in groups that have one colour bar each."""
    everything = [panel for line in drawn for panel in line]
    if len({panel.limits for _, _, panel in everything}) == 1 and everything[0][2].limits:
        return [everything]
    groups: list[list[tuple]] = []
    for line in drawn:
        before = None
        for one in line:
            limits = one[2].limits
            if limits and limits == before:
                groups[-1].append(one)
            else:
                groups.append([one])
            before = limits
    return groups


def _beyond(panels: Sequence[Panel]) -> str:
    """The ends of the colours beyond which there are values, as matplotlib calls them."""
    limits = panels[0].limits
    if limits is None:
        return "neither"
    slack = 1e-6 * (limits[1] - limits[0])  # a cosine of 1 may be above it by rounding
    below = any(np.nanmin(panel.image) < limits[0] - slack for panel in panels)
    above = any(np.nanmax(panel.image) > limits[1] + slack for panel in panels)
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def _decades(lines: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> float:
    """Between the least and the greatest of the values that a logarithmic axis can show."""
    values = np.concatenate([np.ravel(y) for _, y in lines.values()]).astype(np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    return math.log10(values.max() / values.min()) if values.size else 0.0


def _wrapped(text: str, points: float, size: float) -> str:
    """In lines of about that many points, in letters of a size, which are 0.6 of it wide."""
    return "\n".join(textwrap.wrap(text, max(int(points / (0.6 * size)), 1)))


def _legend(figure: "matplotlib.figure.Figure", handles: Mapping[str, Any], most: int, size: float = 7.0) -> None:
    """Below the figure, in as many columns as it has room for; a handle takes seven letters' space."""
    letter, width = 0.6 * size, 72 * figure.get_figwidth()
    columns = int(width / letter / (max(map(len, handles)) + 7))
    columns = max(1, min(most, len(handles), columns))
    names = [_wrapped(name, width - 7 * letter, size) for name in handles]
    figure.legend(handles.values(), names, loc="outside lower center", ncols=columns, fontsize=size)
