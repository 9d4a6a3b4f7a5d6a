"""Small scenes to segment that need no files: scikit-learn's handwritten digits, twelve to an image."""

import numpy as np

from lape_jax.data import sources
from lape_jax.tasks.segment.scene import Scene

ROWS, COLUMNS, CELL = 3, 4, 16  # of an image; a digit of 8 x 8 pixels is shown twice as large
INK = 64  # of 255: a pixel at least as dark belongs to the digit


class DigitScenes:
    """Images of 48 x 64 pixels, grey in three equal channels; class 0 is paper, class 1 + d the ink of digit d.

    Every digit of the split (`lape_jax.data.sources.digits`) is in one image at most, in an order mixed once and for
    all: 119 images for training, 29 for validation.
    """

    classes = ("paper", *map(str, range(10)))

    def __init__(self, split: str):
        self._digits = sources.digits(split)
        self._order = np.argsort(np.random.Philox(key=len(self._digits)).random_raw(len(self._digits)), kind="stable")
        self._split = split

    def __len__(self) -> int:
        return len(self._digits) // (ROWS * COLUMNS)

    def __getitem__(self, index: int) -> Scene:
        chosen = self._order[ROWS * COLUMNS * index :][: ROWS * COLUMNS]
        ink = self._digits.images[chosen, :, :, 0].repeat(CELL // 8, axis=1).repeat(CELL // 8, axis=2)
        labels = np.where(ink >= INK, 1 + self._digits.labels[chosen][:, None, None], 0)
        image, mask = (
            cells.reshape(ROWS, COLUMNS, CELL, CELL).swapaxes(1, 2).reshape(ROWS * CELL, COLUMNS * CELL)
            for cells in (ink, labels.astype(np.uint8))
        )
        return Scene(np.repeat(image[..., None], 3, axis=-1), mask, f"digits {self._split}[{index}]")
