"""Data sets to detect objects in, with random access: index -> `lape_jax.tasks.detect.photo.Photo`."""

import functools
import os
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from lape_jax.data import listing
from lape_jax.data.example import Source
from lape_jax.data.sources import open_by
from lape_jax.errors import UserError
from lape_jax.tasks.detect import coco
from lape_jax.tasks.detect.coco import Annotations, Entry, Left
from lape_jax.tasks.detect.digits import DigitPhotos
from lape_jax.tasks.detect.photo import Photo

# By `data.source`, the key of the config that it cannot do without.
SOURCES = {"digits": "", "coco": "path", "json": "path", "tfds": "name"}
LEAST = 32  # pixels of the shorter side of a training image


def open_photos(config: ConfigDict, split: str) -> Source[Photo]:
    """Opens what `config.data` and `config.detect` describe.

    Args:
        config: the config of the run.
        split: "train" or "val". Of the first, images without objects, and those that are smaller than LEAST pixels,
            are left out, as in COCO's training by open-mmlab/mmdetection 2.22 (`datasets/coco.py`).

    Raises:
        UserError: an unknown source; a file is missing or makes no sense, see `lape_jax.tasks.detect.coco`; or the
            splits have other classes.
    """
    data, detect, training = config.data, config.detect, split == "train"
    openers = {
        "digits": lambda where: DigitPhotos(split),
        "coco": lambda where: coco_layout(data.path, where, data.train_split, training, detect.masks),
        "json": lambda where: own_layout(data.path, detect, split),
        "tfds": lambda where: _records(data.name, data.path, where, data.train_split, training, detect.masks),
    }
    return open_by(openers, data, split)


def _records(name: str, data_dir: str, split: str, train_split: str, training: bool, masks: bool) -> Source[Photo]:
    from lape_jax.tasks.detect.records import tfds_photos  # here, because importing TFDS takes a while

    return tfds_photos(name, data_dir, split, train_split, training, masks)


class PhotoFiles:
    """Image files, and what a file of annotations says of them.

    Args:
        root: the directory that the files lie in.
        entries: the images.
        ids: names of the classes -> their ids in the file.
        left: what the file has beside that.

    Attributes:
        files: the images' paths, relative to `root`.
    """

    def __init__(self, root: str, entries: Sequence[Entry], ids: Mapping[str, int], left: Sequence[Left]):
        self.root, self.entries, self.ids, self.left = root, entries, ids, tuple(left)
        self.classes = tuple(ids)
        self.files = [entry.file for entry in entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Photo:
        number, file, objects = self.entries[index]
        name = os.path.join(self.root, file)
        return Photo(functools.partial(listing.read, name), objects, name, number)


def coco_layout(root: str, split: str, train_split: str, training: bool, masks: bool = True) -> PhotoFiles:
    """COCO as its authors publish it.

        root/annotations/instances_SPLIT.json    root/SPLIT/*.jpg

    SPLIT is `train2017` (118,287 images, of which 117,266 have objects) or `val2017` (5,000).

    Raises:
        UserError: see `open_photos`.
    """
    root = _root(root, f"annotations/instances_{split}.json and {split}/")
    listing.check_directory(root, "annotations")
    images = listing.check_directory(root, split)
    files = {name: os.path.join(root, "annotations", f"instances_{name}.json") for name in (split, train_split)}
    return _opened(files[split], images, files[train_split], training, masks)


def own_layout(root: str, detect: ConfigDict, split: str) -> PhotoFiles:
    """The same format under names of one's own.

        root/TRAIN_JSON    root/VAL_JSON    root/IMAGES/FILE_NAME

    TRAIN_JSON and VAL_JSON are `detect.train_json` and `detect.val_json`. IMAGES is `detect.train_images` or
    `detect.val_images`, by default the directory that the JSON file lies in; FILE_NAME is as the JSON file has it.

    Raises:
        UserError: see `open_photos`.
    """
    root = _root(root, f"{detect.train_json}, {detect.val_json} and images")
    files = {"train": os.path.join(root, detect.train_json), "val": os.path.join(root, detect.val_json)}
    named = {"train": detect.train_images, "val": detect.val_images}[split]
    images = os.path.join(root, named) if named else os.path.dirname(files[split])
    if not os.path.isdir(root):
        raise UserError(f"data.path {root!r} is not a directory")
    if not os.path.isfile(files[split]):
        raise UserError(
            f"there is no file {files[split]} (config.detect.{split}_json); {root} holds "
            f"{listing.some(listing.names(root))}"
        )
    if not os.path.isdir(images):
        raise UserError(f"config.detect.{split}_images is {named!r}, but {images} is not a directory")
    return _opened(files[split], images, files["train"], split == "train", detect.masks)


def _root(root: str, what: str) -> str:
    if not root:
        raise UserError(f"data.path is empty: it must name a directory that holds {what}")
    return os.path.expanduser(root)


def _opened(file: str, images: str, train_file: str, training: bool, masks: bool) -> PhotoFiles:
    found = coco.read(file, masks)
    if not training:
        check_classes(tuple(found.ids), file, train_file)
    check_files(images, [entry.file for entry in found.entries], file)
    return PhotoFiles(images, *chosen(found, file, training))


def chosen(found: Annotations, file: str, training: bool) -> tuple[Sequence[Entry], Mapping[str, int], list[Left]]:
    """What is learned from, or evaluated by: the images, the ids of the classes, and what is left out.

    Args:
        found: in the file.

    Raises:
        UserError: there is no object to learn, or none at all.
    """
    if not training:
        if not any(len(entry.objects) for entry in found.entries):
            raise UserError(
                f"{file} has no object in any of its {len(found.entries)} images: there is nothing to evaluate by"
            )
        left = [one for one in found.left if one.why in (coco.NO_IMAGE, coco.NO_CATEGORY)]  # others are to be found
        return found.entries, found.ids, left
    entries, left = to_learn(found.entries, file)
    return entries, found.ids, [*found.left, *left]


def check_classes(classes: tuple[str, ...], file: str, train_file: str) -> None:
    """Raises UserError unless the training file, if it is there, has the same classes in the same order."""
    if not os.path.isfile(train_file) or (trained := coco.class_names(train_file)) == classes:
        return
    for ours, theirs in zip((*classes, None), (*trained, None), strict=False):
        if ours != theirs:
            raise UserError(
                f"{file} has other categories than {train_file}: in the order of their ids there is {ours!r} where "
                f"that has {theirs!r}; both files need the same list"
            )


def check_files(directory: str, files: Sequence[str], file: str) -> None:
    """Raises UserError if an image is not there, of which `file` tells."""
    if gone := missing(directory, files):
        rest = f", nor {len(gone) - 1} others of the {len(files)} images of {file}" if len(gone) > 1 else ""
        raise UserError(f"{os.path.join(directory, gone[0])} is not there, which {file} tells of{rest}")


def missing(directory: str, files: Sequence[str]) -> list[str]:
    """Which of the files are not there. Directories are listed, as that is quicker than to ask for each file."""
    there: dict[str, set[str]] = {}
    gone = []
    for name in files:
        parent, base = os.path.split(os.path.join(directory, name))
        if parent not in there:
            there[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        if base not in there[parent]:
            gone.append(name)
    return gone


def to_learn(entries: Sequence[Entry], file: str) -> tuple[list[Entry], list[Left]]:
    """The images that are learned from, and what is said of the others.

    Raises:
        UserError: they have no object to learn.
    """
    chosen, left = [], {}
    for entry in entries:
        why = ""
        if not len(entry.objects):
            why = "have no object"
        elif min(entry.objects.height, entry.objects.width) < LEAST:
            why = f"have a side of less than {LEAST} pixels"
        if why:
            left.setdefault(why, [0, entry.file])[0] += 1
        else:
            chosen.append(entry)
    if not any(entry.objects.learned.any() for entry in chosen):
        raise UserError(f"{file} has no object to learn in any of its {len(entries)} images")
    return chosen, [Left("images", why, count, first) for why, (count, first) in left.items()]
