"""Masks as they are stored -> bitmaps, and bitmaps -> RLE: COCO's own code, pycocotools, does it.

RLE counts pixels column by column: those outside the object, those inside, and so on.
"""

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco

from lape_jax.tasks.detect.photo import Stored


def bitmap(stored: Stored, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
    """1 where the object is, else 0. Polygons of one object are drawn one over the other."""
    if isinstance(stored, np.ndarray):
        return stored
    return coco.decode(rle(stored, height, width))


def rle(stored: Stored, height: int, width: int) -> dict:
    """{"size": [height, width], "counts": bytes}, compressed."""
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
