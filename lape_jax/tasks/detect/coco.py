"""Annotations in COCO's format: a JSON file of images, annotations and categories -> the objects in each image.

What contradicts itself, or cannot be understood, is an error that names it. What Mask R-CNN's reference leaves out of
training is marked, counted and named (open-mmlab/mmdetection 2.22, `datasets/coco.py`): see `Left`.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps
from lape_jax.tasks.detect.photo import Objects, Stored

FAR = 10  # times the image's longer side: a mask that is drawn farther away is a mistake
FEWEST = 6  # numbers of a polygon
NO_IMAGE, NO_CATEGORY = "belong to an image that is not in the file", "have a category that is not in the file"


class Entry(NamedTuple):
    """An image that a file tells of."""

    number: int
    file: str
    objects: Objects


class Left(NamedTuple):
    """Annotations or images (`what`) that are left out, why, how many, and the first of them."""

    what: str
    why: str
    count: int
    first: str


class Annotations(NamedTuple):
    """What a file holds: the ids of the classes by name, in the order of the ids; the images; and what is left out."""

    ids: Mapping[str, int]
    entries: tuple[Entry, ...]
    left: tuple[Left, ...]


def read(path: str) -> Annotations:
    """Reads a file; labels are the places of the classes in the order of their ids.

    Raises:
        UserError: it cannot be read, is no JSON, is not in this format, or something in it makes no sense.
    """
    content = _load(path)
    images, annotations, categories = (_list(content, key, path) for key in ("images", "annotations", "categories"))
    ids = _categories(categories, path)
    numbers = {number: label for label, number in enumerate(ids.values())}
    if not images:
        raise UserError(f"{path}: 'images' is an empty list: there is nothing to detect objects in")
    sizes = _images(images, path)
    rows, left = _sorted_by_image(annotations, sizes, numbers, path)
    entries = tuple(
        Entry(number, file, _objects(rows[number], height, width)) for number, (file, height, width) in sizes.items()
    )
    return Annotations(ids, entries, tuple(left))


def class_names(path: str) -> tuple[str, ...]:
    """The classes of a file, without reading the rest of it where that can be avoided: those of COCO fill 448 MB.

    Raises:
        UserError: as `read`.
    """
    text, decoder, found = _text(path), json.JSONDecoder(), []
    for match in re.finditer(r'"categories"\s*:\s*(?=\[)', text):
        try:
            found.append(decoder.raw_decode(text, match.end())[0])
        except ValueError:
            continue
    whole = len(found) == 1 and all(isinstance(item, dict) for item in found[0])
    return tuple(_categories(found[0] if whole else _list(_load(path), "categories", path), path))


# ---- The file --------------------------------------------------------------------------------------------------------


def _text(path: str) -> str:
    if not os.path.isfile(path):
        raise UserError(f"there is no file of annotations {path}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file: {error}") from error


def _load(path: str) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a JSON {type(content).__name__}, but COCO's format is an object with lists 'images', "
            f"'annotations' and 'categories'"
        )
    return content


def _list(content: Mapping[str, Any], key: str, path: str) -> list[dict]:
    found = content.get(key)
    if not isinstance(found, list):
        has = f"it is a JSON {type(found).__name__}" if key in content else f"it has {', '.join(content) or 'nothing'}"
        raise UserError(f"{path} has no list {key!r}, as COCO's format does: {has}")
    for index, item in enumerate(found):
        if not isinstance(item, dict):
            raise UserError(f"{path}: {key}[{index}] is {_shown(item)}, and no object with its keys")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _integer(item: Mapping[str, Any], key: str, where: str, least: int = -(2**62)) -> int:
    value = item.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
        words = "a whole number" + (f" of at least {least}" if least > -(2**62) else "")
        raise UserError(f"{where}: {key!r} must be {words}, and is {_shown(value) if key in item else 'missing'}")
    return value


def _categories(found: Sequence[dict], path: str) -> dict[str, int]:
    """Name -> id, in the order of the ids."""
    if not found:
        raise UserError(f"{path}: 'categories' is an empty list: there is no class to learn")
    names: dict[int, str] = {}
    for index, item in enumerate(found):
        where = f"{path}: categories[{index}]"
        number, name = _integer(item, "id", where), item.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: 'name' must be a text, and is {_shown(name)}")
        if number in names:
            raise UserError(f"{path}: two categories have the id {number}, {names[number]!r} and {name!r}")
        if name in names.values():
            raise UserError(f"{path}: two categories are called {name!r}: names must differ")
        names[number] = name
    return {names[number]: number for number in sorted(names)}


def _images(found: Sequence[dict], path: str) -> dict[int, tuple[str, int, int]]:
    """Id -> (file, height, width), in the order of the file."""
    sizes: dict[int, tuple[str, int, int]] = {}
    for index, item in enumerate(found):
        where = f"{path}: images[{index}]"
        number, file = _integer(item, "id", where), item.get("file_name")
        if not isinstance(file, str) or not file:
            raise UserError(f"{where}: 'file_name' must be a text, and is {_shown(file)}")
        if number in sizes:
            raise UserError(f"{path}: two images have the id {number}, {sizes[number][0]} and {file}")
        sizes[number] = file, *(_integer(item, key, where, least=1) for key in ("height", "width"))
    return sizes


# ---- Annotations -----------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    learned: bool
    area: float
    mask: Stored


def _sorted_by_image(
    annotations: Sequence[dict], sizes: Mapping[int, tuple[str, int, int]], numbers: Mapping[int, int], path: str
) -> tuple[Mapping[int, list[_Row]], list[Left]]:
    """The rows of each image, and what was left out."""
    rows: dict[int, list[_Row]] = defaultdict(list)
    left: dict[str, list] = {}
    seen: set[int] = set()
    for index, item in enumerate(annotations):
        number = _integer(item, "id", f"{path}: annotations[{index}]")
        where = f"annotation {number}"
        if number in seen:
            raise UserError(f"{path}: two annotations have the id {number}")
        seen.add(number)
        image, category = (_integer(item, key, f"{path}: {where}") for key in ("image_id", "category_id"))
        file, height, width = sizes.get(image, ("", 0, 0))
        if not file:
            why = NO_IMAGE
        elif category not in numbers:
            why = NO_CATEGORY
        else:
            row, why = _row(item, numbers[category], height, width, f"{path}: {where} of {file}")
            rows[image].append(row)
        if why:
            left.setdefault(why, [0, f"{where} of {file or f'image {image}'}"])[0] += 1
    return rows, [Left("annotations", why, count, first) for why, (count, first) in left.items()]


def _row(item: Mapping[str, Any], label: int, height: int, width: int, where: str) -> tuple[_Row, str]:
    """An annotation, and why it is not learned, if it is not (crowds are not, but that is no wonder)."""
    x, y, w, h = _numbers(item, "bbox", where)
    crowd = bool(_integer({"iscrowd": 0, **item}, "iscrowd", where, least=0))
    area = item.get("area")
    if area is not None and (isinstance(area, bool) or not isinstance(area, int | float) or not math.isfinite(area)):
        raise UserError(f"{where}: 'area' must be a finite number, and is {_shown(area)}")
    why = ""
    if item.get("ignore"):
        why = "say 'ignore'"
    elif min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        why = "lie outside of their image, or have no area"
    elif area is not None and area <= 0:
        why = "have the area 0"
    elif w < 1 or h < 1:
        why = "are less than a pixel wide or high"
    mask = _mask(item, height, width, where, needed=not why)
    if area is None:
        area = bitmaps.area(mask, height, width)
    return _Row((x, y, w, h), label, crowd, not (crowd or why), float(area), mask), why


def _numbers(item: Mapping[str, Any], key: str, where: str) -> list[float]:
    """The four numbers of a box."""
    found = item.get(key)
    right = isinstance(found, list) and len(found) == 4
    if not right or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in found):
        raise UserError(
            f"{where}: {key!r} must be four finite numbers [x, y, width, height], and is "
            f"{_shown(found) if key in item else 'missing'}"
        )
    return [float(value) for value in found]


def _mask(item: Mapping[str, Any], height: int, width: int, where: str, needed: bool) -> Stored:
    found = item.get("segmentation")
    if isinstance(found, dict):
        return _checked_rle(found, height, width, where)
    if found is not None and not isinstance(found, list):
        raise UserError(f"{where}: 'segmentation' must be a list of polygons, or RLE, and is {_shown(found)}")
    polygons = [_polygon(one, height, width, where) for one in found or ()]
    polygons = [one for one in polygons if len(one) >= FEWEST]
    if polygons:
        return tuple(polygons)
    if needed:
        raise UserError(
            f"{where} has no mask: 'segmentation' is {_shown(found)}, and Mask R-CNN learns masks as well as boxes"
        )
    return {"size": [height, width], "counts": [height * width]}  # nothing


def _polygon(one: Any, height: int, width: int, where: str) -> np.ndarray:
    try:
        corners = np.asarray(one, np.float64)
    except (TypeError, ValueError):
        corners = np.full(1, np.nan)
    if corners.ndim != 1 or len(corners) % 2 or not (np.abs(corners) <= FAR * max(height, width)).all():
        raise UserError(
            f"{where}: a polygon must be a list x1, y1, x2, y2, ... of numbers about the size of the image, and is "
            f"{_shown(one)}"
        )
    return corners


def _checked_rle(found: dict, height: int, width: int, where: str) -> dict:
    size, counts = found.get("size"), found.get("counts")
    if size != [height, width]:
        raise UserError(
            f"{where}: its RLE is of the size {_shown(size)}, but its image is [{height}, {width}] (height, width)"
        )
    runs = bitmaps.runs(counts.encode()) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in runs)
    if not whole or sum(runs) != height * width:
        raise UserError(f"{where}: the 'counts' of its RLE do not add up to {height} x {width} pixels")
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}


def _objects(rows: Sequence[_Row], height: int, width: int) -> Objects:
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
