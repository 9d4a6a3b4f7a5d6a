"""Objects to look at: masks, boxes, names and scores drawn over images, and curves of precision and recall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from lape_jax.analysis.plots import DPI, drawable
from lape_jax.tasks.classes import NAME

if TYPE_CHECKING:
    import matplotlib.figure

READABLE = 480  # pixels: an image whose longer side is less is drawn larger, or captions would cover it
ALPHA = 0.45  # of a mask's colour
SIDE = 3.2  # inches of an image in a figure
LEVELS = {"IoU .50": 0, "IoU .75": 5}  # thresholds whose curves are drawn, and their numbers


def drawn(
    pixels: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "n 4"],
    masks: Sequence[UInt8[np.ndarray, "h w"]],
    labels: Integer[np.ndarray, " n"],
    captions: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
) -> UInt8[np.ndarray, "_h _w 3"]:
    """The image under its objects, the last of them on top; of a small image each pixel becomes several.

    Args:
        boxes: x1, y1, x2, y2 in pixels.
        masks: 1 where the object is.
        labels: the class of each object, which gives its colour.
        captions: what is written at the box of each object.
    """
    times = -(-READABLE // max(pixels.shape)) if max(pixels.shape[:2]) < READABLE else 1
    image = pixels.astype(np.float32)
    for mask, label in zip(masks, labels, strict=True):
        image = np.where(mask[..., None] > 0, (1 - ALPHA) * image + ALPHA * colours[label], image)
    shown = Image.fromarray(np.rint(image).astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1))
    draw = ImageDraw.Draw(shown)
    line, font = max(2, max(shown.size) // 400), ImageFont.load_default(max(12, max(shown.size) // 60))
    for box, label, caption in zip(boxes, labels, captions, strict=True):
        colour = tuple(colours[label].tolist())
        x1, y1, x2, y2 = (float(value) for value in times * box)
        draw.rectangle((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)), outline=colour, width=line)
        if caption:
            _write(draw, caption, x1, y1, font, colour)
    return np.asarray(shown)


def _write(draw: ImageDraw.ImageDraw, caption: str, x: float, y: float, font: object, colour: tuple) -> None:
    """Black or white letters on the colour, above the corner, or below it where there is no room."""
    left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
    height = bottom - top + 4
    y = y - height if y >= height else y
    draw.rectangle((x, y, x + right - left + 4, y + height), fill=colour)
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128
    draw.text((x + 2 - left, y + 2 - top), caption, fill="white" if dark else "black", font=font)


def shrunk(pixels: UInt8[np.ndarray, "_h _w 3"], side: int) -> UInt8[np.ndarray, "_rows _columns 3"]:
    """The image with a longer side of at most so many pixels."""
    factor = side / max(pixels.shape)
    if factor >= 1:
        return pixels
    size = tuple(max(1, round(factor * length)) for length in pixels.shape[1::-1])
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def caption(name: str, score: float | None = None) -> str:
    """A class and its score in percent."""
    return drawable(name[:NAME]) + ("" if score is None else f" {100 * score:.0f}")


def comparison(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_h _w 3"]]], titles: Sequence[str], names: Sequence[str]
) -> "matplotlib.figure.Figure":
    """Drawn images in rows, under titles of the columns.

    Args:
        names: what the rows are called.
    """
    from matplotlib.figure import Figure

    heights = [SIDE * row[0].shape[0] / row[0].shape[1] for row in rows]
    size = (SIDE * len(titles), sum(heights) + 0.1 * len(rows) + 0.4)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    for line, row, name in zip(axes, rows, names, strict=True):
        for ax, image in zip(line, row, strict=True):
            ax.imshow(image)
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(drawable(name), fontsize=6)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=8)
    return figure


def curves(
    classes: Sequence[str], precision: dict[str, Float[np.ndarray, "thresholds recalls k"]]
) -> "matplotlib.figure.Figure":
    """Precision by recall, in percent: the mean of the classes that occur, and each of them as a thin line.

    Args:
        classes: names of all.
        precision: by kind, see `lape_jax.tasks.detect.scores.Scores`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(precision), 3.2 * len(LEVELS)), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(LEVELS), len(precision), squeeze=False)
    recall = np.linspace(0, 100, 101)
    for column, (kind, table) in enumerate(precision.items()):
        known = [label for label in range(len(classes)) if not np.isnan(table[0, 0, label])]
        for row, (level, number) in enumerate(LEVELS.items()):
            ax = axes[row, column]
            ax.plot(recall, table[number][:, known], color="#0072B2", linewidth=0.4, alpha=0.5)
            mean = table[number][:, known].mean(axis=1)
            ax.plot(recall, mean, color="#D55E00", linewidth=1.6)
            ax.set_title(f"{kind}, {level}: AP {mean.mean():.2f} %", fontsize=8)
            ax.set_xlim(0, 100)
            ax.set_ylim(0, 101)
            ax.tick_params(labelsize=6)
            ax.grid(alpha=0.3, linewidth=0.5)
    for ax in axes[-1]:
        ax.set_xlabel("recall, %", fontsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel("precision, %", fontsize=7)
    return figure
