"""Batches of training scenes, and the whole scenes of an evaluation, read ahead by threads.

As in `lape_jax.data.batches`, a batch is a function of (seed, step, position in the global batch) alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lape_jax.data.ahead import Ahead
from lape_jax.data.batches import Batches, Reading, shuffled_batches
from lape_jax.data.example import Source
from lape_jax.tasks.segment import masks, transforms
from lape_jax.tasks.segment.scene import Scene


@dataclasses.dataclass(frozen=True)
class View:
    """How training images and their maps are resized, cropped, mirrored and distorted, see `transforms.train_scene`."""

    size: int
    channels: int
    scale: tuple[int, int]
    scale_range: tuple[float, float]
    max_class: float
    flip: bool
    distort: bool
    orientation: str = "stored"

    def __call__(self, scene: Scene, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 (size, size, channels), int32 (size, size)) of a scene. Raises as `masks.decode_scene`."""
        return transforms.train_scene(
            *masks.decode_scene(scene, self.channels, classes, self.orientation),
            rng=rng,
            size=self.size,
            scale=self.scale,
            scale_range=self.scale_range,
            max_class=self.max_class,
            flip=self.flip,
            distort=self.distort,
        )


def train_scene_batches(source: Source[Scene], reading: Reading, view: View) -> Batches:
    """The batches that are asked for: shuffled epochs of random crops.

    The labels of a batch are int32 (b, size, size). A scene whose image or map cannot be read is skipped (mask 0, image
    and labels 0), logged once, and listed in `Batches.corrupt`.

    Raises:
      UserError: a batch that does not fit the data set or the processes; while iterating: a map that does not fit its
        image or the classes (`masks.decode_scene`), or too many unreadable scenes.
    """
    classes, shape = len(source.classes), (view.size, view.size)
    return shuffled_batches(
        source,
        lambda scene, rng: view(scene, classes, rng),
        (*shape, view.channels),
        reading,
        fields={"label": (shape, np.int32)},
        chunk=1,  # a scene takes a thread long enough to be a task of its own
    )


def scenes(
    source: Source[Scene], indices: Sequence[int], channels: int, threads: int, orientation: str = "stored"
) -> Ahead[tuple[np.ndarray, np.ndarray, str]]:
    """The scenes of these indices, whole and in this order: (pixels uint8 (h, w, c), labels int32 (h, w), name)."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray, str]:
        scene = source[index]
        return *masks.decode_scene(scene, channels, len(source.classes), orientation), scene.name

    return Ahead(read, map(int, indices), threads)
