"""Batches of training scenes, and the whole scenes of an evaluation, read ahead by threads.

As in `lape_jax.data.batches`, a batch is a function of (seed, step, position in the global batch) alone.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lape_jax.data.ahead import Ahead
from lape_jax.data.batches import Batches, shuffled_batches
from lape_jax.data.example import Source
from lape_jax.tasks.segment import masks, transforms
from lape_jax.tasks.segment.scene import Scene


def train_scene_batches(
    source: Source[Scene],
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    total_steps: int,
    size: int,
    channels: int,
    scale: tuple[int, int],
    scale_range: tuple[float, float],
    max_class: float,
    flip: bool,
    distort: bool,
    threads: int,
    max_corrupt: int,
    orientation: str = "stored",
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """The batches of steps start_step .. total_steps-1: shuffled epochs of random crops.

    The crops are those of `transforms.train_scene`, and the labels of a batch are int32 (b, size, size). A scene
    whose image or map cannot be read is skipped (mask 0, image and labels 0), logged once, and listed in
    `Batches.corrupt`.

    Args:
      batch_size: of the global batch; this process makes an equal, contiguous share of it.
      max_corrupt: how many distinct unreadable scenes are tolerated, on each process.
      orientation: view | stored, as for `masks.decode_scene`.

    Raises:
      UserError: a batch that does not fit the data set or the processes; while iterating: a map that does not fit its
        image or the classes (`masks.decode_scene`), or too many unreadable scenes.
    """
    transform = functools.partial(
        transforms.train_scene,
        size=size,
        scale=tuple(scale),
        scale_range=tuple(scale_range),
        max_class=max_class,
        flip=flip,
        distort=distort,
    )

    def read(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return transform(*masks.decode_scene(scene, channels, len(source.classes), orientation), rng=rng)

    shape = (size, size)
    return shuffled_batches(
        source,
        read,
        (*shape, channels),
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        total_steps=total_steps,
        threads=threads,
        max_corrupt=max_corrupt,
        fields={"label": (shape, np.int32)},
        chunk=1,  # a scene takes a thread long enough to be a task of its own
        process_index=process_index,
        process_count=process_count,
    )


def scenes(
    source: Source[Scene], indices: Sequence[int], channels: int, threads: int, orientation: str = "stored"
) -> Ahead[tuple[np.ndarray, np.ndarray, str]]:
    """The scenes of these indices, whole and in this order: (pixels uint8 (h, w, c), labels int32 (h, w), name)."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray, str]:
        scene = source[index]
        return *masks.decode_scene(scene, channels, len(source.classes), orientation), scene.name

    return Ahead(read, map(int, indices), threads)
