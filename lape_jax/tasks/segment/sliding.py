"""Windows that slide over an image, and how what is known of their patches becomes what is known of its pixels.

A canvas, the image resized, is covered by windows, which a model maps to logits M of their patches. These are upsampled
to the window, averaged where windows overlap, and resized to the image. Each step is linear and acts on rows and on
columns by itself (how many windows cover a pixel is a product, too), so that over all windows (i, j)

    logits of the image = sum_ij R_i M_ij C_j^T

with matrices R_i (rows of the image x rows of patches) and C_j, which `weights` computes. All interpolation is
bilinear between pixel centres at i + 1/2, borders repeated, without antialiasing, as PyTorch's `interpolate` with
`align_corners=False`.

Source: open-mmlab/mmsegmentation, `slide_inference`; rstrudel/segmenter, `segm/model/utils.py`.
"""

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from lape_jax.errors import UserError


def anchors(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis of `length` pixels: every `stride`, and the last so that it ends at the end.

    An axis that is shorter than a window is one window as it is.

    Raises:
        UserError: there would be gaps between the windows.
    """
    if not 0 < stride <= window:
        raise UserError(
            f"windows of {window} pixels that begin every {stride} leave gaps: use a stride of at most that"
        )
    return [*range(0, length - window, stride), max(length - window, 0)]


def windows(canvas: UInt8[np.ndarray, "h w c"], window: int, stride: int) -> list[UInt8[np.ndarray, "s s2 c"]]:
    """The windows (views of the canvas), row by row."""
    down, right = (anchors(length, window, stride) for length in canvas.shape[:2])
    return [canvas[top : top + window, left : left + window] for top in down for left in right]


def weights(
    length: int, canvas: int, window: int, stride: int, patches: int
) -> Float32[np.ndarray, "anchors length patches"]:
    """Weights that say, for each window along an axis, how much of each of its patches is in each pixel of the image.

    Args:
        length: pixels of the image along the axis.
        canvas: those of the canvas.
        window: those of a window, if the canvas has so many.
        stride: from window to window.
        patches: of a window, along the axis.
    """
    starts = anchors(canvas, window, stride)
    window = min(window, canvas)
    upsampled = resized(np.eye(patches), window)
    shares, covering = np.zeros((canvas, len(starts), patches)), np.zeros((canvas, 1, 1))
    for index, start in enumerate(starts):
        shares[start : start + window, index] = upsampled
        covering[start : start + window] += 1
    shares /= covering  # in place: this is the largest array of all
    return resized(shares, length).swapaxes(0, 1).astype(np.float32)


def resized(array: Float64[np.ndarray, "old ..."], size: int) -> Float64[np.ndarray, "size ..."]:
    """The array interpolated to `size` entries along its first axis."""
    last = len(array) - 1
    position = np.clip((np.arange(size) + 0.5) * len(array) / size - 0.5, 0, last)
    lower = np.floor(position).astype(np.int64)
    share = (position - lower).reshape(-1, *[1] * (array.ndim - 1))
    return (1 - share) * array[lower] + share * array[np.minimum(lower + 1, last)]
