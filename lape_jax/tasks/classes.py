"""Classes to look at: a colour for each, and a score.

The colours are told apart by the colour-blind as far as so many can be: see `palette`. Figures are matplotlib's, see
`lape_jax.analysis.plots`.
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
NAME = 26  # letters of a class in a figure


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


def chart(
    classes: Sequence[str], scores: Float[np.ndarray, " k"], called: str, title: str = ""
) -> "matplotlib.figure.Figure":
    """Bars of a score of each class, in percent, the best on top, and a line at their mean.

    Args:
        classes: names of all.
        scores: NaN for classes that have none, which are left out.
        called: the name of the score.
        title: above all.
    """
    from matplotlib.figure import Figure

    known = np.flatnonzero(~np.isnan(scores))
    order = known[np.argsort(scores[known], kind="stable")]
    figure = Figure(figsize=(5.5, 1.1 + 0.14 * max(len(order), 1)), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    ax.barh(range(len(order)), scores[order], color="#0072B2", height=0.75)
    ax.set_yticks(range(len(order)), [drawable(classes[label][:NAME]) for label in order], fontsize=6)
    ax.set_ylim(-0.7, max(len(order), 1) - 0.3)
    ax.set_xlim(0, 100)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_xlabel(f"{called}, %", fontsize=8)
    ax.grid(axis="x", alpha=0.3, linewidth=0.5)
    if len(order):
        mean = float(scores[order].mean())
        ax.axvline(mean, color="#D55E00", linewidth=1)
        title = f"{title}{': ' if title else ''}mean {mean:.2f} %, {len(order)} of {len(classes)} classes occur"
    figure.suptitle(title, fontsize=9)
    return figure


def table(classes: Sequence[str], columns: Mapping[str, Sequence[float] | Num[np.ndarray, " k"]]) -> str:
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
