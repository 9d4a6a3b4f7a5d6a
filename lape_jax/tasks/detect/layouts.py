"""Data sets in COCO's format on disk, found by looking: for whoever has no config that says where the files are."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lape_jax.data import listing
from lape_jax.errors import UserError

TOOL = "_annotations.coco.json"  # how Roboflow calls the file in each split's directory
LOOKED_FOR = f"annotations/instances_SPLIT.json, SPLIT.json or SPLIT/{TOOL}, with boxes"


class Place(NamedTuple):
    """Where a split lies: its file of annotations, and the directory that the names of its images count from."""

    file: str
    images: str


def find(root: str) -> dict[str, Place]:
    """All splits of a directory, `in_order`: split -> place; none if it has no file of LOOKED_FOR.

    Names of images count from where the file is, from SPLIT/ or from images/ in the directory: wherever the first is.

    Raises:
        UserError: it cannot be listed, or two files are of one split.
    """
    found: dict[str, Place] = {}

    def add(split: str, file: str, usual: str) -> None:
        text = _text(file)
        if not in_format(text):
            return
        if split in found:
            raise UserError(f"{found[split].file} and {file} are both of split {split!r}: rename one of them")
        directories = usual, os.path.dirname(file), os.path.join(root, split), os.path.join(root, "images")
        first = _first_image(text)
        there = [one for one in directories if os.path.isfile(os.path.join(one, first))]
        found[split] = Place(file, there[0] if there else directories[0])

    annotations = os.path.join(root, "annotations")
    for name in _json_files(annotations):
        if name.startswith("instances_"):
            split = name.removeprefix("instances_").removesuffix(".json")
            add(split, os.path.join(annotations, name), os.path.join(root, split))
    for name in _json_files(root):
        add(name.removesuffix(".json"), os.path.join(root, name), root)
    for entry in listing.entries(root) if os.path.isdir(root) else ():
        if entry.is_dir() and os.path.isfile(os.path.join(entry.path, TOOL)):
            add(entry.name, os.path.join(entry.path, TOOL), entry.path)
    return {split: found[split] for split in in_order(found)}


def _json_files(directory: str) -> list[str]:
    found = listing.names(directory) if os.path.isdir(directory) else []
    return sorted(name for name in found if name.endswith(".json"))


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def in_format(text: str) -> bool:
    """Whether a file seems to have boxes in COCO's format; a directory of classes may hold other JSON files, too."""
    return '"bbox"' in text and bool(re.search(r'"(images|annotations|categories)"\s*:\s*\[\s*[\]{]', text))


def _first_image(text: str) -> str:
    """The first name of an image in a file, "" if there is none."""
    found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', text)
    try:
        return json.loads(found[1]).replace("\0", "") if found else ""
    except ValueError:
        return ""


def in_order(splits: Iterable[str]) -> list[str]:
    """Those for training first, or else by name."""
    return sorted(splits, key=lambda split: (not split.startswith("train"), split))


def is_coco(root: str, places: Mapping[str, Place]) -> bool:
    """Whether they lie as COCO's authors publish it, and as `data.source=coco` finds them."""
    return all(
        place == (os.path.join(root, "annotations", f"instances_{split}.json"), os.path.join(root, split))
        for split, place in places.items()
    )


def command(root: str, places: Mapping[str, Place]) -> str:
    """How to train on files."""
    train, val = _roles(list(places))
    if is_coco(root, places):
        return _line("mask_rcnn_vit_adapter_ti_coco", {"path": root}, _splits(train, val, ("train2017", "val2017")))
    args, more = {"path": root}, {}
    for name, split in (("train", train), ("val", val)):
        file, images = places[split]
        if (found := os.path.relpath(file, root)) != f"{name}.json":
            args[name] = found
        if images != os.path.dirname(file):
            more[f"detect.{name}_images"] = os.path.relpath(images, root)
    return _line("detect", args, more)


def command_of_records(data_dir: str, name: str, splits: Iterable[str]) -> str:
    """How to train on what `python -m lape_jax.prepare objects` has written."""
    train, val = _roles(list(splits))
    if train.endswith("2017"):  # COCO's
        named = {} if name == "coco" else {"data.name": name}
        args = {"path": data_dir, "source": "tfds"}
        return _line("mask_rcnn_vit_adapter_ti_coco", args, named | _splits(train, val, ("train2017", "val2017")))
    named = {"data.source": "tfds", "data.name": name}
    return _line("detect", {"path": data_dir}, named | _splits(train, val, ("train", "val")))


def _roles(splits: list[str]) -> tuple[str, str]:
    usual = [split for split in splits[1:] if split.startswith(("val", "test"))]
    return splits[0], sorted(usual, key=lambda split: split.startswith("test"))[0] if usual else splits[-1]


def _splits(train: str, val: str, usual: tuple[str, str]) -> dict[str, str]:
    """What a config has to be told of splits that are not its usual ones."""
    found = {"data.train_split": (train, usual[0]), "data.val_split": (val, usual[1])}
    return {key: value for key, (value, usual) in found.items() if value != usual}


def _line(config: str, args: Mapping[str, str], keys: Mapping[str, str]) -> str:
    told = ",".join(f"{name}={value}".replace(",", r"\,") for name, value in args.items())
    options = [f"--config=configs/{config}.py:{told}", "--workdir=DIR"]
    options += [f"--config.{key}={value}" for key, value in keys.items()]
    return f"python -m lape_jax.main {' '.join(map(shlex.quote, options))}"
