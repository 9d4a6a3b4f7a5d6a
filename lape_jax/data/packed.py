"""Data sets that `python -m lape_jax.prepare pack` wrote: whole images, decoded and of a modest size, read by one copy.

    PACK/pack.json                     what there is; it is written last, so a directory without it is no pack
    PACK/train-00000-of-00079.pixels   images one after the other: of each the rows of a canvas (`canvas`) that it takes
    PACK/train-00000-of-00079.index    an array file of NumPy, one INDEX for each image of them

Plain files, because the system then copies an image from its cache to where the batch wants it; array_record would make
bytes of it first, in fresh memory, and these would be copied. They are read, and not mapped into memory: a mapped file
that gets shorter, or a disk that fails, kills the process, where reading is told of an error.
"""

import copy
import io
import json
import os
import weakref
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from lape_jax.data import canvas
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Example
from lape_jax.errors import UserError, nearest

FILE, PIXELS, INDEX_FILE = "pack.json", ".pixels", ".index"
UNFINISHED = ".incomplete"  # what the directory of a copy is called until it is whole
FORMAT = 1
KEYS = ("side", "orientation", "turned", "origin", "classes", "left_out", "splits")
# Of an image: its size here, that of the file it comes from, its class, and a checksum (CRC-32) of its bytes here.
INDEX = np.dtype(
    {
        "names": ["height", "width", "height_before", "width_before", "label", "crc"],
        "formats": ["<u2", "<u2", "<u4", "<u4", "<i4", "<u4"],
    }
)


class PackedSource:
    """One split of a pack.

    Attributes:
      side: the side of a canvas, in pixels.
      labels, sizes: labels of all examples, and sizes of their images, as for `canvas.CanvasSource`.
      root, files: the directory, and those that the split lies in.
      orientation: how images were turned: view | stored.
      turned: how many images of the pack noted an EXIF orientation in their files.
    """

    def __init__(self, root: str, split: str, about: dict[str, Any]):
        self.root, self.split, self.side = root, split, about["side"]
        self.orientation, self.turned = about["orientation"], about["turned"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        shards = about["splits"][split]
        self.files = [shard["name"] + suffix for shard in shards for suffix in (PIXELS, INDEX_FILE)]
        index = np.concatenate([_index(root, shard, self.side, len(self.classes)) for shard in shards])
        self.labels = index["label"].astype(np.int32)
        self.sizes = np.stack([index["height"], index["width"]], 1).astype(np.int32)
        self._crc = index["crc"]
        self._bytes = index["height"].astype(np.int64) * (canvas.CHANNELS * self.side)
        counts = [shard["examples"] for shard in shards]
        ends = np.cumsum(self._bytes)
        starts = np.concatenate([[0], ends[np.cumsum(counts)[:-1] - 1]])
        self._offsets = ends - self._bytes - np.repeat(starts, counts)
        handles = [_open(os.path.join(root, shard["name"] + PIXELS), shard["bytes"]) for shard in shards]
        self._handles = np.repeat(handles, counts)
        weakref.finalize(self, _close, handles)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """The image, checked against its checksum."""
        rows = np.empty((int(self.sizes[index, 0]) * canvas.CHANNELS, self.side), np.uint8)
        self._read(int(self._handles[index]), memoryview(rows).cast("B"), int(self._offsets[index]), index)
        if zlib.crc32(rows) != self._crc[index]:
            raise CorruptImage(self.name(index), "its pixels do not agree with their checksum")
        return Example(canvas.cut(rows, int(self.sizes[index, 1])), int(self.labels[index]), self.name(index))

    def name(self, index: int) -> str:
        """What a person finds an image by."""
        return f"{self.root} {self.split}[{index}]"

    def paint(
        self, indices: Int[np.ndarray, " b"], canvases: UInt8[np.ndarray, "b rows side"]
    ) -> dict[int, CorruptImage]:
        """Writes images to canvases as `canvas.CanvasSource` asks: by one copy each, without a look at its checksum."""
        pixels = canvases.reshape(len(canvases), -1)
        memory, size, unreadable = memoryview(pixels).cast("B"), pixels.shape[1], {}
        places = zip(
            indices.tolist(),
            self._handles[indices].tolist(),
            self._offsets[indices].tolist(),
            self._bytes[indices].tolist(),
            strict=True,
        )
        for row, (index, handle, offset, length) in enumerate(places):
            if index == canvas.BLANK:
                length = 0
            try:
                self._read(handle, memory[row * size : row * size + length], offset, index)
            except CorruptImage as error:
                unreadable[row], length = error, 0
            pixels[row, length:] = 0
        return unreadable

    def relabelled(self, classes: Sequence[str], numbers: Sequence[int]) -> "PackedSource":
        """The same images under other names of classes and other numbers, negative ones for none."""
        other = copy.copy(self)
        other.classes, other.labels = tuple(classes), np.asarray(numbers, np.int32)[self.labels]
        other._owner = self  # who closes the files
        return other

    def _read(self, handle: int, memory: memoryview, offset: int, index: int) -> None:
        """Fills the memory from the file. Raises CorruptImage if that is not possible."""
        try:
            while count := os.preadv(handle, (memory,), offset):
                if count == len(memory):
                    return
                memory, offset = memory[count:], offset + count  # on some network file systems
        except OSError as error:
            raise CorruptImage(self.name(index), error.strerror or str(error)) from error
        if memory:
            raise CorruptImage(self.name(index), "its file ends before it")


def is_pack(path: str) -> bool:
    """Whether the directory is a pack."""
    return os.path.isfile(os.path.join(path, FILE))


def describe(path: str) -> dict[str, Any]:
    """What the pack at `path` says of itself.

    Keys: side, orientation, turned, origin, classes, left_out {name: reason}, and splits {name: [{name, examples,
    bytes, index_crc}, ...]}, the files of it.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if "://" in path:
        raise UserError(f"data.path {path!r} is not on a file system: copy or mount the pack, and name its directory")
    if not path or not os.path.isdir(path):
        unfinished = f"{path.rstrip('/')}{UNFINISHED}"
        if path and os.path.isdir(unfinished):
            raise UserError(f"{path} is not finished, only begun as {unfinished}: prepare pack has to be run again")
        raise UserError(f"data.path {path!r} is not a directory")
    place = os.path.join(path, FILE)
    try:
        with open(place, encoding="utf-8") as file:
            about = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path} has no {FILE}, so it is no pack: python -m lape_jax.prepare pack makes one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{place} is not the description of a pack of format {FORMAT}")
    if missing := [key for key in KEYS if key not in about]:
        raise UserError(f"{place} is damaged: it lacks {missing[0]!r}")
    return about


def open_packed(path: str, split: str, side: int | None = None) -> PackedSource:
    """A split of the pack at `path`.

    Args:
      side: the side of the canvases that are expected, if any.

    Raises:
      UserError: there is no such pack or split, its canvases have another side, or a file is missing or damaged.
    """
    path = os.path.expanduser(path)
    about = describe(path)
    if split not in about["splits"]:
        raise UserError(f"split {nearest(split, about['splits'])} of {path}")
    if side is not None and about["side"] != side:
        raise UserError(
            f"{path} holds images packed with side {about['side']}, and data.side is {side}: set "
            f"--config.data.side={about['side']}, or pack them anew"
        )
    return PackedSource(path, split, about)


def _index(root: str, shard: dict[str, Any], side: int, classes: int) -> np.ndarray:
    """The INDEX entries of a file. Raises UserError if they are not those that were written."""
    path = os.path.join(root, shard["name"] + INDEX_FILE)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if zlib.crc32(data) != shard["index_crc"]:
        raise UserError(f"{path} is damaged: it does not agree with its checksum in {FILE}")
    index = np.load(io.BytesIO(data), allow_pickle=False)
    if len(index) != shard["examples"] or index["label"].max(initial=0) >= classes or index["height"].max() > side:
        raise UserError(f"{path} does not fit {FILE} beside it, which is that of another pack")
    return index


def _open(path: str, size: int) -> int:
    """The file's handle. Raises UserError if it is not there, or has not so many bytes."""
    try:
        handle = os.open(path, os.O_RDONLY)
        found = os.fstat(handle).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != size:
        os.close(handle)
        raise UserError(f"{path} has {found:,} bytes instead of {size:,}: it is damaged, or not copied to its end")
    return handle


def _close(handles: Sequence[int]) -> None:
    for handle in handles:
        os.close(handle)
