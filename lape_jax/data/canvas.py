"""Whole images of any proportions in arrays of one size, to be cropped on the device (`lape_jax.augment.canvas`).

A canvas is uint8 (3 side, side): row 3 y + c holds channel c of row y of an image, from the left; the rest is zero.
So the rows of an image are one piece of memory, and products with matrices resize both of its axes where they lie.
"""

import functools
from collections.abc import Callable
from concurrent.futures import CancelledError
from threading import Event
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from lape_jax.data import resample
from lape_jax.data.batches import CLASS, Batch, Batches, Fields, Reading, asked, shuffled_indices
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.memory import Recycled
from lape_jax.data.order import Share
from lape_jax.errors import UserError

CHANNELS = 3
SIDE = 256  # unless another one is asked for
CHUNK = 32  # images that are a task for a thread: a copy each
BLANK = -1  # index of no example, for a canvas that stays blank


@runtime_checkable
class CanvasSource(Protocol):
    """A data set that writes its images to canvases.

    Attributes:
      side: the side of a canvas, in pixels.
      labels: the labels of all examples.
      sizes: (height, width) of all images.
    """

    side: int
    labels: Int32[np.ndarray, " n"]
    sizes: Int32[np.ndarray, "n 2"]

    def __len__(self) -> int: ...

    def paint(
        self, indices: Int[np.ndarray, " b"], canvases: UInt8[np.ndarray, "b rows side"]
    ) -> dict[int, CorruptImage]:
        """Writes the images of these indices (or BLANK) to canvases, whatever was on them.

        Returns those that cannot be read, by their place among them; their canvases are blank, too.
        """
        ...


def fit(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """The image reduced to fit side x side (`shrunk`) by Pillow's antialiased bicubic filter."""
    size = shrunk(*pixels.shape[:2], side)
    return pixels if size == pixels.shape[:2] else resample.resize(pixels, *size)


def shrunk(height: int, width: int, side: int) -> tuple[int, int]:
    """The largest size of these proportions, up to rounding, within side x side; never larger than it was.

    >>> shrunk(375, 500, 256), shrunk(100, 200, 256), shrunk(2000, 3, 256)
    ((192, 256), (100, 200), (256, 1))
    """
    longer = max(height, width)
    if longer <= side:
        return height, width
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


def painted(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "_rows {side}"]:
    """The rows of a canvas that the image takes: 3 h of them."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, CHANNELS, side), np.uint8)
    rows[:, :, :width] = pixels.swapaxes(1, 2)
    return rows.reshape(height * CHANNELS, side)


def whole(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "_rows {side}"]:
    """The canvas with the image."""
    rows = painted(pixels, side)
    return np.pad(rows, ((0, CHANNELS * side - len(rows)), (0, 0)))


def cut(rows: UInt8[np.ndarray, "_rows side"], width: int) -> UInt8[np.ndarray, "_h {width} 3"]:
    """The image in these rows of a canvas."""
    image = rows.reshape(-1, CHANNELS, rows.shape[-1])[:, :, :width]
    return np.ascontiguousarray(image.swapaxes(1, 2))


def fields(side: int) -> Fields:
    """What a batch has of an example: the canvas, the image's height and width, and the class."""
    return {"image": ((CHANNELS * side, side), np.uint8), "size": ((2,), np.int32), **CLASS}


def train_batches(source: CanvasSource, reading: Reading) -> Batches:
    """The batches that are asked for: the examples of `pipeline.train_batches`, on canvases.

    An image that cannot be read is skipped (mask 0), logged once by name, and listed in `Batches.corrupt`.

    Raises:
      UserError: a batch that does not fit the data set or the processes; while iterating: too many unreadable images.
    """
    fill = functools.partial(_fill, source, shuffled_indices(len(source), reading))
    return asked(fill, reading, fields(source.side), CHUNK, Recycled().empty)


def eval_batches(
    source: CanvasSource, *, batch_size: int, threads: int, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Every example once, in order, on canvases; the last batch is filled up with mask 0, as for negative labels.

    Every process makes the same number of batches.

    Raises:
      UserError: there are no examples, or the processes cannot share a batch; while iterating: an unreadable image.
    """
    if len(source) == 0:
        raise UserError("there are no examples to evaluate")

    def indices(step: int) -> np.ndarray:
        return np.arange(step * batch_size, (step + 1) * batch_size)

    positions = Share(process_index, process_count).positions(batch_size)
    steps, fill = range(-(-len(source) // batch_size)), functools.partial(_fill, source, indices)
    return Batches(fill, steps, positions, fields(source.side), threads, 0, CHUNK, Recycled().empty)


def _fill(
    source: CanvasSource,
    indices: Callable[[int], np.ndarray],
    step: int,
    positions: range,
    rows: Batch,
    stopped: Event,
) -> list[CorruptImage]:
    """Fills rows with the examples `indices(step)[positions]`, as far as there are such, and they have a class."""
    if stopped.is_set():
        raise CancelledError
    chosen = indices(step)[positions.start : positions.stop]
    known = chosen < len(source)
    labels = np.where(known, source.labels[chosen * known], -1)
    present = labels >= 0
    unreadable = source.paint(np.where(present, chosen, BLANK), rows["image"])
    present[list(unreadable)] = False
    rows["mask"][:], rows["label"][:] = present, labels * present
    rows["size"][:] = source.sizes[chosen * known] * present[:, None]
    return list(unreadable.values())
