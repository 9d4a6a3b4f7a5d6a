"""Encoded bytes -> uint8 pixels -> the square that the model sees. One image at a time, safe in threads.

Crops are those of timm and torchvision on Pillow images: cut first, then resize with Pillow's antialiased filter;
training takes a faster way to nearly the same pixels where it can.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lape_jax.data import exif, jpeg, pictures, resample
from lape_jax.data.boxes import Box, align, random_box
from lape_jax.data.pictures import MAX_PIXELS
from lape_jax.errors import UserError, nearest
from lape_jax.interpolation import filters_of


class Decoded(NamedTuple):
    """Pixels, uint8 (h, w, c), and what `pictures.Picture` says of the file that they are from."""

    pixels: np.ndarray
    orientation: int = 1
    dim: bool = False


def decode(
    image: bytes | UInt8[np.ndarray, "h w c"], channels: int, name: str, orientation: str = "stored"
) -> UInt8[np.ndarray, "_h _w {channels}"]:
    """Decodes an image file (told apart by content, see `pictures.FORMATS`), or takes pixels as they are.

    Palettes and CMYK become RGB, alpha is dropped, 16-bit samples keep their high byte. Grey becomes three equal
    channels for channels=3; RGB becomes the ITU-R 601 luma for channels=1.

    Flipped bits inside a JPEG's compressed data are not always visible to a decoder; truncation always is.

    Args:
      orientation: "view" turns the image as its EXIF orientation says, "stored" leaves it as it is (`exif.CHOICES`).

    Raises:
      CorruptImage: the bytes are not a whole image of at most MAX_PIXELS pixels, or as `pictures.read` says.
      UserError: channels is neither 1 nor 3, or an unknown orientation.
    """
    return examine(image, channels, name, orientation).pixels


def examine(
    image: bytes | UInt8[np.ndarray, "h w c"], channels: int, name: str, orientation: str = "stored"
) -> Decoded:
    """`decode`, and what the file says of itself."""
    if channels not in (1, 3):
        raise UserError(f"images can be decoded to 1 or 3 channels, not {channels}")
    if orientation not in exif.CHOICES:
        raise UserError(f"data.orientation: {nearest(orientation, exif.CHOICES)}")
    mode = "RGB" if channels == 3 else "L"
    if isinstance(image, np.ndarray):
        if image.shape[-1] == channels:
            return Decoded(image)
        return Decoded(_pixels(resample.to_pillow(image).convert(mode), channels))
    found = pictures.read(image, name)
    pixels = _pixels(pictures.converted(found.image, mode, name), channels)
    pixels = exif.turn(pixels, found.orientation) if orientation == "view" else pixels
    return Decoded(pixels, found.orientation, found.dim)


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def train_image(
    image: bytes | UInt8[np.ndarray, "h w c"],
    channels: int,
    name: str,
    *,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
    orientation: str = "stored",
) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """A random resized crop of an image file, or of pixels: decoded, cut out at a random box, and resized.

    A whole colour JPEG takes the fast way: only the rows down to the end of the box are decoded, at a fraction of the
    size if the box is much larger than the square (see `jpeg`), and `resample.resize_fast` resizes it. The result
    differs from the exact one by about one grey level on average. All other files, and those that the fast way refuses,
    are decoded whole by `decode`, which finds what is wrong with them, and cropped exactly as by `train_crop`.

    So truncation is always visible here, too: what does not end as a JPEG should is left to `decode`.

    Args:
      interpolation: bicubic | bilinear | random (one of the two for each image).
      orientation: as for `decode`. The box is one of the image as it is looked at, wherever that lies in the file.

    Raises:
      CorruptImage, UserError: as `decode` does.
    """
    header = jpeg.read_header(image) if isinstance(image, bytes) and channels == 3 else None
    if header is None or header.height * header.width > MAX_PIXELS:
        return train_crop(decode(image, channels, name, orientation), size, rng, scale, ratio, interpolation)
    turned = header.orientation if orientation == "view" else 1
    height, width = exif.shown_size(header.height, header.width, turned)
    box = exif.stored_box(random_box(height, width, rng, scale, ratio), height, width, turned)
    box = align(box, jpeg.reduction(box, size), header.height, header.width)
    kind = _draw_filter(rng, interpolation)
    pixels = jpeg.decode_box(image, header, box, size)
    if pixels is None:
        pixels = decode(image, channels, name)[box.top : box.bottom, box.left : box.right]
        return resample.resize(exif.turn(pixels, turned), size, size, kind)
    return resample.resize_fast(exif.turn(pixels, turned), size, kind)


def train_crop(
    image: UInt8[np.ndarray, "h w c"],
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str = "bicubic",
) -> UInt8[np.ndarray, "{size} {size} c"]:
    """A random resized crop of pixels, as in timm and torchvision: a random box, resized by Pillow."""
    box = random_box(*image.shape[:2], rng, scale, ratio)
    part = image[box.top : box.bottom, box.left : box.right]
    return resample.resize(part, size, size, _draw_filter(rng, interpolation))


def _draw_filter(rng: np.random.Generator, interpolation: str) -> str:
    filters = filters_of(interpolation)
    return filters[int(rng.random() * len(filters))] if len(filters) > 1 else filters[0]


def eval_crop(image: UInt8[np.ndarray, "h w c"], size: int, crop_ratio: float) -> UInt8[np.ndarray, "{size} {size} c"]:
    """Resizes the shorter side to floor(size / crop_ratio), keeping the aspect ratio, and cuts out the centre.

    Raises:
      UserError: crop_ratio is not in (0, 1].
    """
    if not 0 < crop_ratio <= 1:  # margins would be negative, and cut out something else without a word
        raise UserError(f"crop_ratio is {crop_ratio}, but must be above 0 and at most 1")
    height, width = image.shape[:2]
    short = math.floor(size / crop_ratio)
    # Truncating the longer side and rounding margins half to even is what torchvision's Resize and CenterCrop do.
    new_height, new_width = (short, short * width // height) if height <= width else (short * height // width, short)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    if new_height * new_width > MAX_PIXELS:  # of a very narrow image only the centre is made
        return resample.resize_part(image, new_height, new_width, Box(top, left, size, size))
    return resample.resize(image, new_height, new_width)[top : top + size, left : left + size]
