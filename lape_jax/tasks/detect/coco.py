"""Annotations in COCO's format: a JSON file of images, annotations and categories -> the objects in each image.

What contradicts itself, or cannot be understood, is an error that names it. What Mask R-CNN's reference leaves out of
training is marked, counted and named (open-mmlab/mmdetection 2.22, `datasets/coco.py`): see `Left`.
"""

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lape_jax.errors import UserError
from lape_jax.tasks.detect import instances
from lape_jax.tasks.detect.instances import Row, integer, shown
from lape_jax.tasks.detect.photo import Objects

Refuse = Callable[[str], None] | None
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


def read(path: str, masks: bool = True, refuse: Callable[[str], None] | None = None) -> Annotations:
    """Reads a file; labels are the places of the classes in the order of their ids.

    Args:
        masks: whether what is learned must have a mask.
        refuse: is told of images and annotations that make no sense, which are left out; without it that is an error.

    Raises:
        UserError: it cannot be read, is no JSON, is not in this format, or something in it makes no sense.
    """
    content = load(path)
    images, annotations, categories = (_list(content, key, path) for key in ("images", "annotations", "categories"))
    ids = _categories(categories, path)
    numbers = {number: label for label, number in enumerate(ids.values())}
    if not images:
        raise UserError(f"{path}: 'images' is an empty list: there is nothing to detect objects in")
    sizes = _images(images, path, refuse)
    rows, left = _sorted_by_image(annotations, sizes, numbers, path, masks, refuse)
    entries = tuple(
        Entry(number, file, instances.objects(rows[number], height, width))
        for number, (file, height, width) in sizes.items()
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
    return tuple(_categories(found[0] if whole else _list(load(path), "categories", path), path))


# ---- The file --------------------------------------------------------------------------------------------------------


def _text(path: str) -> str:
    if not os.path.isfile(path):
        raise UserError(f"there is no file of annotations {path}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file: {error}") from error


def load(path: str) -> dict[str, Any]:
    """The object in a file, of which nothing else is known yet.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
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
            raise UserError(f"{path}: {key}[{index}] is {shown(item)}, and no object with its keys")
    return found


def _categories(found: Sequence[dict], path: str) -> dict[str, int]:
    """Name -> id, in the order of the ids."""
    if not found:
        raise UserError(f"{path}: 'categories' is an empty list: there is no class to learn")
    names: dict[int, str] = {}
    for index, item in enumerate(found):
        where = f"{path}: categories[{index}]"
        number, name = integer(item, "id", where), item.get("name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: 'name' must be a text, and is {shown(name)}")
        if number in names:
            raise UserError(f"{path}: two categories have the id {number}, {names[number]!r} and {name!r}")
        if name in names.values():
            raise UserError(f"{path}: two categories are called {name!r}: names must differ")
        names[number] = name
    return {names[number]: number for number in sorted(names)}


def _images(found: Sequence[dict], path: str, refuse: Refuse) -> dict[int, tuple[str, int, int]]:
    """Id -> (file, height, width), in the order of the file."""
    sizes: dict[int, tuple[str, int, int]] = {}
    for index, item in enumerate(found):
        with _told(refuse):
            where = f"{path}: images[{index}]"
            number, file = integer(item, "id", where), item.get("file_name")
            if not isinstance(file, str) or not file:
                raise UserError(f"{where}: 'file_name' must be a text, and is {shown(file)}")
            if number in sizes:
                raise UserError(f"{path}: two images have the id {number}, {sizes[number][0]} and {file}")
            sizes[number] = file, *(integer(item, key, where, least=1) for key in ("height", "width"))
    return sizes


@contextlib.contextmanager
def _told(refuse: Refuse) -> Iterator[None]:
    """Gives an error to `refuse`, if there is one, and goes on."""
    try:
        yield
    except UserError as error:
        if refuse is None:
            raise
        refuse(str(error))


# ---- Annotations -----------------------------------------------------------------------------------------------------


def _sorted_by_image(
    annotations: Sequence[dict],
    sizes: Mapping[int, tuple[str, int, int]],
    numbers: Mapping[int, int],
    path: str,
    masks: bool,
    refuse: Refuse,
) -> tuple[Mapping[int, list[Row]], list[Left]]:
    """The rows of each image, and what was left out."""
    rows: dict[int, list[Row]] = defaultdict(list)
    left: dict[str, list] = {}
    seen: set[int] = set()
    for index, item in enumerate(annotations):
        with _told(refuse):
            number = integer(item, "id", f"{path}: annotations[{index}]")
            where = f"annotation {number}"
            if number in seen:
                raise UserError(f"{path}: two annotations have the id {number}")
            seen.add(number)
            image, category = (integer(item, key, f"{path}: {where}") for key in ("image_id", "category_id"))
            file, height, width = sizes.get(image, ("", 0, 0))
            named = f"{where} of {file or f'image {image}'}"
            if not file:
                why = NO_IMAGE
            elif category not in numbers:
                why, named = NO_CATEGORY, f"{named}: {category}"
            else:
                row, why = instances.row(item, numbers[category], height, width, f"{path}: {named}", masks)
                rows[image].append(row)
            if why:
                left.setdefault(why, [0, named])[0] += 1
    return rows, [Left("annotations", why, count, first) for why, (count, first) in left.items()]
