"""Encoded bytes -> uint8 pixels -> the square that the model sees. One image at a time, safe in threads.

Crops are those of timm and torchvision on Pillow images: cut first, then resize with Pillow's antialiased filter;
training takes a faster way to nearly the same pixels where it can. EXIF orientation is ignored, as it is there.
"""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from lape_jax.data import jpeg, resample
from lape_jax.data.boxes import Box, align, random_box
from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError

# Pillow's own threshold for a decompression bomb (2^30 / 4 / 3 pixels: a quarter of a gigabyte of RGB).
MAX_PIXELS = 89_478_485


def decode(image: bytes | UInt8[np.ndarray, "h w c"], channels: int, name: str) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes a JPEG or PNG file (told apart by content), or takes pixels as they are, and converts the colours.

    Palettes and CMYK become RGB, alpha is dropped, 16-bit samples keep their high byte. Grey becomes three equal
    channels for channels=3; RGB becomes the ITU-R 601 luma for channels=1.

    Flipped bits inside a JPEG's compressed data are not always visible to a decoder; truncation always is.

    Raises:
      CorruptImage: the bytes are not a whole JPEG or PNG image of at most MAX_PIXELS pixels.
      UserError: channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UserError(f"images can be decoded to 1 or 3 channels, not {channels}")
    if isinstance(image, np.ndarray):
        if image.shape[-1] == channels:
            return image
        picture = resample.to_pillow(image)
    else:
        picture = _open(image, name)
    mode = "RGB" if channels == 3 else "L"
    if picture.mode != mode:
        picture = picture.convert(mode)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _open(data: bytes, name: str) -> Image.Image:
    """The decoded file, in its own colours but 8 bits deep."""
    picture = open_picture(data, name, ("JPEG", "PNG"))
    # Pillow would keep the transparent colour through the conversion, and warn where it cannot.
    picture.info.pop("transparency", None)
    if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip to 255; 16-bit RGB arrives as high bytes
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    return picture


def open_picture(data: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """The decoded file of one of these formats (told apart by content), as Pillow gives it.

    Raises:
      CorruptImage: the bytes are not a whole image in one of the formats of at most MAX_PIXELS pixels.
    """
    if not data:
        raise CorruptImage(name, "it is empty (0 bytes)")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        # A switch of the whole process, which other libraries flip: truncated images would come out part grey.
        raise UserError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which would hide truncated images; set it to False"
        )
    try:
        picture = Image.open(io.BytesIO(data), formats=formats)
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
        picture.load()
    except Image.UnidentifiedImageError:
        raise CorruptImage(name, f"it is not a {' or '.join(formats)} image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptImage(name, f"it is too large ({error}; the limit is {MAX_PIXELS} pixels)") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise CorruptImage(name, str(error) or type(error).__name__) from error
    return picture


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
) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """A random resized crop of a JPEG or PNG file, or of pixels: decoded, cut out at a random box, and resized.

    A whole colour JPEG takes the fast way: only the rows down to the end of the box are decoded, at a fraction of the
    size if the box is much larger than the square (see `jpeg`), and `resample.resize_fast` resizes it. The result
    differs from the exact one by about one grey level on average. All other files, and those that the fast way refuses,
    are decoded whole by `decode`, which finds what is wrong with them, and cropped exactly as by `train_crop`.

    So truncation is always visible here, too: what does not end as a JPEG should is left to `decode`.

    Args:
      interpolation: bicubic | bilinear | random (one of the two for each image).

    Raises:
      CorruptImage, UserError: as `decode` does.
    """
    header = jpeg.read_header(image) if isinstance(image, bytes) and channels == 3 else None
    if header is None or header.height * header.width > MAX_PIXELS:
        return train_crop(decode(image, channels, name), size, rng, scale, ratio, interpolation)
    box = random_box(header.height, header.width, rng, scale, ratio)
    box = align(box, jpeg.reduction(box, size), header.height, header.width)
    kind = _draw_filter(rng, interpolation)
    pixels = jpeg.decode_box(image, header, box, size)
    if pixels is None:
        return _cut(decode(image, channels, name), box, size, kind)
    return resample.resize_fast(pixels, size, kind)


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
    return _cut(image, box, size, _draw_filter(rng, interpolation))


def _draw_filter(rng: np.random.Generator, interpolation: str) -> str:
    filters = resample.INTERPOLATIONS[interpolation]
    return filters[int(rng.random() * len(filters))] if len(filters) > 1 else filters[0]


def _cut(
    image: UInt8[np.ndarray, "h w c"], box: Box, size: int, interpolation: str
) -> UInt8[np.ndarray, "{size} {size} c"]:
    part = image[box.top : box.bottom, box.left : box.right]
    return resample.resize(part, size, size, interpolation)


def eval_crop(image: UInt8[np.ndarray, "h w c"], size: int, crop_ratio: float) -> UInt8[np.ndarray, "{size} {size} c"]:
    """Resizes the shorter side to floor(size / crop_ratio), keeping the aspect ratio, and cuts out the centre.

    Raises:
      UserError: crop_ratio is not in (0, 1].
    """
    if not 0 < crop_ratio <= 1:
        raise UserError(f"crop_ratio is {crop_ratio}, but must be above 0 and at most 1")
    height, width = image.shape[:2]
    short = math.floor(size / crop_ratio)
    # Truncating the longer side and rounding margins half to even is what torchvision's Resize and CenterCrop do.
    new_height, new_width = (short, short * width // height) if height <= width else (short * height // width, short)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return resample.resize(image, new_height, new_width)[top : top + size, left : left + size]
