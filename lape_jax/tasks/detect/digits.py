"""Small photos to detect objects in that need no files: scikit-learn's handwritten digits, six to an image."""

import numpy as np

from lape_jax.data import sources
from lape_jax.tasks.detect.photo import Objects, Photo

ROWS, COLUMNS, CELL = 2, 3, (48, 42)  # of an image; each cell holds a digit, somewhere
TIMES = (3, 4, 5)  # a digit of 8 x 8 pixels is shown so many times as large: the smallest anchors find no less
INK = 64  # of 255: a pixel at least as dark belongs to the digit


class DigitPhotos:
    """Images of 96 x 126 pixels, grey in three equal channels, of six digits of 24 to 40 pixels each.

    Every digit of the split (`lape_jax.data.sources.digits`) is in one image at most, in an order, at a place and of a
    size that are drawn once and for all: 239 images for training, 59 for validation. The mask of a digit is its ink.
    """

    classes = tuple(map(str, range(10)))

    def __init__(self, split: str):
        self._digits, self._split = sources.digits(split), split
        raw = np.random.Philox(key=len(self._digits)).random_raw(4 * len(self._digits)).reshape(4, -1)
        self._order = np.argsort(raw[0], kind="stable")
        self._chance = (raw[1:].T >> 11) / 2.0**53  # of size, row and column

    def __len__(self) -> int:
        return len(self._digits) // (ROWS * COLUMNS)

    def __getitem__(self, index: int) -> Photo:
        height, width = ROWS * CELL[0], COLUMNS * CELL[1]
        image, boxes, labels, masks = np.zeros((height, width), np.uint8), [], [], []
        for place in range(ROWS * COLUMNS):
            digit = self._order[ROWS * COLUMNS * index + place]
            size, down, across = self._chance[digit]
            times = TIMES[int(size * len(TIMES))]
            ink = self._digits.images[digit, :, :, 0].repeat(times, axis=0).repeat(times, axis=1)
            row, column = divmod(place, COLUMNS)
            top = row * CELL[0] + int(down * (CELL[0] - 8 * times + 1))
            left = column * CELL[1] + int(across * (CELL[1] - 8 * times + 1))
            image[top : top + 8 * times, left : left + 8 * times] = ink
            mask = np.zeros_like(image)
            mask[top : top + 8 * times, left : left + 8 * times] = ink >= INK
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes.append((columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1))
            labels.append(self._digits.labels[digit])
            masks.append(mask)
        count = len(labels)
        objects = Objects(
            height,
            width,
            np.array(boxes, np.float64),
            np.array(labels, np.int32),
            crowd=np.zeros(count, bool),
            learned=np.ones(count, bool),
            areas=np.array([mask.sum() for mask in masks], np.float64),
            masks=tuple(masks),
        )
        return Photo(lambda: np.repeat(image[..., None], 3, axis=-1), objects, f"digits {self._split}[{index}]", index)
