"""On which canvases images of many sizes are put, so that few programs do for all of them."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

STRIDE = 32  # sides of a canvas are multiples of it
Size = tuple[int, int]  # height, width


def padded(size: Size) -> Size:
    """The smallest canvas that holds an image of this size.

    >>> padded((800, 1067))
    (800, 1088)
    """
    height, width = (-(-side // STRIDE) * STRIDE for side in size)
    return height, width


def choose(sizes: Iterable[Size], most: int) -> dict[Size, Size]:
    """Size -> canvas, for all the sizes; of canvases there are at most so many, or with 0 as many as it takes.

    From one canvas for each size on, those two are replaced by one that holds both which adds the fewest pixels over
    all images, until they are few enough.

    >>> choose([(20, 30)] * 5 + [(20, 60), (90, 30)], most=2)
    {(20, 30): (32, 64), (20, 60): (32, 64), (90, 30): (96, 32)}
    """
    counts = Counter(sizes)
    images: Counter[Size] = Counter()
    for size, count in counts.items():
        images[padded(size)] += count
    held = {canvas: canvas for canvas in images}
    while most and len(images) > most:
        first, second = _nearest(images)
        both = max(first[0], second[0]), max(first[1], second[1])
        total = images.pop(first) + images.pop(second)
        images[both] += total
        held = {canvas: both if own in (first, second) else own for canvas, own in held.items()}
    return {size: held[padded(size)] for size in counts}


def _nearest(images: Counter[Size]) -> tuple[Size, Size]:
    """The two canvases, of so many images each, that one can take the place of at the least cost."""
    canvases = sorted(images)
    sides, counts = np.array(canvases), np.array([images[canvas] for canvas in canvases])
    area = sides.prod(axis=1)
    both = np.maximum(sides[:, None], sides).prod(axis=-1)
    added = counts * (both - area) + (counts * (both - area)).T
    np.fill_diagonal(added, np.iinfo(added.dtype).max)
    first, second = np.unravel_index(added.argmin(), added.shape)
    return canvases[first], canvases[second]
