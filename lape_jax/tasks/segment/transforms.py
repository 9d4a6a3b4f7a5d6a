"""What a scene goes through before training and before evaluation: sizes, crops, mirror images, colours.

The pipeline that MMSegmentation trains ADE20K with (open-mmlab/mmsegmentation 0.x, `configs/_base_/datasets/ade20k.py`
and `mmseg/datasets/pipelines/transforms.py`; the sizes are mmcv's), on 8-bit pixels throughout. OpenCV resizes: images
bilinearly and without antialiasing, maps by the nearest place, each the one that the reference takes.
"""

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from lape_jax.data.decode import MAX_PIXELS
from lape_jax.data.rescale import fit, resize, resize_labels, scaled
from lape_jax.errors import UserError
from lape_jax.tasks.segment.scene import PADDING

REDRAWS = 10  # of a crop that one class fills
BRIGHTNESS = 32.0  # greatest change, in grey levels
CONTRAST = SATURATION = (0.5, 1.5)  # factors
HUE = 18  # greatest change, of OpenCV's 180 steps around the circle


def train_scene(
    pixels: UInt8[np.ndarray, "h w c"],
    labels: Int32[np.ndarray, "h w"],
    *,
    size: int,
    scale: tuple[int, int],
    scale_range: tuple[float, float],
    max_class: float,
    flip: bool,
    distort: bool,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "{size} {size} c"], Int32[np.ndarray, "{size} {size}"]]:
    """A random square of a scene: resized, cropped, mirrored, its colours distorted, and filled up.

    1. Resized, in its proportions, into `scale` times a factor that is uniform in `scale_range` (see `fit`).
    2. Cropped to at most size x size, uniformly placed. While one class has at least the share `max_class` of the
       labelled pixels, or there are none, the crop is drawn anew, up to ten times; 1 leaves the first as it is.
    3. Mirrored with probability 1/2 if `flip`.
    4. `photometric_distortion` if `distort`.
    5. Filled up at the bottom and on the right: zeros, and PADDING in the map.

    All randomness is from `rng`, drawn in this order.
    """
    factor = scale_range[0] + rng.random() * (scale_range[1] - scale_range[0])
    height, width = fit(*labels.shape, scale, factor)
    pixels, labels = resize(pixels, height, width), resize_labels(labels, height, width)
    top, left = _crop_corner(labels, size, max_class, rng)
    pixels, labels = (array[top : top + size, left : left + size] for array in (pixels, labels))
    if flip and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    if distort:
        pixels = photometric_distortion(np.ascontiguousarray(pixels), rng)
    height, width = labels.shape
    image = np.zeros((size, size, pixels.shape[-1]), np.uint8)
    image[:height, :width] = pixels
    target = np.full((size, size), PADDING, np.int32)
    target[:height, :width] = labels
    return image, target


def canvas_size(
    height: int, width: int, scale: tuple[int, int], factor: float, least: int, multiple: int = 0
) -> tuple[int, int]:
    """The (height, width) that an image is evaluated at: `fit`, but the shorter side is `least` at least.

    Either way the image keeps its proportions. `least` is the side of a window, which so never sticks out. With a
    `multiple` it is `fit` with both sides enlarged to multiples of that instead, however small: `ResizeToMultiple` of
    MMSegmentation.

    >>> canvas_size(480, 640, (2048, 512), 1.0, 512)
    (512, 683)
    >>> canvas_size(480, 640, (2048, 512), 0.5, 512)
    (512, 683)
    >>> canvas_size(300, 1500, (2048, 512), 1.0, 512)
    (512, 2560)
    >>> canvas_size(300, 1500, (2048, 512), 1.0, 512, multiple=32)
    (416, 2048)

    Raises:
      UserError: that would be more than `decode.MAX_PIXELS` pixels, as for a very narrow image.
    """
    size = fit(height, width, scale, factor)
    if multiple:
        size = -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple
    elif min(size) < least:
        size = scaled(height, width, least / min(height, width))
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"an image of {width} x {height} pixels (width x height) would be evaluated at {size[1]} x {size[0]}, more "
            f"than {MAX_PIXELS} pixels: it is too narrow for windows of {least}, or the scale too large"
        )
    return size


def _crop_corner(
    labels: Int32[np.ndarray, "h w"], size: int, max_class: float, rng: np.random.Generator
) -> tuple[int, int]:
    """(top, left) of the crop, see `train_scene`."""
    height, width = (max(side - size, 0) + 1 for side in labels.shape)

    def draw() -> tuple[int, int]:
        return int(rng.random() * height), int(rng.random() * width)

    top, left = draw()
    if max_class < 1:
        for _ in range(REDRAWS):
            part = labels[top : top + size, left : left + size]
            counts = np.bincount(part[part >= 0])
            # A class alone is refused by its share, 1; with no labels at all there is nothing to divide by.
            if counts.any() and counts.max() / counts.sum() < max_class:
                break
            top, left = draw()
    return top, left


def photometric_distortion(pixels: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2; pixels are RGB, or grey (c = 1).

    Brightness adds u in [-32, 32); contrast multiplies by u in [0.5, 1.5), with probability 1/2 after the brightness
    and else at the end; saturation multiplies that of HSV by u in [0.5, 1.5); hue adds a whole number of -18 .. 17 to
    that of HSV, which OpenCV counts in 180 steps. After each, values are clipped and cut to 8 bits. Saturation and hue
    leave grey as it is (but are drawn).
    """
    colour = pixels.shape[-1] == 3
    if rng.random() < 0.5:
        pixels = _linear(pixels, 1.0, BRIGHTNESS * (2 * rng.random() - 1))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        pixels = _contrast(pixels, rng)
    if rng.random() < 0.5:
        factor = _between(SATURATION, rng)
        if colour:
            hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
            hsv[..., 1] = _linear(hsv[..., 1], factor, 0.0)
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        turn = int(rng.random() * 2 * HUE) - HUE
        if colour:
            hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + turn) % 180
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return pixels if contrast_first else _contrast(pixels, rng)


def _contrast(pixels: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
    return _linear(pixels, _between(CONTRAST, rng), 0.0) if rng.random() < 0.5 else pixels


def _between(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return limits[0] + rng.random() * (limits[1] - limits[0])


def _linear(values: UInt8[np.ndarray, "..."], factor: float, offset: float) -> UInt8[np.ndarray, "..."]:
    """factor values + offset in float32, clipped to 0..255, without what is behind the point."""
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(values), table).reshape(values.shape)
