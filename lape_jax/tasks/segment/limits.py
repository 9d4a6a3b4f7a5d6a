"""How large and how narrow an image may be to be segmented: what it takes is known before it is allocated."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lape_jax.errors import UserError
from lape_jax.tasks.segment.transforms import canvas_size

MOST = 2**27  # numbers in a table of weights, or in the logits of an image's windows


class Limits(NamedTuple):
    """What decides on the cost of an image.

    Attributes:
        scale, factors: `segment.scale` and `segment.scales`.
        window, stride, multiple: pixels of a window's side, from one to the next, and `segment.multiple`.
        grid: patches in a row of a window.
        classes: that there are.
    """

    scale: tuple[int, int] = (2048, 512)
    factors: Sequence[float] = (1.0,)
    window: int = 512
    stride: int = 480
    grid: int = 32
    classes: int = 150
    multiple: int = 0

    def check(self, height: int, width: int) -> None:
        """Raises UserError if an image of this size is too narrow or too large.

        Along an axis of L pixels that n windows cover, `sliding.weights` has a table of n L g numbers, g = `grid`, so
        that what an image takes grows with the square of its length.
        """
        for factor in self.factors:
            canvas = canvas_size(height, width, tuple(self.scale), factor, self.window, self.multiple)
            counts = [math.ceil(max(side - self.window, 0) / self.stride) + 1 for side in canvas]
            longest = max(
                count * max(side, length) for count, side, length in zip(counts, canvas, (height, width), strict=True)
            )
            windows = math.prod(counts)
            if max(longest * self.grid, windows * self.grid**2 * self.classes) > MOST:
                raise UserError(
                    f"an image of {width} x {height} pixels (width x height) would be evaluated at {canvas[1]} x "
                    f"{canvas[0]} by {windows} windows, more than memory is for: it is too narrow for windows of "
                    f"{self.window}, or the scale too large"
                )


def of(config: Any, grid: int, classes: int) -> Limits:
    """Those of a run whose windows have so many patches in a row."""
    segment = config.segment
    sizes = config.data.image_size, segment.stride, grid, classes, segment.multiple
    return Limits(segment.scale, segment.scales, *sizes)
