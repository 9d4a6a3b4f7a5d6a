"""What a photo goes through before training and before evaluation: mirror images, sizes, crops.

The pipeline that ViT-Adapter trains COCO with (czczup/ViT-Adapter, `detection/configs/mask_rcnn/`, by the transforms of
open-mmlab/mmdetection 2.22, `datasets/pipelines/transforms.py`), on 8-bit pixels throughout. Boxes are moved in
float32, and cut at the borders of the image; what is left of one stays, however little it is. Masks go the way of the
pixels, but by the nearest place; of each pixel it is kept from which row and column of the mask it comes.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from lape_jax.data import rescale
from lape_jax.tasks.detect.photo import Objects


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image as far as it was changed.

    Attributes:
        pixels: the pixels of the image.
        boxes: x1, y1, x2, y2 in its pixels, of the objects that are still in it.
        kept: which of the original objects these are.
        rows, columns: of each row and column, which of the original ones it is.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    boxes: Float32[np.ndarray, "n 4"]
    kept: Int64[np.ndarray, " n"]
    rows: Int64[np.ndarray, " h"]
    columns: Int64[np.ndarray, " w"]


def train_photo(
    pixels: UInt8[np.ndarray, "h w 3"],
    objects: Objects,
    *,
    canvas: tuple[int, int],
    long: int,
    short: tuple[int, ...],
    crop_short: tuple[int, ...],
    crop: tuple[int, int],
    flip: bool,
    rng: np.random.Generator,
) -> Seen:
    """A random view of an image, at most as large as the canvas, and of the objects that are to be learned.

    1. Mirrored with probability 1/2 if `flip`.
    2. With probability 1/2, if there are any `crop_short`: resized to one of these as its shorter side (and at most
       `long` as its longer), and cropped to random sides between the numbers of `crop`.
    3. Resized to one of `short` as its shorter side (and at most `long` as its longer).
    4. Cropped to the canvas if it is larger, at a random place.

    All randomness is from `rng`, drawn in this order.
    """
    height, width = pixels.shape[:2]
    kept = np.flatnonzero(objects.learned)
    seen = Seen(pixels, objects.corners[kept], kept, np.arange(height), np.arange(width))
    if flip and rng.random() < 0.5:
        seen = mirrored(seen)
    if crop_short and rng.random() < 0.5:
        seen = resized(seen, (long, _one(crop_short, rng)))
        least, most = crop
        sides = [_between(min(side, least), min(side, most), rng) for side in seen.pixels.shape[:2]]
        seen = cropped(seen, *sides, rng)
    seen = resized(seen, (long, _one(short, rng)))
    sides = [min(side, limit) for side, limit in zip(seen.pixels.shape, canvas, strict=False)]
    return cropped(seen, *sides, rng)


def mirrored(seen: Seen) -> Seen:
    """x becomes width - x."""
    width, (x1, y1, x2, y2) = np.float32(seen.pixels.shape[1]), seen.boxes.T
    boxes = np.stack([width - x2, y1, width - x1, y2], axis=1)
    pixels = np.ascontiguousarray(seen.pixels[:, ::-1])
    return dataclasses.replace(seen, pixels=pixels, boxes=boxes, columns=seen.columns[::-1])


def resized(seen: Seen, scale: tuple[int, int]) -> Seen:
    """Resizes a photo to what `rescale.fit` makes of it within `scale`; boxes by the ratio of sides on each axis."""
    height, width = seen.pixels.shape[:2]
    new_height, new_width = rescale.fit(height, width, scale)
    ratios = np.array([new_width / width, new_height / height] * 2, np.float32)
    return Seen(
        rescale.resize(seen.pixels, new_height, new_width),
        _clipped(seen.boxes * ratios, new_height, new_width),
        seen.kept,
        seen.rows[rescale.nearest(height, new_height)],
        seen.columns[rescale.nearest(width, new_width)],
    )


def cropped(seen: Seen, height: int, width: int, rng: np.random.Generator) -> Seen:
    """Cut to this size, no larger than the image, at a uniform place; without the objects that lie outside."""
    top, left = (_between(0, had - side, rng) for had, side in zip(seen.pixels.shape, (height, width), strict=False))
    boxes = _clipped(seen.boxes - np.array([left, top] * 2, np.float32), height, width)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Seen(
        seen.pixels[top : top + height, left : left + width],
        boxes[inside],
        seen.kept[inside],
        seen.rows[top : top + height],
        seen.columns[left : left + width],
    )


def _clipped(boxes: Float32[np.ndarray, "n 4"], height: int, width: int) -> Float32[np.ndarray, "n 4"]:
    return np.clip(boxes, np.float32(0), np.array([width, height] * 2, np.float32))


def _one(choices: tuple[int, ...], rng: np.random.Generator) -> int:
    return choices[int(rng.random() * len(choices))]


def _between(least: int, most: int, rng: np.random.Generator) -> int:
    """A whole number, uniform, both ends included."""
    return least + int(rng.random() * (most - least + 1))


def on_canvas(pixels: UInt8[np.ndarray, "h w 3"], canvas: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """The image in the upper left corner of a black one."""
    whole = np.zeros((*canvas, 3), np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole
