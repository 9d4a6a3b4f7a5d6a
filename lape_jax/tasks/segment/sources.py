"""Data sets for segmentation, with random access: index -> (image, map of labels, name)."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lape_jax.data import ahead, listing
from lape_jax.data.example import Source
from lape_jax.data.pictures import NAMES, SUFFIXES
from lape_jax.data.sources import open_by
from lape_jax.errors import UserError
from lape_jax.tasks.segment.digits import DigitScenes
from lape_jax.tasks.segment.masks import MOST_CLASSES
from lape_jax.tasks.segment.scene import Scene

logger = logging.getLogger(__name__)

# By `data.source`, the key of the config that it cannot do without.
SOURCES = {"digits": "", "ade20k": "path", "folder": "path", "tfds": "name"}
ADE20K_CLASSES, FOLDER_CLASSES = "objectInfo150.txt", "classes.txt"


def open_scenes(data_config: Any, split: str) -> Source[Scene]:
    """Opens what `data_config` describes.

    Args:
      data_config: has the attributes source (one of SOURCES), path, name, train_split and val_split.
      split: "train" or "val"; where it lies is data_config.train_split or data_config.val_split (digits: fixed).

    Raises:
      UserError: an unknown source, or one that is missing, empty or not laid out as it should be.
    """
    openers = {
        "digits": lambda where: DigitScenes(split),
        "ade20k": lambda where: ade20k(data_config.path, where),
        "folder": lambda where: folder(data_config.path, where),
        "tfds": lambda where: _records(data_config.name, data_config.path, where),
    }
    return open_by(openers, data_config, split)


def _records(name: str, data_dir: str, split: str) -> Source[Scene]:
    from lape_jax.tasks.segment.records import tfds_scenes  # here, because importing TFDS takes a while

    return tfds_scenes(name, data_dir, split)


class SceneFiles:
    """Image files and, for each, a PNG file of indices.

    Args:
      images: the directory that the images lie in.
      masks: the directory that the maps lie in.
      pairs: (image, map), paths relative to these directories.
      classes: the names.
      first: the index that stands for class 0, as in `Scene`.

    Attributes:
      root, files: the directory of the images, and their paths relative to it.
    """

    def __init__(self, images: str, masks: str, pairs: list[tuple[str, str]], classes: tuple[str, ...], first: int):
        self.root, self.masks, self.pairs, self.classes, self.first = images, masks, pairs, classes, first
        self.files = [image for image, _ in pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Scene:
        image, mask = self.pairs[index]
        name = os.path.join(self.root, image)
        return Scene(listing.read(name), listing.read(os.path.join(self.masks, mask)), name, self.first)


def ade20k(root: str, split: str) -> SceneFiles:
    """ADE20K as the scene parsing benchmark gives it out (ADEChallengeData2016), sorted by name.

        root/images/SPLIT/*.jpg    root/annotations/SPLIT/*.png    root/objectInfo150.txt

    SPLIT is `training` (20,210 images) or `validation` (2,000). In the maps, 0 is "other objects", which is neither
    learned nor counted, and 1 to 150 are the classes; theirs are the first of their names in objectInfo150.txt.
    Source: CSAILVision/sceneparsing, README.

    Raises:
      UserError: a file or directory is missing, damaged or empty, or images and maps do not belong together.
    """
    root = os.path.expanduser(root)
    if not root:
        raise UserError(
            f"data.path is empty: it must name ADEChallengeData2016, the directory of images/, annotations/ and "
            f"{ADE20K_CLASSES}"
        )
    images = listing.check_directory(root, "images", split)
    masks = listing.check_directory(root, "annotations", split)
    return SceneFiles(images, masks, _pairs(images, masks), _ade20k_classes(root), first=1)


def folder(root: str, split: str) -> SceneFiles:
    """Anybody's images and maps, sorted by path.

        root/images/SPLIT/NAME.jpg (or another of `pictures.SUFFIXES`)    root/masks/SPLIT/NAME.png    root/classes.txt

    NAME may have directories in it. Line n of classes.txt, counted from 0, is the name of the class that the value n
    stands for in the maps, grey or palette PNGs; 255 stands for no class.

    Raises:
      UserError: a file or directory is missing or empty, images and maps do not belong together, or classes.txt has
        blank lines, a name twice, or more than 255 names.
    """
    root = os.path.expanduser(root)
    if not root:
        raise UserError(
            f"data.path is empty: it must name a directory that holds images/{split}/, masks/{split}/ and "
            f"{FOLDER_CLASSES}"
        )
    images, masks = (_split_directory(root, kind, split) for kind in ("images", "masks"))
    return SceneFiles(images, masks, _pairs(images, masks), _folder_classes(root), first=0)


class Layout(NamedTuple):
    """How files may lie: what opens a split, and where in the directory their maps and the names of the classes are."""

    open: Callable[[str, str], SceneFiles]
    maps: str
    names: str


LAYOUTS = {"ade20k": Layout(ade20k, "annotations", ADE20K_CLASSES), "folder": Layout(folder, "masks", FOLDER_CLASSES)}


def layout(root: str) -> str:
    """Which of LAYOUTS a directory seems to have, "" if none."""
    root = os.path.expanduser(root)
    if not os.path.isdir(os.path.join(root, "images")):
        return ""
    for name, one in LAYOUTS.items():
        if os.path.isdir(os.path.join(root, one.maps)) or os.path.isfile(os.path.join(root, one.names)):
            return name
    return ""


def split_names(root: str) -> list[str]:
    """The splits, which are the directories in images/, `in_order`."""
    images = listing.check_directory(root, "images")
    found = in_order(entry.name for entry in listing.entries(images) if entry.is_dir())
    if not found:
        raise UserError(
            f"{images} holds no directory of a split, as train/; it holds {listing.some(listing.names(images))}"
        )
    return found


def in_order(splits: Iterable[str]) -> list[str]:
    """Those for training first, or else by name."""
    return sorted(splits, key=lambda split: (not split.startswith("train"), split))


def _split_directory(root: str, kind: str, split: str) -> str:
    directory = listing.check_directory(root, kind)
    if any(name.lower().endswith(SUFFIXES) for name in listing.names(directory)):
        raise UserError(
            f"{directory} holds image files itself: they must lie in a directory for each split, as {kind}/{split}/"
        )
    return listing.check_directory(directory, split)


def _pairs(images: str, masks: str) -> list[tuple[str, str]]:
    """(image, map) of the same name, relative to their directories."""
    questions = (images, SUFFIXES), (masks, (".png",))  # a network file system answers slowly, but two at once
    (pictures, others), (maps, no_maps) = ahead.each(
        lambda asked: listing.list_files(*asked), questions, len(questions)
    )
    for directory, found, rest, kind in ((images, pictures, others, NAMES), (masks, maps, no_maps, "PNG")):
        if not found:
            raise UserError(f"{directory} holds no {kind} file; it holds {listing.some(rest)}")
    picture_of, map_of = _by_stem(images, pictures), _by_stem(masks, maps)
    if alone := [path for stem, path in picture_of.items() if stem not in map_of]:
        stem = os.path.splitext(alone[0])[0]
        near = [path for path in no_maps if os.path.splitext(path)[0] == stem]
        hint = f"; {near[0]} is no PNG, and only PNG keeps the indices as they are" if near else ""
        raise UserError(
            f"{os.path.join(images, alone[0])} has no mask{_others(alone)}: there is no {stem}.png in {masks}{hint}"
        )
    if alone := [path for stem, path in map_of.items() if stem not in picture_of]:
        stem = os.path.splitext(alone[0])[0]
        raise UserError(
            f"{os.path.join(masks, alone[0])} has no image{_others(alone)}: there is no {stem}{', '.join(SUFFIXES)} in "
            f"{images}"
        )
    for directory, rest, kind in ((images, others, NAMES), (masks, no_maps, "PNG")):
        if rest:
            logger.warning("%s: left out %d files that are no %s: %s", directory, len(rest), kind, listing.some(rest))
    return [(path, map_of[stem]) for stem, path in picture_of.items()]


def _by_stem(directory: str, paths: list[str]) -> dict[str, str]:
    """Path without suffix -> path."""
    stems = [os.path.splitext(path)[0] for path in paths]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        same = [path for path in paths if os.path.splitext(path)[0] == twice[0]]
        raise UserError(
            f"{directory} holds {' and '.join(same)}, which have the same name: delete or rename all but one"
        )
    return dict(zip(stems, paths, strict=True))


def _others(names: list[str]) -> str:
    return f" (nor have {len(names) - 1} others)" if len(names) > 1 else ""


def _lines(path: str, about: str) -> list[str]:
    """The lines of a text file, without blanks at their ends and without empty lines at its end."""
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing: {about}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file: {error}") from error


def _folder_classes(root: str) -> tuple[str, ...]:
    path = os.path.join(root, FOLDER_CLASSES)
    names = _lines(path, "it must name the classes, one a line, in the order of their values in the masks, from 0")
    if names == [""]:
        raise UserError(f"{path} is empty: it must name the classes, one a line")
    if "" in names:
        raise UserError(
            f"line {names.index('') + 1} of {path} is blank: a line is the name of a class, and its place the value"
        )
    for number, name in enumerate(names):
        if (before := names.index(name)) < number:
            raise UserError(f"lines {before + 1} and {number + 1} of {path} are both {name!r}: names must differ")
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"{path} names {len(names)} classes, but there can be {MOST_CLASSES} at most, of values 0 to 254"
        )
    return tuple(names)


def _ade20k_classes(root: str) -> tuple[str, ...]:
    """Of lines "Idx Ratio Train Val [Stuff] Name", below such a line, each name up to its first comma."""
    path = os.path.join(root, ADE20K_CLASSES)
    lines = _lines(path, "ADE20K's class names are read from it; it comes with ADEChallengeData2016")
    rows = [re.fullmatch(r"(\d+)\s+[\d.]+\s+\d+\s+\d+\s+(?:[01]\s+)?(\D.*)", line) for line in lines[1:]]
    names = tuple(row[2].split(",")[0].strip() for row in rows if row)
    numbers = [int(row[1]) for row in rows if row]
    if not names or len(names) < len(rows) or numbers != [*range(1, len(names) + 1)] or len(set(names)) < len(names):
        raise UserError(
            f"{path} is not ADE20K's list of classes: a heading, and then lines 'Idx Ratio Train Val Name' with Idx "
            f"from 1 on and different names"
        )
    return names
