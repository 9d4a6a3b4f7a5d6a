"""Masks as they are stored -> bitmaps, and bitmaps -> RLE: most of it by COCO's own code, pycocotools.

RLE counts pixels column by column: those outside the object, those inside, and so on.
"""

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco

from lape_jax.tasks.detect.photo import Stored


def bitmap(stored: Stored, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
    """1 where the object is, else 0, as everywhere if it has no mask. Polygons of one object are drawn one over the
    other."""
    if stored is None:
        return np.zeros((height, width), np.uint8)
    if isinstance(stored, np.ndarray):
        return stored
    lengths = runs(rle(stored, height, width)["counts"])  # pycocotools' own decoder warns of numpy 2
    return np.repeat(np.arange(len(lengths), dtype=np.uint8) % 2, lengths).reshape(width, height).T


def rle(stored: Stored, height: int, width: int) -> dict:
    """{"size": [height, width], "counts": bytes}, compressed."""
    if stored is None:
        stored = {"size": [height, width], "counts": [height * width]}
    if isinstance(stored, np.ndarray):
        return encode(stored)
    if isinstance(stored, tuple):
        return coco.merge(coco.frPyObjects([list(polygon) for polygon in stored], height, width))
    if isinstance(stored["counts"], list):
        return coco.frPyObjects(stored, height, width)
    return stored


def encode(pixels: UInt8[np.ndarray, "h w"]) -> dict:
    """A bitmap as compressed RLE."""
    return coco.encode(np.asfortranarray(pixels))


def area(stored: Stored, height: int, width: int) -> float:
    """Pixels of the object."""
    return float(coco.area(rle(stored, height, width)))


def box(stored: Stored, height: int, width: int) -> tuple[float, float, float, float]:
    """x, y, width, height of the object's pixels; zeros if there are none."""
    return tuple(coco.toBbox(rle(stored, height, width)).tolist())


def runs(counts: bytes) -> list[int] | None:
    """The run lengths in compressed RLE; None if it makes no sense.

    A letter has 5 bits, from "0" on, and a sixth that says that more follow; the lowest come first. From the fourth run
    on, a number is the difference from the run before the last.
    """
    letters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not letters.size or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        return None
    ends = np.flatnonzero(letters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        return None
    places = 5 * (np.arange(letters.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((letters & 31) << places, starts)
    values -= np.where(letters[ends] & 16, 1 << 5 * lengths, 0)
    values[1::2], values[2::2] = values[1::2].cumsum(), values[2::2].cumsum()
    return values.tolist()
