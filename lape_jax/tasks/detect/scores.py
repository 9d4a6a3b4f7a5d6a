"""Average precision and recall, as COCO counts them: pycocotools does it, on boxes and on masks.

Of all detections of a class, best first, each finds the object that it overlaps most, and that no better one has found,
if the IoU is at least a threshold; else it is a mistake. Precision is read off at 101 recalls. AP is the mean over
these, over the IoU thresholds .50, .55 ... .95, and over the classes that occur. Objects that stand for a crowd count
neither way.
"""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lape_jax.data.example import Source
from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps
from lape_jax.tasks.detect.photo import Photo

KINDS = {"box": "bbox", "mask": "segm"}
# pycocotools' twelve figures, in its order: AP, of one threshold, of small, medium and large objects (below 32 x 32
# pixels, below 96 x 96, and above); and the recall with 1, 10 and 100 detections in an image, and by size.
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def kinds(masks: bool) -> tuple[str, ...]:
    """Those of KINDS that are evaluated, with masks or without."""
    return tuple(kind for kind in KINDS if masks or kind != "mask")


class Detection(NamedTuple):
    """Something that was found in an image."""

    image: int  # its number
    label: int
    score: float
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image
    mask: dict  # RLE


class Scores(NamedTuple):
    """What an evaluation has found.

    Attributes:
        figures: by name, "box_ap" and so on, in percent; NaN where there is no such object.
        precision: by kind, "box" and "mask": in percent, of each threshold, recall and class; NaN where a class has no
            object.
    """

    figures: Mapping[str, float]
    precision: Mapping[str, Float[np.ndarray, "thresholds recalls classes"]]

    def of_classes(self, kind: str, threshold: int | None = None) -> Float[np.ndarray, " classes"]:
        """AP of each class: over all thresholds, or at the one of this number (0 is IoU .50)."""
        precision = self.precision[kind] if threshold is None else self.precision[kind][threshold : threshold + 1]
        return precision.mean(axis=(0, 1))


def evaluate(source: Source[Photo], found: Sequence[Detection], kinds: Sequence[str] = tuple(KINDS)) -> Scores:
    """Compares detections with all objects of a data set, and not only those that are learned.

    Args:
        found: in the order of images, classes and scores: of equal scores the first comes first.
        kinds: of KINDS, what is compared.

    Raises:
        UserError: there is not one object whose class is known.
    """
    truth, figures, precision = _quietly(_truth, source), {}, {}
    if not truth["annotations"]:
        raise UserError(f"not one of the {len(source)} images has an object of a known class: there is nothing to find")
    for kind in kinds:
        stats, table = _quietly(_evaluate, truth, found, kind, KINDS[kind])
        figures |= {f"{kind}_{name}": _percent(value) for name, value in zip(FIGURES, stats, strict=True)}
        precision[kind] = 100 * np.where(table < 0, np.nan, table)
    return Scores(figures, precision)


def _percent(value: float) -> float:
    return float("nan") if value < 0 else 100 * float(value)


def _quietly(function: Any, *args: Any) -> Any:
    """What the function returns; pycocotools reports on all that it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def _truth(source: Source[Photo]) -> dict[str, list]:
    """The data set in COCO's format. Ids of categories are labels + 1, those of annotations count from 1 (to
    pycocotools an id of 0 is none)."""
    images, annotations = [], []
    for index in range(len(source)):
        photo = source[index]
        objects = photo.objects
        images.append({"id": photo.number, "height": objects.height, "width": objects.width})
        for row in np.flatnonzero(objects.labels >= 0):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": photo.number,
                    "category_id": int(objects.labels[row]) + 1,
                    "bbox": objects.boxes[row].tolist(),
                    "area": float(objects.areas[row]),
                    "iscrowd": int(objects.crowd[row]),
                    "segmentation": bitmaps.rle(objects.masks[row], objects.height, objects.width),
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(source.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _evaluate(truth: dict[str, list], found: Sequence[Detection], kind: str, called: str) -> tuple[Any, np.ndarray]:
    """pycocotools' twelve numbers, and its table of precisions: thresholds, recalls, classes."""
    reference = COCO()
    reference.dataset = copy.deepcopy(truth)
    reference.createIndex()
    results = [as_coco(one, one.label + 1, kind) for one in found]
    if results:
        detected = reference.loadRes(results)
    else:
        detected = COCO()
        detected.dataset = {**reference.dataset, "annotations": []}
        detected.createIndex()
    evaluation = COCOeval(reference, detected, called)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, -1]


def as_coco(one: Detection, category: int, *kinds: str) -> dict[str, Any]:
    """A detection in COCO's format of results, with its box ("box"), its mask ("mask"), or both.

    With a mask alone pycocotools takes the area of the mask for small and large, with both that of the box.
    """
    x1, y1, x2, y2 = one.box
    parts = {"box": {"bbox": [x1, y1, x2 - x1, y2 - y1]}, "mask": {"segmentation": dict(one.mask)}}
    result = {"image_id": one.image, "category_id": category, "score": one.score}
    for kind in kinds:
        result |= parts[kind]
    return result
