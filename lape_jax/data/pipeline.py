"""Batches of decoded and cropped images with a class each: shuffled to train on, in order to evaluate."""

import numpy as np

from lape_jax.data import decode, order, resample
from lape_jax.data.batches import CLASS, Batches, one_by_one, shuffled_batches
from lape_jax.data.example import Example, Source
from lape_jax.errors import UserError


def train_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    total_steps: int,
    size: int,
    channels: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    threads: int,
    max_corrupt: int,
    interpolation: str = "bicubic",
    orientation: str = "stored",
    repeats: int = 1,
    repeat_ranks: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """The batches of steps start_step .. total_steps-1: shuffled epochs, random resized crops (`decode.train_image`).

    A corrupt image is skipped (mask 0), logged once by name, and listed in `Batches.corrupt`.

    Args:
      batch_size: of the global batch; this process makes an equal, contiguous share of it.
      max_corrupt: how many distinct corrupt images are tolerated, on each process.
      interpolation: of the crops: bicubic | bilinear | random.
      orientation: view | stored, as for `decode.decode`.
      repeats: copies of an image in an epoch, see `order.batch_indices`, as for repeat_ranks.

    Raises:
      UserError: an unknown interpolation, or a batch that does not fit the data set or the processes; while iterating:
        too many corrupt images.
    """
    resample.check_interpolation(interpolation)
    crop = {"size": size, "scale": scale, "ratio": ratio, "interpolation": interpolation, "orientation": orientation}

    def read(example: Example, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        return decode.train_image(example.image, channels, example.name, rng=rng, **crop), example.label

    return shuffled_batches(
        source,
        read,
        (size, size, channels),
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        total_steps=total_steps,
        threads=threads,
        max_corrupt=max_corrupt,
        repeats=repeats,
        repeat_ranks=repeat_ranks,
        process_index=process_index,
        process_count=process_count,
    )


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

    positions = order.host_slice(batch_size, process_index, process_count)
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
