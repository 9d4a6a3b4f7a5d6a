"""Accuracy by image size: what a model that was trained at one size makes of others."""

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn

from lape_jax.analysis import plots
from lape_jax.errors import UserError
from lape_jax.models.base import pair

if TYPE_CHECKING:
    import matplotlib.figure

SEVENTHS = (4, 5, 6, 7, 8, 10, 12, 14, 16)  # of the trained size: 128 to 512 of 224, beside half of it
NAME = "resolutions"


class Curve(NamedTuple):
    """The results of one model, by image size.

    Attributes:
        label: what it is called.
        trained: the image size of its training.
        results: by image size, metrics by name.
        score: the name of the metric that is drawn, and what it is called.
    """

    label: str
    trained: int
    results: Mapping[int, Mapping[str, float]]
    score: tuple[str, str]


def default_sizes(model: nn.Module) -> list[int]:
    """Sizes from half to more than twice that of training, in whole patches, as far as the model takes them.

    Raises:
        UserError: the images of the model are not square.
    """
    height, width = pair(model.image_size)
    if height != width:
        raise UserError(f"the model's images are {height} x {width}: sizes are those of square ones")
    patch = max(pair(getattr(model, "patch_size", None) or 16))
    wanted = {patch * round(share * height / patch) for share in (1 / 2, *(n / 7 for n in SEVENTHS))} | {height}
    sizes = []
    for size in sorted(wanted - {0}):
        with contextlib.suppress(UserError):
            model.clone(image_size=size).check()
            sizes.append(size)
    return sizes


def table(curves: Sequence[Curve]) -> str:
    """CSV, a line for each model and size."""
    metrics = list(dict.fromkeys(name for curve in curves for found in curve.results.values() for name in found))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "trained_at", "image_size", *metrics])
    for curve in curves:
        for size, found in curve.results.items():
            writer.writerow([curve.label, curve.trained, size, *(found.get(name, "") for name in metrics)])
    return text.getvalue()


def figure(curves: Sequence[Curve]) -> "matplotlib.figure.Figure":
    """A line for each model: its score by image size."""
    panels: dict[str, dict] = {}
    for curve in curves:
        name, shown = curve.score
        values = [found[name] for found in curve.results.values()]
        panels.setdefault(f"{shown}, %", {})[f"{curve.label} (trained at {curve.trained})"] = (
            list(curve.results),
            values,
        )
    return plots.curves(panels, "image size (pixels), without training", columns=1)


def render(curves: Sequence[Curve]) -> dict[str, bytes]:
    """Contents of files by name: the table as CSV, the figure as PNG and as PDF."""
    drawn = figure(curves)
    return {f"{NAME}.csv": table(curves).encode()} | {
        f"{NAME}.{form}": plots.render(drawn, form) for form in plots.FORMATS
    }
