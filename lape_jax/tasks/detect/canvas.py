"""On which canvases images of many sizes are put, so that few programs do for all of them."""

from collections import Counter
from collections.abc import Iterable

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
        pairs = [(a, b) for a in sorted(images) for b in sorted(images) if a < b]
        first, second = min(pairs, key=lambda pair: _added(*pair, images))
        both = _both(first, second)
        total = images.pop(first) + images.pop(second)
        images[both] += total
        held = {canvas: both if own in (first, second) else own for canvas, own in held.items()}
    return {size: held[padded(size)] for size in counts}


def _both(a: Size, b: Size) -> Size:
    return max(a[0], b[0]), max(a[1], b[1])


def _added(a: Size, b: Size, images: Counter[Size]) -> int:
    height, width = _both(a, b)
    return sum(images[one] * (height * width - one[0] * one[1]) for one in (a, b))
