"""One annotation in COCO's format -> a row of `Objects`, and what can be wrong with it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps
from lape_jax.tasks.detect.photo import Objects, Stored

FAR = 10  # times the image's longer side: a mask that is drawn farther away is a mistake
FEWEST = 6  # numbers of a polygon


def shown(value: Any) -> str:
    """What stands in the file, cut if it is long."""
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def integer(item: Mapping[str, Any], key: str, where: str, least: int = -(2**62)) -> int:
    """The whole number that an item of the file has under a key.

    Args:
        where: the item, for messages.

    Raises:
        UserError: it is missing, is no whole number, or is less than `least`.
    """
    value = item.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
        words = "a whole number" + (f" of at least {least}" if least > -(2**62) else "")
        raise UserError(f"{where}: {key!r} must be {words}, and is {shown(value) if key in item else 'missing'}")
    return value


class Row(NamedTuple):
    """An annotation, see `lape_jax.tasks.detect.photo.Objects`; the box is x, y, width, height."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    learned: bool
    area: float
    mask: Stored


def row(item: Mapping[str, Any], label: int, height: int, width: int, where: str, masks: bool) -> tuple[Row, str]:
    """Reads an annotation, and says why it is not learned, if it is not (crowds are not, but that is no wonder).

    Args:
        label: the label of the annotation's category.
        height, width: the size of the annotated image.
        where: what it is called in messages.
        masks: whether what is learned must have a mask.

    Raises:
        UserError: something in it makes no sense, or its mask is missing.
    """
    x, y, w, h = _numbers(item, "bbox", where)
    crowd = bool(integer({"iscrowd": 0, **item}, "iscrowd", where, least=0))
    area = item.get("area")
    if area is not None and (isinstance(area, bool) or not isinstance(area, int | float) or not math.isfinite(area)):
        raise UserError(f"{where}: 'area' must be a finite number, and is {shown(area)}")
    why = ""
    if item.get("ignore"):
        why = "say 'ignore'"
    elif min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        why = "lie outside of their image, or have no area"
    elif area is not None and area <= 0:
        why = "have the area 0"
    elif w < 1 or h < 1:
        why = "are less than a pixel wide or high"
    mask = _mask(item, height, width, where, needed=masks and not why)
    if area is None:
        area = w * h if mask is None else bitmaps.area(mask, height, width)
    return Row((x, y, w, h), label, crowd, not (crowd or why), float(area), mask), why


def _numbers(item: Mapping[str, Any], key: str, where: str) -> list[float]:
    """The four numbers of a box."""
    found = item.get(key)
    right = isinstance(found, list) and len(found) == 4
    if not right or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in found):
        raise UserError(
            f"{where}: {key!r} must be four finite numbers [x, y, width, height], and is "
            f"{shown(found) if key in item else 'missing'}"
        )
    return [float(value) for value in found]


def _mask(item: Mapping[str, Any], height: int, width: int, where: str, needed: bool) -> Stored:
    found = item.get("segmentation")
    if isinstance(found, dict):
        return _checked_rle(found, height, width, where)
    if found is not None and not isinstance(found, list):
        raise UserError(f"{where}: 'segmentation' must be a list of polygons, or RLE, and is {shown(found)}")
    polygons = [_polygon(one, height, width, where) for one in found or ()]
    polygons = [one for one in polygons if len(one) >= FEWEST]
    if polygons:
        return tuple(polygons)
    if needed:
        raise UserError(
            f"{where} has no mask: 'segmentation' is {shown(found)}, and Mask R-CNN learns masks as well as boxes; "
            f"--config.detect.masks=False learns boxes alone"
        )
    return None


def _polygon(one: Any, height: int, width: int, where: str) -> np.ndarray:
    try:
        corners = np.asarray(one, np.float64)
    except (TypeError, ValueError):
        corners = np.full(1, np.nan)
    if corners.ndim != 1 or len(corners) % 2 or not (np.abs(corners) <= FAR * max(height, width)).all():
        raise UserError(
            f"{where}: a polygon must be a list x1, y1, x2, y2, ... of numbers about the size of the image, and is "
            f"{shown(one)}"
        )
    return corners


def _checked_rle(found: dict, height: int, width: int, where: str) -> dict:
    size, counts = found.get("size"), found.get("counts")
    if size != [height, width]:
        raise UserError(
            f"{where}: its RLE is of the size {shown(size)}, but its image is [{height}, {width}] (height, width)"
        )
    if isinstance(counts, str):
        counts = counts.encode(errors="surrogatepass")
    runs = bitmaps.runs(counts) if isinstance(counts, bytes) else counts
    whole = isinstance(runs, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in runs)
    if not whole or sum(runs) != height * width:
        raise UserError(f"{where}: the 'counts' of its RLE do not add up to {height} x {width} pixels")
    return {"size": [height, width], "counts": counts}


def objects(rows: Sequence[Row], height: int, width: int) -> Objects:
    """The annotations of an image together."""
    boxes, labels, crowd, learned, areas, masks = zip(*rows, strict=True) if rows else ((),) * 6
    return Objects(
        height,
        width,
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(crowd, bool),
        np.array(learned, bool),
        np.array(areas, np.float64),
        tuple(masks),
    )
