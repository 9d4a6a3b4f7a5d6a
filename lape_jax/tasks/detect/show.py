"""Photos to look at: training images under what is learned of them, detections beside the truth, scores of classes."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lape_jax.analysis import plots
from lape_jax.data import order
from lape_jax.data.ahead import Ahead
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.parallel import sharding
from lape_jax.tasks import classes as by_name
from lape_jax.tasks import images
from lape_jax.tasks.detect import bitmaps, masks, overlays, pipeline, scores
from lape_jax.tasks.detect.evaluate import Found, PhotoEvaluator
from lape_jax.tasks.detect.photo import Photo
from lape_jax.tasks.task import SHEET, Candidate, Spread

if TYPE_CHECKING:
    import matplotlib.figure

SAMPLES = 4  # images at a time for `visualize`
SMALL, LARGE = 256, 640  # pixels of an image on the sheet, and in a comparison


def views(config: ConfigDict, source: Source[Photo]) -> tuple[np.ndarray, list[str]]:
    """Training images at step 0 on their canvases under the objects as they are learned, and what most of these are."""
    shown, titles = [], []
    detect, count = config.detect, min(SHEET, len(source))
    colours = by_name.palette(len(source.classes))
    for position, index in enumerate(order.batch_indices(config.seed, 0, count, len(source))):
        rng, canvas = order.augment_rng(config.seed, 0, position), tuple(detect.canvas)
        with contextlib.suppress(CorruptImage):
            parts = pipeline.learned(
                source[int(index)], config.data.orientation, canvas, detect.max_objects, pipeline.view(config), rng
            )
            pixels, _, boxes, labels, valid, compact = parts
            found = [masks.expand(mask, box, *canvas) for mask, box in zip(compact[valid], boxes[valid], strict=True)]
            drawn = overlays.drawn(pixels, boxes[valid], found, labels[valid], [""] * len(found), colours)
            shown.append(overlays.shrunk(drawn, SMALL))
            often = Counter(labels[valid].tolist()).most_common(2)
            titles.append(", ".join(f"{number} {source.classes[label][:9]}" for label, number in often))
    return np.stack(shown) / 255, titles


def middles(config: ConfigDict, source: Source[Photo]) -> Iterator[np.ndarray]:
    """The middle of each image, of the size that the positions are learned for; some at a time."""
    data = config.data

    def pixels(index: int) -> np.ndarray:
        return pipeline.examine(source[index], data.orientation).pixels

    with Ahead(pixels, range(len(source)), data.threads) as read:
        yield from images.middles(read, data.image_size, min(SAMPLES, len(source)))


def by_class(config: ConfigDict, evaluator: PhotoEvaluator, source: Source[Photo], count: int) -> dict[str, bytes]:
    """Files by name, of the evaluation that was made last; overlays of `count` images."""
    found, classes = evaluator.scores, source.classes
    columns: dict[str, Any] = {}
    for kind in found.precision:
        columns |= {
            f"{kind}_ap": found.of_classes(kind),
            f"{kind}_ap50": found.of_classes(kind, 0),
            f"{kind}_ap75": found.of_classes(kind, 5),
        }
    objects: Counter[int] = Counter()
    for index in range(len(source)):
        one = source[index].objects
        objects.update(one.labels[~one.crowd].tolist())
    columns["objects"] = np.array([objects[label] for label in range(len(classes))])
    figures = {
        "box_ap": by_name.chart(classes, columns["box_ap"], "box AP"),
        "precision_recall": overlays.curves(classes, dict(found.precision)),
    }
    if count:
        own: dict[int, list[scores.Detection]] = {}
        for one in evaluator.detections:
            own.setdefault(one.image, []).append(one)
        chosen = Spread(source, count)
        photos = [chosen[index] for index in range(len(chosen))]
        predicted = [together(own.get(photo.number, [])) for photo in photos]
        figures["overlays"] = compare(config, photos, classes, {"detections": predicted})
    drawn = {f"{name}.png": plots.render(figure, "png") for name, figure in figures.items()}
    return {
        "ap.csv": by_name.table(classes, columns).encode(),
        "detections.json": json.dumps(results(evaluator, source, tuple(found.precision))).encode(),
    } | drawn


def results(evaluator: PhotoEvaluator, source: Source[Photo], kinds: tuple[str, ...]) -> list[dict]:
    """The last evaluation's detections in COCO's format of results, with the ids that the data set's own file has."""
    ids = getattr(getattr(source, "source", source), "ids", None)
    ids = ids or {name: label + 1 for label, name in enumerate(source.classes)}
    return [
        _text(scores.as_coco(one, ids[source.classes[one.label]], *kinds))
        for one in evaluator.detections
        if source.classes[one.label] in ids
    ]


def _text(result: dict) -> dict:
    """The same with RLE that JSON can hold."""
    if "segmentation" not in result:
        return result
    mask = result["segmentation"]
    return {**result, "segmentation": {**mask, "counts": mask["counts"].decode()}}


def together(ones: list[scores.Detection]) -> Found:
    """Detections of one image, together."""
    return Found(
        np.array([one.box for one in ones], np.float32).reshape(-1, 4),
        np.array([one.score for one in ones], np.float32),
        np.array([one.label for one in ones], np.int32),
        [one.mask for one in ones],
    )


def drawn_overlays(runs: Mapping[str, Candidate], source: Source[Photo], count: int) -> dict[str, bytes]:
    """Files by name: overlays.png and .pdf, `count` images of `source` and what the runs, by title, find in them.

    Raises:
        UserError: they are not of the same validation images, or these cannot be read.
    """
    images.check_alike(runs, ("source", "path", "name", "val_split", "orientation"))
    first, chosen = next(iter(runs.values())), Spread(source, count)
    photos = [chosen[index] for index in range(len(chosen))]
    pixels = [pipeline.examine(photo, first.config.data.orientation).pixels for photo in photos]
    predicted = {}
    for label, (config, model, variables, _) in runs.items():
        mesh = sharding.data_mesh()  # whatever devices a run had
        evaluator = PhotoEvaluator(model, config, mesh)
        predicted[label] = list(evaluator.find(jax.device_put(variables, sharding.replicated(mesh)), pixels))
    figure = compare(first.config, photos, source.classes, predicted)
    return {f"overlays.{form}": plots.render(figure, form) for form in plots.FORMATS}


def compare(
    config: ConfigDict, photos: list[Photo], classes: tuple[str, ...], predicted: Mapping[str, list[Found]]
) -> "matplotlib.figure.Figure":
    """Photos under the objects in them, beside what was found in them, by title."""
    colours, rows = by_name.palette(len(classes)), []
    for index, photo in enumerate(photos):
        pixels = pipeline.examine(photo, config.data.orientation).pixels
        row = [truth(pixels, photo, classes, colours)]
        row += [detected(pixels, found[index], classes, colours, config.detect) for found in predicted.values()]
        rows.append([overlays.shrunk(image, LARGE) for image in row])
    return overlays.comparison(rows, ["truth", *predicted], [Path(photo.name).name for photo in photos])


def truth(pixels: np.ndarray, photo: Photo, classes: tuple[str, ...], colours: np.ndarray) -> np.ndarray:
    """The image under the objects that are to be found in it; crowds are none of them."""
    objects = photo.objects
    rows = np.flatnonzero(~objects.crowd & (objects.labels >= 0))
    labels = objects.labels[rows]
    drawn = [bitmaps.bitmap(objects.masks[row], objects.height, objects.width) for row in rows]
    captions = [overlays.caption(classes[label]) for label in labels]
    return overlays.drawn(pixels, objects.corners[rows], drawn, labels, captions, colours)


def detected(
    pixels: np.ndarray, found: Found, classes: tuple[str, ...], colours: np.ndarray, detect: ConfigDict
) -> np.ndarray:
    """The image under what was found in it with at least the score `detect.shown`, the best on top."""
    rows = [row for row in np.argsort(found.scores, kind="stable") if found.scores[row] >= detect.shown]
    drawn = [bitmaps.bitmap(found.masks[row] if detect.masks else None, *pixels.shape[:2]) for row in rows]
    captions = [overlays.caption(classes[found.labels[row]], float(found.scores[row])) for row in rows]
    return overlays.drawn(pixels, found.boxes[rows], drawn, found.labels[rows], captions, colours)
