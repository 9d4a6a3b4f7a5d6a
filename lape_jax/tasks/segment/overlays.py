"""Maps of labels to look at: colours of classes, maps laid over images, beside each other, and a score for each class.

Black is where a map says nothing (negative labels). The colours are told apart by the colour-blind as far as so many
can be: see `palette`. Figures are matplotlib's, see `lape_jax.analysis.plots`.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer, Num, UInt8

from lape_jax.analysis.plots import DPI, drawable
from lape_jax.errors import UserError

if TYPE_CHECKING:
    import matplotlib.figure

STEP = 15  # grey levels between the colours that a palette is chosen from
LIGHT = 0.3  # least lightness of a colour: OKLab sees much in what is nearly black, where screens show little
# What red, green and blue (linear) are to people without the cones for red, and for green: Machado, Oliveira and
# Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1.
COLOUR_BLIND = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
)
# Linear sRGB -> cones -> (cubic root) -> OKLab: Ottosson 2020, "A perceptual color space for image processing".
CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
BLIND = 2.0  # how much a distance counts that the colour-blind see, by one that others see
NAME = 26  # letters of a class in a legend
SIDE = 2.6  # inches of an image


def palette(count: int) -> UInt8[np.ndarray, "{count} 3"]:
    """The sRGB colours of so many classes: each the one farthest from black, white and all before it.

    So a shorter palette is the beginning of a longer one. Far is measured in OKLab, where distances are about those
    that are seen, as the least of: the distance as most people see it; and `BLIND` times that of people who lack the
    cones for red, or for green.

    Raises:
        UserError: more colours than there are to choose from.
    """
    levels = np.arange(0, 256, STEP)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    views = _views(colours)
    light = views[0, :, 0] >= LIGHT
    light[0] = True  # black, to keep away from
    colours, views = colours[light], views[:, light]
    if count > len(colours) - 2:
        raise UserError(f"there are no colours for {count:,} classes: use at most {len(colours) - 2:,}")

    def distances(index: int) -> np.ndarray:
        found = np.linalg.norm(views - views[:, index, None], axis=-1)
        # Rounded, so that machines that compute a root in other ways agree on what is farthest.
        return np.round(np.minimum(found[0], BLIND * found[1:].min(0)), 6)

    nearest = np.minimum(distances(0), distances(len(colours) - 1))
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances(chosen[-1]))
    return colours[chosen].astype(np.uint8).reshape(count, 3)


def _views(colours: Integer[np.ndarray, "n 3"]) -> Float[np.ndarray, "views n 3"]:
    """In OKLab, as they are and as the colour-blind see them."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.stack([linear, *(np.clip(linear @ np.transpose(matrix), 0, 1) for matrix in COLOUR_BLIND)])
    return np.cbrt(seen @ np.transpose(CONES)) @ np.transpose(LAB)


def coloured(labels: Integer[np.ndarray, "h w"], colours: UInt8[np.ndarray, "k 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The colour of each label, black where it is negative.

    Raises:
        UserError: a label without a colour.
    """
    if labels.size and labels.max() >= len(colours):
        raise UserError(f"a map has the label {labels.max()}, and there are colours for 0 to {len(colours) - 1}")
    return np.concatenate([np.zeros((1, 3), np.uint8), colours])[np.maximum(labels, -1) + 1]


def overlay(
    pixels: UInt8[np.ndarray, "h w c"],
    labels: Integer[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "k 3"],
    alpha: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """round((1 - alpha) pixels + alpha colour); the pixel itself where the label is negative.

    Args:
        pixels: of 3 channels, or 1, which is shown grey.

    Raises:
        UserError: a label without a colour.
    """
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    mixed = np.rint((1 - alpha) * pixels + alpha * coloured(labels, colours).astype(np.float32))
    return np.where(labels[..., None] < 0, pixels, mixed.astype(np.uint8))


def shares(labels: Integer[np.ndarray, "h w"], count: int) -> dict[int, float]:
    """The classes that occur in a map of so many, by the part of the labelled pixels that they cover, largest first."""
    pixels = np.bincount(labels[labels >= 0].ravel(), minlength=count)
    order = np.argsort(-pixels, kind="stable")
    return {int(label): float(pixels[label] / pixels.sum()) for label in order if pixels[label]}


def comparison(
    rows: Sequence[tuple[np.ndarray, ...]],
    classes: Sequence[str],
    titles: Sequence[str] = ("prediction",),
    names: Sequence[str] = (),
) -> "matplotlib.figure.Figure":
    """Images beside their true maps and predicted ones, under a legend of the classes that occur, most pixels first.

    Args:
        rows: for each image: pixels, uint8 (h, w, 1 or 3); the truth, integer (h, w); and predictions of its shape.
        classes: names of all.
        titles: of the predictions, one or more.
        names: of the images, or nothing.

    Raises:
        UserError: there are no images, or a label has no class.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise UserError("there are no images to compare")
    colours = palette(len(classes))
    wide = 2 + len(titles)
    heights = [SIDE * pixels.shape[0] / pixels.shape[1] for pixels, *_ in rows]
    used = _occurring([labels for _, *maps in rows for labels in maps], len(classes))
    columns = max(1, int(SIDE * wide / 1.7))
    size = (SIDE * wide, sum(heights) + 0.1 * len(rows) + 0.5 + 0.15 * math.ceil(len(used) / columns))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(rows), wide, squeeze=False, height_ratios=heights)
    for line, (pixels, *maps) in zip(axes, rows, strict=True):
        shown = [np.broadcast_to(pixels, (*pixels.shape[:2], 3)), *(coloured(labels, colours) for labels in maps)]
        for ax, image in zip(line, shown, strict=True):
            ax.imshow(image, interpolation="nearest" if image.shape[0] < 256 else None)
            ax.set_xticks([])
            ax.set_yticks([])
    for ax, title in zip(axes[0], ("image", "truth", *titles), strict=True):
        ax.set_title(title, fontsize=8)
    for line, name in zip(axes, names, strict=False):
        line[0].set_ylabel(drawable(name), fontsize=6)
    _add_legend(figure, used, classes, colours, columns)
    return figure


def legend(labels: Sequence[int], classes: Sequence[str]) -> "matplotlib.figure.Figure":
    """The colours and names of some classes, in their order.

    Args:
        labels: of these classes, at least one; -1 for what is no class.
        classes: names of all.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(labels))
    figure = Figure(figsize=(1.9 * columns, 0.25 + 0.15 * math.ceil(len(labels) / columns)), dpi=DPI)
    _add_legend(figure, labels, classes, palette(len(classes)), columns, "center")
    return figure


def iou_chart(classes: Sequence[str], iou: Float[np.ndarray, " k"], title: str = "") -> "matplotlib.figure.Figure":
    """Bars of the intersection over union of each class, in percent, the best on top, and a line at their mean.

    Args:
        classes: names of all.
        iou: NaN for classes that occur neither in truth nor prediction, which are left out.
        title: above all.
    """
    from matplotlib.figure import Figure

    known = np.flatnonzero(~np.isnan(iou))
    order = known[np.argsort(iou[known], kind="stable")]
    figure = Figure(figsize=(5.5, 1.1 + 0.14 * max(len(order), 1)), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.barh(range(len(order)), iou[order], color="#0072B2", height=0.75)
    ax.set_yticks(range(len(order)), [drawable(classes[label][:NAME]) for label in order], fontsize=6)
    ax.set_ylim(-0.7, max(len(order), 1) - 0.3)
    ax.set_xlim(0, 100)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_xlabel("IoU, %", fontsize=8)
    ax.grid(axis="x", alpha=0.3, linewidth=0.5)
    if len(order):
        mean = float(iou[order].mean())
        ax.axvline(mean, color="#D55E00", linewidth=1)
        title = f"{title}{': ' if title else ''}mean {mean:.2f} %, {len(order)} of {len(classes)} classes occur"
    figure.suptitle(title, fontsize=9)
    return figure


def class_table(classes: Sequence[str], columns: Mapping[str, Sequence[float] | Num[np.ndarray, " k"]]) -> str:
    """CSV: number and name of each class and its values in `columns`; whole numbers as such, nothing for NaN."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("number", "class", *columns))
    for number, (name, *values) in enumerate(zip(classes, *columns.values(), strict=True)):
        writer.writerow((number, name, *map(_cell, values)))
    return file.getvalue()


def _cell(value: float | np.integer) -> str:
    if np.issubdtype(type(value), np.integer):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4f}"


def _occurring(maps: Sequence[np.ndarray], count: int) -> list[int]:
    """The classes in the maps, most pixels first, and -1 at the end if some have no class."""
    found = sum(np.bincount(np.maximum(labels, -1).ravel() + 1, minlength=count + 1) for labels in maps)
    order = np.argsort(-found[1:], kind="stable")
    return [int(label) for label in order if found[1 + label]] + [-1] * bool(found[0])


def _add_legend(
    figure: "matplotlib.figure.Figure",
    labels: Sequence[int],
    classes: Sequence[str],
    colours: np.ndarray,
    columns: int,
    where: str = "outside lower center",
) -> None:
    from matplotlib.patches import Patch

    drawn = [Patch(color=colours[label] / 255 if label >= 0 else "black") for label in labels]
    names = [drawable(classes[label][:NAME]) if label >= 0 else "(no label)" for label in labels]
    figure.legend(drawn, names, loc=where, ncols=columns, fontsize=6, handlelength=1, columnspacing=1, frameon=False)
