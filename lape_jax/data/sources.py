"""Data sets with random access: index -> (image, label, name). In which order they are read is decided elsewhere."""

import difflib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from lape_jax.data import ahead, listing, packed
from lape_jax.data.example import Example, Source
from lape_jax.data.pictures import NAMES, SUFFIXES
from lape_jax.errors import UserError, nearest

logger = logging.getLogger(__name__)

# By `data.source`, the key of the config that it cannot do without.
SOURCES = {"digits": "", "folder": "path", "arrays": "path", "tfds": "name", "packed": "path"}


def open_split(data_config: Any, split: str) -> Source:
    """Opens what `data_config` describes.

    Args:
      data_config: has the attributes source (one of `SOURCES`), path, name, train_split, val_split, and side of a pack.
      split: "train" or "val"; where it lies is data_config.train_split or data_config.val_split (digits: fixed).

    Raises:
      UserError: an unknown source, or one that is missing, empty or not laid out as it should be.
    """
    openers = {
        "digits": lambda where: digits(split),
        "folder": lambda where: folder(data_config.path, where, train=data_config.train_split),
        "arrays": lambda where: arrays(data_config.path, where, train=data_config.train_split),
        "tfds": lambda where: _records(data_config.name, data_config.path, where),
        "packed": lambda where: packed.open_packed(data_config.path, where, data_config.side),
    }
    return open_by(openers, data_config, split)


def open_alone(data_config: Any, split: str, learned: Sequence[str]) -> Source:
    """The same, but a split of files needs no other beside it: a folder's classes are those that it has itself.

    Args:
      learned: names of the classes that are known; those of arrays if train.npz, which would name them, is not there.

    Raises:
      UserError: as `open_split`.
    """
    where = {"train": data_config.train_split, "val": data_config.val_split}[split]
    match data_config.source:
        case "folder":
            return folder(data_config.path, where, train=where)
        case "arrays":
            names = os.path.join(os.path.expanduser(data_config.path), f"{data_config.train_split}.npz")
            known = None if os.path.isfile(names) else learned
            return arrays(data_config.path, where, data_config.train_split, known)
        case _:
            return open_split(data_config, split)


def open_by(openers: Mapping[str, Callable[[str], Source]], data_config: Any, split: str) -> Source:
    """What the opener of `data_config.source` makes of the place of a split, "train" or "val".

    Raises:
      UserError: there is no such opener; or what that one raises.
    """
    where = {"train": data_config.train_split, "val": data_config.val_split}[split]
    if data_config.source not in openers:
        raise UserError(f"data.source: {nearest(data_config.source, openers)}")
    return openers[data_config.source](where)


def _records(name: str, data_dir: str, split: str) -> Source:
    from lape_jax.data.records import tfds_records  # here, because importing TFDS takes a while

    return tfds_records(name, data_dir, split)


class ArraySource:
    """Pixels that are already in memory."""

    def __init__(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        labels: Sequence[int] | Int[np.ndarray, " n"],
        names: Sequence[str],
        classes: tuple[str, ...],
    ):
        self.images, self.labels, self.names, self.classes = images, labels, names, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]), self.names[index])


def digits(split: str) -> ArraySource:
    """The 1,797 handwritten digits, 8x8 pixels, that come with scikit-learn (UCI Optical Recognition, test part).

    A pixel v in 0..16 becomes p = round(255 v / 16), from which round(16 p / 255) gives v back. A fifth of each class
    (rounded) is for validation: always the same 359 images, whatever the seed; the other 1,438 are for training.
    """
    from sklearn.datasets import load_digits  # takes most of a second to import, for this source only

    data = load_digits()
    chosen: list[np.ndarray] = []
    for label in range(10):
        members = np.flatnonzero(data.target == label)
        keys = np.random.Philox(key=label).random_raw(len(members))
        held_out = np.argsort(keys, kind="stable")[: round(len(members) / 5)]
        mask = np.isin(np.arange(len(members)), held_out)
        chosen.append(members[mask if split == "val" else ~mask])
    indices = np.sort(np.concatenate(chosen))
    images = np.rint(data.images[indices] * 255 / 16).astype(np.uint8)[..., None]
    return ArraySource(
        images, data.target[indices], [f"digits[{i}]" for i in indices], tuple(str(label) for label in range(10))
    )


def arrays(root: str, split: str, train: str = "train", classes: Sequence[str] | None = None) -> ArraySource:
    """The images and labels in root/split.npz, with the class names of root/`train`.npz, or `classes`.

    Keys: `image` uint8 (n, h, w, c) with c = 1 or 3; `label` (n,), whole numbers from 0; in `train`.npz also `classes`,
    the names, one for each label. Nothing is unpickled. The files are read into memory, one split at a time.

    Raises:
      UserError: a file or a key is missing or damaged, or an array is of another kind than it should be.
    """
    root = os.path.expanduser(root)
    path, train_path = os.path.join(root, f"{split}.npz"), os.path.join(root, f"{train}.npz")
    if not root:
        raise UserError(f"data.path is empty: it must name a directory that holds {train}.npz and {split}.npz")
    if classes is not None:
        return _array_source(root, path, tuple(classes))
    (classes,) = _load_npz(root, train_path, "classes")
    if classes.ndim != 1 or classes.dtype.kind != "U" or len(set(classes.tolist())) != max(1, classes.size):
        raise UserError(f"classes of {train_path} must be different names, a list of text, not {_kind(classes)}")
    return _array_source(root, path, tuple(classes.tolist()))


def _array_source(root: str, path: str, classes: tuple[str, ...]) -> ArraySource:
    image, label = _load_npz(root, path, "image", "label")
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise UserError(f"image of {path} must be uint8 (n, h, w, 1 or 3), not {_kind(image)}")
    if label.dtype.kind not in "iu" or label.shape != image.shape[:1]:
        raise UserError(f"label of {path} must be whole numbers ({len(image)},), one per image, not {_kind(label)}")
    if label.min() < 0 or label.max() >= len(classes):
        wrong = int(np.flatnonzero((label < 0) | (label >= len(classes)))[0])
        raise UserError(
            f"label[{wrong}] of {path} is {label[wrong]}, but the {len(classes)} classes are 0 to {len(classes) - 1}"
        )
    names = [f"{path}[{i}]" for i in range(len(image))]
    return ArraySource(image, label.astype(np.int32), names, classes)


def _load_npz(root: str, path: str, *keys: str) -> list[np.ndarray]:
    """The arrays of these keys; others in the file are not read."""
    if not os.path.isdir(root):
        raise UserError(f"data.path {root!r} is not a directory")
    if not os.path.isfile(path):
        raise UserError(f"{root} has no file {os.path.basename(path)!r}; it holds {listing.some(listing.names(root))}")
    try:
        with open(path, "rb") as file:  # np.load would leave it open where it fails
            content = np.load(file, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            if missing := [key for key in keys if key not in content.files]:
                raise UserError(f"{path} has no array {missing[0]!r}; it holds {listing.some(content.files)}")
            return [content[key] for key in keys]
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


class FolderSource:
    """Image files, a directory for each class; `files` are paths relative to `root`."""

    def __init__(self, root: str, files: list[str], labels: np.ndarray, classes: tuple[str, ...]):
        self.root, self.files, self.labels, self.classes = root, files, labels, classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self.root, self.files[index])
        return Example(listing.read(path), int(self.labels[index]), path)


def folder(root: str, split: str, train: str = "train") -> FolderSource:
    """The image files below root/split/CLASS/, at any depth, sorted by class and path.

    They are told by their suffixes (`pictures.SUFFIXES`). Classes are the directories of root/`train`, sorted; those of
    another split must be among them. Hidden files and directories and what other programs leave there
    (`listing.CLUTTER`) are left out, as are other files (with a warning); symbolic links are followed.

    Raises:
      UserError: a directory is missing, has no classes or an unknown class, or a class has no images.
    """
    root = os.path.expanduser(root)
    if not root:
        raise UserError(f"data.path is empty: it must name a directory that holds {train}/ and {split}/")
    classes = _class_names(root, train)
    names = classes if split == train else _class_names(root, split)
    directory = os.path.join(root, split)
    if strangers := [name for name in names if name not in classes]:
        close = difflib.get_close_matches(strangers[0], classes, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"class {strangers[0]!r} of {directory} is not a class of {os.path.join(root, train)}{hint}")

    # Threads because a network file system answers slowly, but many questions at once.
    directories = [os.path.join(directory, name) for name in names]
    listings = list(ahead.each(lambda path: listing.list_files(path, SUFFIXES), directories, 16))
    for path, (images, others) in zip(directories, listings, strict=True):
        if not images:
            raise UserError(f"class directory {path} holds no {NAMES} file; it holds {listing.some(others)}")
    if others := [f"{name}/{path}" for name, (_, rest) in zip(names, listings, strict=True) for path in rest]:
        logger.warning("%s: left out %d files that are no %s: %s", directory, len(others), NAMES, listing.some(others))
    files = [f"{name}/{path}" for name, (images, _) in zip(names, listings, strict=True) for path in images]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.repeat([number[name] for name in names], [len(images) for images, _ in listings])
    return FolderSource(directory, files, labels, classes)


def _class_names(root: str, split: str) -> tuple[str, ...]:
    """The class directories of root/split, sorted."""
    directory = listing.check_directory(root, split)
    entries = listing.entries(directory)
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        found = listing.some([entry.name for entry in entries])
        raise UserError(f"{directory} has no class directories, only {found}; it must hold one directory per class")
    return tuple(names)
