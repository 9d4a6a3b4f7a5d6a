"""What a data set gives to detect objects in: photos, by index."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

# What a mask is stored as: polygons, each x1, y1, x2, y2, ...; RLE of COCO's, run lengths or a text; a bitmap; or None.
Polygons = tuple[Float64[np.ndarray, " _n"], ...]
Stored = Polygons | dict | UInt8[np.ndarray, "_h _w"] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Objects:
    """What is annotated in an image of `height` x `width` pixels, one row for each object, all of them.

    Attributes:
        boxes: x, y, width, height in pixels, as the file has them.
        labels: classes, from 0; negative where a model does not know it.
        crowd: which rows stand for a group of objects, that are not learned, and no mistake to find.
        learned: which rows are learned: no crowds, and nothing that has no area in the image.
        areas: in pixels, as the file has them.
        masks: as they are stored, see `lape_jax.tasks.detect.bitmaps`.
    """

    height: int
    width: int
    boxes: Float64[np.ndarray, "n 4"]
    labels: Int32[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    learned: Bool[np.ndarray, " n"]
    areas: Float64[np.ndarray, " n"]
    masks: tuple[Stored, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def corners(self) -> Float32[np.ndarray, "n 4"]:
        """The boxes as x1, y1, x2, y2."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1).astype(np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Photo:
    """An image, what is in it, a name by which a person can find it, and its number in the file.

    Attributes:
        image: reads it as it is stored, encoded or as pixels, or raises CorruptImage: many who ask for objects do not
            need the pixels.
    """

    image: Callable[[], bytes | UInt8[np.ndarray, "h w c"]]
    objects: Objects
    name: str
    number: int
