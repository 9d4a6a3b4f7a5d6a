"""What a data set gives: examples or scenes, by index."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

# In a map of labels, int32 (h, w): classes count from 0; nothing negative is learned or counted.
IGNORE, PADDING = -1, -2  # an image pixel of unknown class; a place outside the image


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """An image as it is stored (an encoded file, or pixels), its class, and a name by which a person can find it."""

    image: bytes | UInt8[np.ndarray, "h w c"]
    label: int
    name: str


@runtime_checkable
class Source(Protocol):
    """A data set. Reading is safe from many threads at once and raises CorruptImage for what cannot be read."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """An image, its map of labels, both as they are stored, and a name by which a person can find it.

    Attributes:
      mask: an encoded PNG file of indices, or the indices; whether it fits the image is seen later (`masks`).
      first: the index that stands for class 0. Smaller ones and 255 stand for no class.
    """

    image: bytes | UInt8[np.ndarray, "h w c"]
    mask: bytes | Integer[np.ndarray, "rows columns"]
    name: str
    first: int = 0


@runtime_checkable
class SceneSource(Protocol):
    """A data set for segmentation. Reading is safe from many threads and raises CorruptImage for unreadable files."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...
