"""Where a random crop lies."""

import math
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """Part of an image, in pixels: rows top to top + height, columns left to left + width."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width


def random_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The box of a random resized crop (Szegedy et al., "Going deeper with convolutions", CVPR 2015), as timm draws it.

    Its area is a uniform share `scale` of the image, its aspect ratio (width / height) log-uniform in `ratio`, and its
    place uniform. After ten tries that do not fit: the largest central box whose ratio is allowed.
    """
    for _ in range(10):
        area = height * width * (scale[0] + rng.random() * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + rng.random() * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
            return Box(top, left, h, w)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def align(box: Box, step: int, height: int, width: int) -> Box:
    """The box with its edges at the nearest multiples of `step`, but within the image (height, width).

    >>> align(Box(3, 4, 10, 10), 4, 14, 20)
    Box(top=4, left=4, height=8, width=12)
    """
    top, left = (round(edge / step) * step for edge in (box.top, box.left))
    bottom, right = min(round(box.bottom / step) * step, height), min(round(box.right / step) * step, width)
    return Box(top, left, bottom - top, right - left)
