"""A small RegNetY for comparisons with timm: its sizes, and weights and images that depend on nothing but NumPy."""

import math
import zlib

import numpy as np

# Four stages, the first of one group; the other widths are rounded to groups of 12: 8, 12, 36 (three blocks), 60.
SIZES = {"w0": 8, "wa": 8.0, "wm": 2.0, "depth": 6, "stem_width": 8, "num_classes": 5}
GROUP_WIDTH = 12
IMAGE_SIZE = (40, 33)  # odd sides on the way down: 20 x 17, 10 x 9, 5 x 5, 3 x 3, 2 x 2
STEPS = 3  # what the counters of training steps say


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float64 values for the entries of a state dict, each drawn by its name, of sizes that keep activations near 1."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def images(batch: int = 2) -> np.ndarray:
    """(batch, height, width, 3)."""
    return np.random.default_rng(0).standard_normal((batch, *IMAGE_SIZE, 3))


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.full(shape, STEPS)
    if name.endswith(("running_var", "bn.weight")):
        return rng.uniform(0.5, 1.5, shape)
    scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.3
    return scale * rng.standard_normal(shape)
