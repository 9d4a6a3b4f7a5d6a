"""What a data set to segment gives: scenes, by index."""

import dataclasses

import numpy as np
from jaxtyping import Integer, UInt8

# In a map of labels, int32 (h, w): classes count from 0; nothing negative is learned or counted.
IGNORE, PADDING = -1, -2  # an image pixel of unknown class; a place outside the image
NO_CLASS = 255  # an image pixel of unknown class, in files


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """An image, its map of labels, both as they are stored, and a name by which a person can find it.

    Attributes:
      mask: an encoded PNG file of indices, or the indices; whether it fits the image is seen later (`masks`).
      first: the index that stands for class 0. Smaller ones and 255 stand for no class.
      numbers: of each class in the mask the label that it gets, negative for none; None for the classes as they are.
    """

    image: bytes | UInt8[np.ndarray, "h w c"]
    mask: bytes | Integer[np.ndarray, "rows columns"]
    name: str
    first: int = 0
    numbers: tuple[int, ...] | None = None
