"""Resizing as OpenCV and mmcv do it, for whole images whose labels are resized with them: sizes, pixels, places.

Images are interpolated bilinearly and without antialiasing on 8 bits; maps take the nearest place, each the one that
OpenCV takes. (`lape_jax.data.resample` resizes as Pillow does.)
"""

import cv2
import numpy as np
from jaxtyping import Int64, Shaped, UInt8


def fit(height: int, width: int, scale: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """The largest (height, width) of these proportions within `scale` times `factor`: mmcv's arithmetic.

    With limits L = int(factor max(scale)) and S = int(factor min(scale)) of the longer and the shorter side,
    each side becomes int(side f + 1/2), but at least 1, where f = min(L / longer, S / shorter).

    >>> fit(480, 640, (2048, 512))
    (512, 683)
    >>> fit(100, 1000, (2048, 512), 0.5)
    (102, 1024)
    """
    long, short = int(max(scale) * factor), int(min(scale) * factor)
    return scaled(height, width, min(long / max(height, width), short / min(height, width)))


def scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    """Both sides times a factor, rounded, but at least 1."""
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize(pixels: UInt8[np.ndarray, "h w c"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} c"]:
    """Bilinear between pixel centres, without antialiasing, by OpenCV. c is 1 or 3."""
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(height, width, pixels.shape[-1])


def resize_labels(labels: Shaped[np.ndarray, "h w"], height: int, width: int) -> Shaped[np.ndarray, "{height} {width}"]:
    """Row i is row floor(i h / height) of `labels`, and so for columns, by OpenCV; of a type that it knows."""
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)


def nearest(old: int, new: int) -> Int64[np.ndarray, " new"]:
    """The old places, of so many, that the new ones along an axis take in `resize_labels`: floor(i old / new)."""
    places = np.arange(old, dtype=np.int32)[:, None]
    return resize_labels(places, new, 1)[:, 0].astype(np.int64)
