"""Predicts what is on images of your own: their classes, or the class of each pixel, as the run has learned.

    python -m lape_jax.predict IMAGE_OR_DIR ... --workdir=DIR --out=DIR [--step=N|last|best] [--ema=true]
    python -m lape_jax.predict IMAGE_OR_DIR ... --weights=FILE --config=FILE.py --out=DIR [--config.key=value ...]

Of a directory all JPEG and PNG images in and below it are taken, but hidden ones and those in --out. They are resized
and cut as in evaluation; EXIF orientation is ignored. Without --step a workdir's best checkpoint predicts. In --out:

classification
    predictions.csv     a line for each image: the five most probable classes, and their probabilities
    predictions.jsonl   the same as an object on each line
segmentation
    NAME.png            an indexed PNG of the image's size. A pixel's value is the number of its class, from 0, also of
                        ADE20K, whose own files count from 1
    NAME_overlay.png    the image under the colours of the classes
    legend.png          these colours, of all classes that were found
    classes.txt         the names of the classes, the first being that of number 0

An image that cannot be read is named and left out; the others are done, and the exit code is 2.
"""

import argparse
import csv
import io
import json
import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lape_jax import cli, export
from lape_jax.analysis import overlays, plots
from lape_jax.augment.photometric import normalise
from lape_jax.data import decode, listing, sources
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.scene_transforms import canvas_size
from lape_jax.errors import UserError
from lape_jax.train import sharding
from lape_jax.train.feed import place
from lape_jax.train.segmentation import SceneEvaluator
from lape_jax.visualize import write

logger = logging.getLogger("lape_jax.predict")  # also where it is __main__

TOP = 5  # classes of an image that are named
LEGEND, CLASSES = "legend.png", "classes.txt"
Found = dict[Path, Path]  # images -> what to call them below --out, without suffix


def main(config: ConfigDict, args: argparse.Namespace) -> None:
    export.check_origin(args)
    out = Path(args.out).expanduser()
    images = find(args.files, out)
    if config.task == "segment":
        check_places(images, out)
    model, variables, classes = export.weights(config, args)
    write(out, {})
    predict = segment if config.task == "segment" else classify
    done = predict(config, model, variables, classes, images, out)
    print(f"{out}: {done} of {len(images)} images")
    if done < len(images):
        raise UserError(f"{len(images) - done} of {len(images)} images cannot be read: see the warnings")


def find(given: Sequence[str], out: Path) -> Found:
    """The images that are meant, and what to call them.

    Raises:
        UserError: a path that is not there, or a directory without images.
    """
    found: Found = {}
    for path in map(Path, given):
        if path.is_dir():
            inside = [path / name for name in listing.list_files(str(path), sources.SUFFIXES)[0]]
            inside = [image for image in inside if out.resolve() not in image.resolve().parents]
            if not inside:
                raise UserError(
                    f"{path} has no images ({', '.join(sources.SUFFIXES)}), other than those in --out={out}"
                )
            found |= {image: image.relative_to(path).with_suffix("") for image in inside}
        elif path.exists():
            found[path] = Path(path.stem)
        else:
            raise UserError(f"there is no image or directory {str(path)!r}")
    return found


def check_places(images: Found, out: Path) -> None:
    """Raises UserError if two maps would be called the same, or a file take the place of one that may be the user's.

    That is every image, and whatever lies beside one; elsewhere in `out` earlier predictions are replaced.
    """
    makers: dict[Path, Path] = {}
    for image, name in images.items():
        for place_ in _places(out, name):
            if place_ in makers or place_ in (out / LEGEND, out / CLASSES):
                other = makers.get(place_, "the legend")
                raise UserError(f"{place_} would be of {other} and of {image}: predict them into two directories")
            makers[place_] = image
    beside = {image.resolve().parent for image in images}
    for place_ in (*makers, out / LEGEND, out / CLASSES):
        if place_.exists() and place_.resolve().parent in beside:
            raise UserError(f"{place_} is there already, beside an image: use another --out")


def _places(out: Path, name: Path) -> tuple[Path, Path]:
    """Where the map and the overlay of an image go."""
    return out / f"{name}.png", out / f"{name}_overlay.png"


def readable(images: Sequence[Path], read: Callable[[Path], np.ndarray], ahead: int) -> Iterator[tuple[Path, Any]]:
    """Image and what `read` makes of it, in order, made by so many threads; those that raise CorruptImage are named."""
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque = deque()
        for image in (*images, *[None] * ahead):  # at the end what still waits
            if image is not None:
                waiting.append((image, pool.submit(read, image)))
            if waiting and (image is None or len(waiting) > ahead):
                first, reading = waiting.popleft()
                try:
                    yield first, reading.result()
                except CorruptImage as error:
                    logger.warning("%s", error)


def pixels(image: Path, channels: int) -> np.ndarray:
    """uint8 (h, w, channels).

    Raises:
        CorruptImage: it cannot be read.
    """
    return decode.decode(listing.read(str(image)), channels, str(image))


def classify(
    config: ConfigDict, model: nn.Module, variables: Any, classes: Sequence[str], images: Found, out: Path
) -> int:
    """Prints and writes the most probable classes of each image that can be read; returns how many can."""
    data = config.data

    def square(image: Path) -> np.ndarray:
        return decode.eval_crop(pixels(image, data.channels), data.image_size, data.crop_ratio)

    lines = []
    squares = readable(list(images), square, data.threads)
    for image, probabilities in _probabilities(config, model, variables, squares, len(images)):
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        top = [{"class": classes[i], "number": int(i), "probability": float(probabilities[i])} for i in best]
        lines.append({"image": str(image), "top": top})
        print(f"{image}: {_named((classes[i], probabilities[i]) for i in best)}")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    ranks = range(1, min(TOP, len(classes)) + 1)
    writer.writerow(("image", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))))
    for line in lines:
        cells = ((one["class"], f"{one['probability']:.6f}") for one in line["top"])
        writer.writerow((line["image"], *(cell for pair in cells for cell in pair)))
    objects = "".join(json.dumps(line) + "\n" for line in lines)
    write(out, {"predictions.csv": table.getvalue().encode(), "predictions.jsonl": objects.encode()})
    return len(lines)


def _probabilities(
    config: ConfigDict, model: nn.Module, variables: Any, squares: Iterator[tuple[Path, np.ndarray]], count: int
) -> Iterator[tuple[Path, np.ndarray]]:
    """Image and softmax(logits), in batches of one size; `count` is of the images at most."""
    mesh = sharding.make_mesh(config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = math.ceil(min(config.eval_batch_size, count) / shards) * shards
    rows, everywhere = sharding.batch_sharding(mesh, size), sharding.replicated(mesh)
    variables = jax.device_put(variables, everywhere)

    def probabilities(variables: Any, images: jax.Array) -> jax.Array:
        images = normalise(images, config.data.mean, config.data.std)
        return jax.nn.softmax(model.apply(variables, images, train=False)[0])

    step = jax.jit(probabilities, out_shardings=everywhere)
    names, batch = [], np.zeros((size, *model.input_shape), np.uint8)
    for image, square in squares:
        batch[len(names)] = square
        names.append(image)
        if len(names) == size:
            yield from zip(names, np.asarray(step(variables, place(batch, rows))), strict=True)
            names, batch = [], np.zeros_like(batch)
    if names:
        yield from zip(names, np.asarray(step(variables, place(batch, rows))), strict=False)


def segment(
    config: ConfigDict, model: nn.Module, variables: Any, classes: Sequence[str], images: Found, out: Path
) -> int:
    """Writes the map and the overlay of each image that can be read; returns how many can."""
    mesh = sharding.make_mesh(config.mesh)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    colours = overlays.palette(len(classes))
    covered = np.zeros(len(classes))
    waiting: deque = deque()  # read, but not yet predicted

    def whole(image: Path) -> np.ndarray:
        found = pixels(image, config.data.channels)
        try:
            for scale in config.segment.scales:
                canvas_size(*found.shape[:2], config.segment.scale, scale, config.data.image_size)
        except UserError as error:
            raise CorruptImage(str(image), str(error)) from error
        return found

    def read() -> Iterator[np.ndarray]:
        for image, found in readable(list(images), whole, ahead=1):
            waiting.append((image, found))
            yield found

    evaluator = SceneEvaluator(model, config, mesh, None)
    done = 0
    for labels in evaluator.maps(variables, read()):
        image, found = waiting.popleft()
        map_place, overlay_place = _places(out, images[image])
        shown = _png(Image.fromarray(overlays.overlay(found, labels, colours)))
        write(map_place.parent, {map_place.name: map_png(labels, colours), overlay_place.name: shown})
        shares = overlays.shares(labels, len(classes))
        for label, share in shares.items():
            covered[label] += share
        print(f"{image}: {_named((classes[label], share) for label, share in list(shares.items())[:TOP])}")
        done += 1
    write(out, {CLASSES: "".join(f"{name}\n" for name in classes).encode()})
    if done:
        order = np.argsort(-covered, kind="stable")[: np.count_nonzero(covered)]
        write(out, {LEGEND: plots.render(overlays.legend(order.tolist(), classes), "png")})
    return done


def map_png(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """A map (h, w) of labels from 0 as an indexed PNG."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours.tobytes())
    return _png(image, bits=8)


def _png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def _named(parts: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {100 * part:.1f}%" for name, part in parts)


if __name__ == "__main__":
    options = {
        "weights": "weights that predict instead of a run's",
        "step": "which checkpoint: N, last or best",
        "ema": "true: the running mean of the run's weights",
        "out": "directory to write to",
    }
    files = "images, and directories of images"
    sys.exit(cli.run(main, description=__doc__, required=("out",), options=options, files=files))
