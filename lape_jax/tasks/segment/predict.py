"""Maps of a user's own images: the class of each pixel, and overlays to look at."""

import io
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from lape_jax.analysis import plots
from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port import files
from lape_jax.tasks import images as images_
from lape_jax.tasks.classes import palette
from lape_jax.tasks.images import TOP, Found, named, pixels, readable
from lape_jax.tasks.segment import overlays
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.tasks.task import Candidate

LEGEND, CLASSES = "legend.png", "classes.txt"


def check_places(images: Found, out: Path) -> None:
    """See `lape_jax.tasks.images.check_places`."""
    others = {out / LEGEND: "the legend", out / CLASSES: "the list of classes"}
    images_.check_places(images, lambda name: _places(out, name), others)


def _places(out: Path, name: Path) -> tuple[Path, Path]:
    """Where the map and the overlay of an image go."""
    return out / f"{name}.png", out / f"{name}_overlay.png"


def predict(run: Candidate, images: Found, out: Path) -> int:
    """Writes the map and the overlay of each image that can be read, as they come; returns how many can."""
    config, model, variables, classes = run
    mesh = sharding.make_mesh(config.mesh)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    colours = palette(len(classes))
    covered = np.zeros(len(classes))
    evaluator = SceneEvaluator(model, config, mesh, None)

    def whole(image: Path) -> np.ndarray:
        found = pixels(image, config.data.channels, config.data.orientation)
        try:
            evaluator.limits.check(*found.shape[:2])
        except UserError as error:
            raise CorruptImage(str(image), str(error)) from error
        return found

    read, kept = itertools.tee(readable(list(images), whole, threads=1))  # some are read before the first map is there
    done = 0
    files.write_all(out, {CLASSES: "".join(f"{name}\n" for name in classes).encode("utf-8", "backslashreplace")})
    try:
        maps = evaluator.maps(variables, (found for _, found in read))
        for labels, (image, found) in zip(maps, kept, strict=True):
            map_place, overlay_place = _places(out, images[image])
            shown = _png(Image.fromarray(overlays.overlay(found, labels, colours)))
            files.write_all(map_place.parent, {map_place.name: map_png(labels, colours), overlay_place.name: shown})
            shares = overlays.shares(labels, len(classes))
            for label, share in shares.items():
                covered[label] += share
            print(f"{image}: {named((classes[label], share) for label, share in list(shares.items())[:TOP])}")
            done += 1
    finally:
        if done:
            order = np.argsort(-covered, kind="stable")[: np.count_nonzero(covered)]
            files.write_all(out, {LEGEND: plots.render(overlays.legend(order.tolist(), classes), "png")})
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
