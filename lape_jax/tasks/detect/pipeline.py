"""Batches of training photos, and whole photos for the evaluation, read ahead by threads.

As in `lape_jax.data.batches`, a batch is a function of (seed, step, position in the global batch) alone. The reference
makes its batches of two images of one orientation, to fill up less; on a canvas of one size nothing would be gained.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lape_jax.data import decode, exif, rescale
from lape_jax.data.ahead import Ahead
from lape_jax.data.batches import Batches, Fields, Reading, shuffled_batches
from lape_jax.data.example import Source
from lape_jax.errors import UserError
from lape_jax.tasks.detect import masks, transforms
from lape_jax.tasks.detect.bitmaps import bitmap
from lape_jax.tasks.detect.photo import Objects, Photo


def fields(most: int) -> Fields:
    """Shape and type of what is learned of an image with places for so many objects, by name, see `train_batches`."""
    return {
        "size": ((2,), np.int32),
        "boxes": ((most, 4), np.float32),
        "labels": ((most,), np.int32),
        "valid": ((most,), np.bool_),
        "masks": ((most, *masks.SHAPE), np.uint8),
    }


def train_batches(source: Source[Photo], config: ConfigDict, reading: Reading) -> Batches:
    """The batches that are asked for: shuffled epochs of random views (`transforms.train_photo`).

    Beside "image", the canvas, zero where there is no image, a batch has
        size: height and width of the image on the canvas.
        boxes, labels: of the objects, in pixels of the canvas.
        valid: which of the places hold one.
        masks: compact, see `lape_jax.tasks.detect.masks`.
    Of more objects than there are places, `detect.max_objects`, those that are learned are drawn anew each time.

    A photo that cannot be read is skipped (mask 0, all else 0), logged once, and listed in `Batches.corrupt`.

    Args:
        config: the config of the run.

    Raises:
        UserError: a batch that does not fit the data set or the processes; while iterating: a photo of another size
            than its annotations say, or too many that cannot be read.
    """
    data, canvas, most = config.data, tuple(config.detect.canvas), config.detect.max_objects

    def read(photo: Photo, rng: np.random.Generator) -> tuple:
        return learned(photo, data.orientation, canvas, most, view(config), rng)

    return shuffled_batches(
        source,
        read,
        (*canvas, 3),
        reading,
        fields=fields(most),
        chunk=1,  # a photo takes a thread long enough to be a task of its own
    )


def view(config: ConfigDict) -> Callable[..., transforms.Seen]:
    """`transforms.train_photo` with what a config asks for: (pixels, objects, rng=) -> what is seen."""
    detect = config.detect
    return functools.partial(
        transforms.train_photo,
        canvas=tuple(detect.canvas),
        long=detect.long,
        short=tuple(detect.short),
        crop_short=tuple(detect.crop_short),
        crop=tuple(detect.crop),
        flip=config.augment.flip,
    )


def learned(
    photo: Photo,
    orientation: str,
    canvas: tuple[int, int],
    most: int,
    view: Callable[..., transforms.Seen],
    rng: np.random.Generator,
) -> tuple:
    """What a batch has of a photo: (image, size, boxes, labels, valid, masks), see `train_batches`."""
    seen, chosen = seen_objects(photo, orientation, most, view, rng)
    objects = photo.objects
    boxes, labels = np.zeros((most, 4), np.float32), np.zeros(most, np.int32)
    valid, compact = np.arange(most) < len(chosen), np.zeros((most, *masks.SHAPE), np.uint8)
    boxes[valid], labels[valid] = seen.boxes[chosen], objects.labels[seen.kept[chosen]]
    for place, index in enumerate(chosen):
        compact[place] = masks.compact(seen_mask(objects, seen, index), seen.boxes[index])
    size = np.array(seen.pixels.shape[:2], np.int32)
    return transforms.on_canvas(seen.pixels, canvas), size, boxes, labels, valid, compact


def seen_objects(
    photo: Photo, orientation: str, most: int, view: Callable[..., transforms.Seen], rng: np.random.Generator
) -> tuple[transforms.Seen, list[int]]:
    """A view of a photo, and which of the objects in it are learned."""
    seen = view(examine(photo, orientation).pixels, photo.objects, rng=rng)
    chosen = np.arange(len(seen.boxes))
    if len(chosen) > most:
        chosen = np.sort(np.argsort(rng.random(len(chosen)), kind="stable")[:most])
    return seen, chosen.tolist()


def seen_mask(objects: Objects, seen: transforms.Seen, index: int) -> np.ndarray:
    """The mask of one of the objects that are seen, uint8 (h, w)."""
    whole = bitmap(objects.masks[seen.kept[index]], objects.height, objects.width)
    return whole[seen.rows[:, None], seen.columns]


def examine(photo: Photo, orientation: str, image: bytes | None = None) -> decode.Decoded:
    """The image, uint8 (h, w, 3), with what its file says of itself.

    Args:
        image: as it is stored, if it was read already.

    Raises:
        CorruptImage: it cannot be read.
        UserError: it has another size than its annotations say.
    """
    stored = photo.image() if image is None else image
    found, objects = decode.examine(stored, 3, photo.name, orientation), photo.objects
    height, width = found.pixels.shape[:2]
    if (height, width) == (objects.height, objects.width):
        return found
    hint = ""
    if found.orientation != 1 and (width, height) == (objects.height, objects.width):
        other = next(choice for choice in exif.CHOICES if choice != orientation)
        hint = f"; EXIF says that it is shown turned: --config.data.orientation={other}"
    raise UserError(
        f"{photo.name} has {width} x {height} pixels (width x height), but its annotations are for {objects.width} x "
        f"{objects.height}{hint}"
    )


class Whole(NamedTuple):
    """A photo for the evaluation: its index, its pixels, resized, and what these were resized by, down and across."""

    index: int
    pixels: np.ndarray
    ratios: np.ndarray


def whole_photos(source: Source[Photo], indices: Sequence[int], config: ConfigDict) -> Ahead[Whole]:
    """The photos of these indices in this order, as evaluation sees them."""
    data, scale = config.data, test_scale(config)

    def read(index: int) -> Whole:
        return whole(index, examine(source[index], data.orientation).pixels, scale)

    return Ahead(read, map(int, indices), data.threads)


def test_scale(config: ConfigDict) -> tuple[int, int]:
    """(longer, shorter) side that a photo is resized into for the evaluation."""
    return config.detect.test_long, config.detect.test_short


def whole(index: int, pixels: np.ndarray, scale: tuple[int, int]) -> Whole:
    """An image as evaluation sees it."""
    height, width = pixels.shape[:2]
    new_height, new_width = rescale.fit(height, width, scale)
    ratios = np.array([new_height / height, new_width / width], np.float32)
    return Whole(index, rescale.resize(pixels, new_height, new_width), ratios)
