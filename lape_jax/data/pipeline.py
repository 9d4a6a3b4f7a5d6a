"""Batches of decoded and cropped images with a class each: shuffled to train on, in order to evaluate."""

import dataclasses

import numpy as np

from lape_jax import interpolation
from lape_jax.data import decode
from lape_jax.data.batches import CLASS, Batches, Reading, one_by_one, shuffled_batches
from lape_jax.data.example import Example, Source
from lape_jax.data.order import Share
from lape_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Crop:
    """How training images are cropped, see `decode.train_image`."""

    size: int
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str = "bicubic"
    orientation: str = "stored"

    def __call__(self, example: Example, rng: np.random.Generator) -> np.ndarray:
        """The crop of an encoded image, uint8 (size, size, channels). Raises CorruptImage if it cannot be read."""
        return decode.train_image(
            example.image,
            self.channels,
            example.name,
            rng=rng,
            size=self.size,
            scale=self.scale,
            ratio=self.ratio,
            interpolation=self.interpolation,
            orientation=self.orientation,
        )


def train_batches(source: Source, reading: Reading, crop: Crop) -> Batches:
    """The batches that are asked for: shuffled epochs, random resized crops.

    A corrupt image is skipped (mask 0), logged once by name, and listed in `Batches.corrupt`.

    Raises:
      UserError: an unknown interpolation, or a batch that does not fit the data set or the processes; while iterating:
        too many corrupt images.
    """
    interpolation.check(crop.interpolation)  # else a thread would find it out at the first image

    def read(example: Example, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        return crop(example, rng), example.label

    return shuffled_batches(source, read, (crop.size, crop.size, crop.channels), reading)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    size: int,
    channels: int,
    crop_ratio: float,
    threads: int,
    orientation: str = "stored",
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every example once, in order, centre-cropped; the last batch is filled up with mask 0.

    Every process makes the same number of batches.

    Raises:
      UserError: there are no examples, or the processes cannot share a batch; while iterating: a corrupt image.
    """
    if len(source) == 0:
        raise UserError("there are no examples to evaluate")

    def read(step: int, position: int) -> tuple[np.ndarray, int] | None:
        index = step * batch_size + position
        return read_eval(source[index], size, channels, crop_ratio, orientation) if index < len(source) else None

    positions = Share(process_index, process_count).positions(batch_size)
    steps = range(-(-len(source) // batch_size))
    fields = {"image": ((size, size, channels), np.uint8), **CLASS}
    return Batches(one_by_one(read), steps, positions, fields, threads, max_corrupt=0)


def read_eval(
    example: Example, size: int, channels: int, crop_ratio: float, orientation: str
) -> tuple[np.ndarray, int] | None:
    """An example as evaluation sees it: (uint8 pixels (size, size, channels), label); None if its label is negative.

    Raises:
      CorruptImage: it cannot be read.
    """
    if example.label < 0:
        return None
    pixels = decode.decode(example.image, channels, example.name, orientation)
    return decode.eval_crop(pixels, size, crop_ratio), example.label
