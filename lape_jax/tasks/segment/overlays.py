"""Maps of labels to look at: laid over images, and beside each other.

Black is where a map says nothing (negative labels). Figures are matplotlib's, see `lape_jax.analysis.plots`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, UInt8

from lape_jax.analysis.plots import DPI, drawable
from lape_jax.errors import UserError
from lape_jax.tasks.classes import NAME, palette

if TYPE_CHECKING:
    import matplotlib.figure

SIDE = 2.6  # inches of an image


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
        titles: what the predictions are called, one or more.
        names: what the images are called, or nothing.

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


def _occurring(maps: Sequence[np.ndarray], count: int) -> list[int]:
    """The classes in the maps, most pixels first, and -1 at the end if some have no class."""
    found = sum(np.bincount(np.maximum(labels, -1).ravel() + 1, minlength=count + 1) for labels in maps)
    order = np.argsort(-found[1:], kind="stable")
    occurring = [int(label) for label in order if found[1 + label]]
    return [*occurring, -1] if found[0] else occurring


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
