"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): from the official files to train.npz and val.npz for data.source=arrays.

https://www.cs.toronto.edu/~kriz/cifar.html offers a binary and a Python version; both are read, from a directory or the
.tar.gz. The Python version consists of pickles: nothing that they name is imported or called, and they may hold no more
than lists, dicts, text, numbers and uint8 arrays.
"""

import contextlib
import io
import math
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lape_jax import atomic
from lape_jax.errors import UserError

SHAPE = (3, 32, 32)  # of a stored image: channels, rows, columns
PIXELS = math.prod(SHAPE)


class Version(NamedTuple):
    """One of the official versions: its files, and how they are read."""

    title: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    names: str
    read: Callable[[bytes], tuple[np.ndarray, np.ndarray]]  # file -> images (n, 3072), labels (n,)
    read_names: Callable[[bytes], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.val, self.names)


def convert(path: str, out: Path) -> tuple[str, dict[str, int]]:
    """Writes out/train.npz (image, label, classes) and out/val.npz (image, label): the official test images are val.

    Labels of CIFAR-100 are the fine ones. Both files are written under temporary names before either gets its own, so
    what was in `out` stays as it was if they cannot be.

    Args:
      path: the directory of the official files, the one above it, or the .tar.gz.

    Returns:
      Which version was found, and the number of images of each split.

    Raises:
      UserError: the files are not there, or damaged, or `out` cannot be written.
    """
    version, files = _find(path)
    try:
        classes = version.read_names(files[version.names])
        splits = {}
        for split, names in (("val", version.val), ("train", version.train)):
            parts = [_check(*version.read(files.pop(name)), len(classes)) for name in names]
            image = np.concatenate([images for images, _ in parts]).reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
            splits[split] = {"image": np.ascontiguousarray(image), "label": np.concatenate([part[1] for part in parts])}
    except Exception as error:  # whatever damage leads to
        raise UserError(f"{path} is no intact {version.title}: {error or type(error).__name__}") from error
    splits["train"]["classes"] = np.array(classes)
    _write(out, splits)
    return version.title, {split: len(arrays["label"]) for split, arrays in splits.items()}


def _write(out: Path, splits: dict[str, dict[str, np.ndarray]]) -> None:
    """Writes out/SPLIT.npz of all splits, or none of them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    with contextlib.ExitStack() as stack:  # whose files get their names when all are written
        for split, arrays in splits.items():
            np.savez(stack.enter_context(atomic.replacing(out / f"{split}.npz")), **arrays)


def _find(path: str) -> tuple[Version, dict[str, bytes]]:
    """The version that lies at `path`, and the content of its files."""
    wanted = {name for version in VERSIONS for name in version.files}
    root = Path(path).expanduser()
    try:
        if root.is_dir():
            found = [file for place in (root, *root.glob("*/")) for file in place.iterdir() if file.name in wanted]
            files = {file.name: file.read_bytes() for file in found if file.is_file()}
        else:
            with tarfile.open(root) as archive:
                members = [m for m in archive if m.isfile() and os.path.basename(m.name) in wanted]
                files = {os.path.basename(m.name): archive.extractfile(m).read() for m in members}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"--path: {path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for version in VERSIONS:
        if set(version.files) <= set(files):
            return version, files
    version = max(VERSIONS, key=lambda v: len(set(v.files) & set(files)))
    missing = ", ".join(name for name in version.files if name not in files)
    if files:
        raise UserError(f"{path} holds {version.title}, but not all of it: {missing} is missing")
    raise UserError(f"{path} holds none of the official files of CIFAR-10 or CIFAR-100 (binary or Python version)")


def _check(images: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS or len(images) != len(labels):
        raise ValueError(f"it has images of {images.dtype} {images.shape} and {len(labels)} labels")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"its labels are not those of {classes} classes")
    return images, labels.astype(np.int32)


def _read_binary(label_bytes: int) -> Callable[[bytes], tuple[np.ndarray, np.ndarray]]:
    """Records of some bytes of labels, the last of which counts, and the pixels."""

    def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
        if len(data) % (label_bytes + PIXELS):
            raise ValueError(f"{len(data)} bytes are no multiple of {label_bytes + PIXELS}")
        rows = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + PIXELS)
        return rows[:, label_bytes:], rows[:, label_bytes - 1]

    return read


def _read_python(label_key: str) -> Callable[[bytes], tuple[np.ndarray, np.ndarray]]:
    def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
        batch = unpickle(data)
        return batch["data"], np.array(batch[label_key])

    return read


def _python_names(key: str) -> Callable[[bytes], list[str]]:
    return lambda data: [_text(name) for name in unpickle(data)[key]]


def unpickle(data: bytes) -> dict[str, Any]:
    """The dict in a pickle of Python 2 or 3, with arrays of uint8.

    Raises:
      pickle.UnpicklingError: it names anything but numpy's way to store an array.
      ValueError, ...: it is damaged.
    """
    return {_text(key): value.array if isinstance(value, _Array) else value for key, value in _load(data).items()}


def _load(data: bytes) -> dict:
    return _Unpickler(io.BytesIO(data), encoding="bytes").load()  # text of Python 2, which may be pixels, is bytes


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


class _Array:
    """Takes the state of a numpy array from the pickle."""

    def __init__(self, *_: Any):  # of numpy's _reconstruct: a subclass, an empty shape and a type, all without meaning
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or fortran:
            raise pickle.UnpicklingError("an array is not of uint8, row by row")
        self.array = np.frombuffer(data, np.uint8).reshape(shape)


class _Dtype:
    """Takes the place of a numpy dtype, of which only uint8 is known."""

    def __init__(self, code: bytes | str, *_: Any):
        if _text(code) != "u1":
            raise pickle.UnpicklingError(f"an array is of {_text(code)!r}, not uint8")

    def __setstate__(self, state: tuple) -> None:
        pass  # byte order and the like: a byte has none


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no official file does")
        return _STAND_INS[module, name]


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


def _lines(data: bytes) -> list[str]:
    return data.decode().split()


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
VERSIONS = (
    Version(
        "CIFAR-10 (binary)",
        tuple(f"{name}.bin" for name in _BATCHES),
        ("test_batch.bin",),
        "batches.meta.txt",
        _read_binary(1),
        _lines,
    ),
    Version("CIFAR-100 (binary)", ("train.bin",), ("test.bin",), "fine_label_names.txt", _read_binary(2), _lines),
    Version(
        "CIFAR-10 (Python)",
        _BATCHES,
        ("test_batch",),
        "batches.meta",
        _read_python("labels"),
        _python_names("label_names"),
    ),
    Version(
        "CIFAR-100 (Python)",
        ("train",),
        ("test",),
        "meta",
        _read_python("fine_labels"),
        _python_names("fine_label_names"),
    ),
)
