"""Objects in a user's own images: overlays to look at, and all that was found in COCO's format."""

import io
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from lape_jax.parallel import sharding
from lape_jax.port import files
from lape_jax.tasks import images as images_
from lape_jax.tasks.classes import palette
from lape_jax.tasks.detect import bitmaps, show
from lape_jax.tasks.detect.evaluate import Found, PhotoEvaluator
from lape_jax.tasks.task import Candidate

DETECTIONS = "detections.json"


def check_places(images: images_.Found, out: Path) -> None:
    """See `lape_jax.tasks.images.check_places`."""
    images_.check_places(images, lambda name: (_place(out, name),), {out / DETECTIONS: "the list of detections"})


def _place(out: Path, name: Path) -> Path:
    """Where the overlay of an image goes."""
    return out / f"{name}_overlay.png"


def predict(run: Candidate, images: images_.Found, out: Path) -> int:
    """Writes the overlay of each image that can be read, as they come, and DETECTIONS; returns how many can."""
    config, model, variables, classes = run
    mesh = sharding.make_mesh(config.mesh)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    colours, whole = palette(len(classes)), _Results(classes, config.detect.masks)
    reading = images_.readable(list(images), lambda path: images_.pixels(path, 3, config.data.orientation), threads=1)
    read, kept = itertools.tee(reading)  # some images are read before what was found in the first is given back
    results = PhotoEvaluator(model, config, mesh).find(variables, (pixels for _, pixels in read))
    try:
        for found, (image, pixels) in zip(results, kept, strict=True):
            shown = io.BytesIO()
            Image.fromarray(show.detected(pixels, found, classes, colours, config.detect)).save(shown, "PNG")
            place = _place(out, images[image])
            files.write_all(place.parent, {place.name: shown.getvalue()})
            often = Counter(found.labels[found.scores >= config.detect.shown].tolist()).most_common(images_.TOP)
            print(f"{image}: {', '.join(f'{count} {classes[label]}' for label, count in often) or 'nothing'}")
            whole.add(str(image), *pixels.shape[:2], found)
    finally:
        files.write_all(out, {DETECTIONS: json.dumps(whole.content).encode()})
    return len(whole.content["images"])


class _Results:
    """Detections in COCO's format of data sets, each annotation with a "score": labelling tools read it.

    Ids of categories are the places of the classes, from 1. If masks were not learned, there are boxes alone.
    """

    def __init__(self, classes: tuple[str, ...], masks: bool):
        self._masks = masks
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
        self.content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}

    def add(self, name: str, height: int, width: int, found: Found) -> None:
        """What was found in an image, the best first."""
        number = len(self.content["images"]) + 1
        self.content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for one in sorted(found.detections(number), key=lambda one: -one.score):
            x1, y1, x2, y2 = one.box
            area, mask = (x2 - x1) * (y2 - y1), {}
            if self._masks:
                area = bitmaps.area(one.mask, height, width)
                mask = {"segmentation": {**one.mask, "counts": one.mask["counts"].decode()}}
            self.content["annotations"].append(
                {
                    "id": len(self.content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": one.label + 1,
                    "score": one.score,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": 0,
                    **mask,
                }
            )
