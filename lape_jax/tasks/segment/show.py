"""Images to look at: training crops under their labels, predicted maps beside the true ones, scores of classes."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax.analysis import plots
from lape_jax.data import order
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.parallel import sharding
from lape_jax.tasks import images
from lape_jax.tasks.classes import chart, palette, table
from lape_jax.tasks.segment import inputs, loss, overlays, pipeline
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.tasks.segment.scene import Scene
from lape_jax.tasks.task import SHEET, Candidate, Spread

if TYPE_CHECKING:
    import matplotlib.figure

SAMPLES = 4  # windows at a time for `visualize`


def crops(config: ConfigDict, source: Source[Scene]) -> tuple[np.ndarray, list[str]]:
    """Crops of training images at step 0 under the colours of their labels, and the classes that cover most of them."""
    images, titles = [], []
    classes, count = source.classes, min(SHEET, len(source))
    colours = palette(len(classes))
    for position, index in enumerate(order.batch_indices(config.seed, 0, count, len(source))):
        rng = order.augment_rng(config.seed, 0, position)
        with contextlib.suppress(CorruptImage):
            pixels, labels = inputs.crop(config)(source[int(index)], len(classes), rng)
            images.append(overlays.overlay(pixels, labels, colours))
            titles.append(", ".join(classes[label][:9] for label in list(overlays.shares(labels, len(classes)))[:2]))
    return np.stack(images) / 255, titles


def windows(config: ConfigDict, source: Source[Scene]) -> Iterator[np.ndarray]:
    """The middle of each image, whose shorter side is resized to that of a window; some at a time."""
    data = config.data
    with pipeline.scenes(source, range(len(source)), data.channels, data.threads, data.orientation) as scenes:
        yield from images.middles((pixels for pixels, *_ in scenes), data.image_size, min(SAMPLES, len(source)))


def by_class(
    config: ConfigDict, evaluator: SceneEvaluator, variables: Any, source: Source[Scene], count: int
) -> dict[str, bytes]:
    """Files by name, of the evaluation that was made last; overlays of `count` images. All processes must call it."""
    found, classes = loss.scores(evaluator.matrix), source.classes
    columns = {"iou": found["iou"], "accuracy": found["accuracy"], "pixels": evaluator.matrix.sum(axis=1)}
    figures = {"iou": chart(classes, found["iou"], "IoU")}
    if count:
        figures["overlays"] = compare(config, source, count, {"prediction": (evaluator, variables)})
    drawn = {f"{name}.png": plots.render(figure, "png") for name, figure in figures.items()}
    return {"iou.csv": table(classes, columns).encode()} | drawn


def drawn_overlays(runs: Mapping[str, Candidate], source: Source[Scene], count: int) -> dict[str, bytes]:
    """Files by name: overlays.png and .pdf, `count` images of `source` and what the runs, by title, make of them.

    Raises:
        UserError: they are not of the same validation images, or these cannot be read.
    """
    images.check_alike(runs, ("source", "path", "name", "val_split", "channels", "orientation"))
    first = next(iter(runs.values()))
    predicted = {}
    for label, (config, model, variables, _) in runs.items():
        mesh = sharding.data_mesh()  # whatever devices a run had
        evaluator = SceneEvaluator(model, config, mesh, source)
        predicted[label] = evaluator, jax.device_put(variables, sharding.replicated(mesh))
    figure = compare(first.config, source, count, predicted)
    return {f"overlays.{form}": plots.render(figure, form) for form in plots.FORMATS}


def compare(
    config: ConfigDict, source: Source[Scene], count: int, predictors: Mapping[str, tuple[SceneEvaluator, Any]]
) -> "matplotlib.figure.Figure":
    """`count` scenes from all over a set, beside what evaluators (with variables, by title) make of them."""
    source, data = Spread(source, count), config.data
    with pipeline.scenes(source, range(len(source)), data.channels, data.threads, data.orientation) as scenes:
        images, truths, names = zip(*scenes, strict=True)
    maps = [list(evaluator.maps(variables, images)) for evaluator, variables in predictors.values()]
    rows = list(zip(images, truths, *maps, strict=True))
    return overlays.comparison(rows, source.classes, list(predictors), [Path(name).name for name in names])
