"""Encoded bytes -> uint8 pixels -> the square that the model sees. Pillow, one image at a time, safe in threads.

Crops are those of timm and torchvision on Pillow images: cut first, then resize with Pillow's antialiased bicubic
filter. EXIF orientation is ignored, as it is there.
"""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

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
        picture = _to_pillow(image)
    else:
        picture = _open(image, name)
    mode = "RGB" if channels == 3 else "L"
    if picture.mode != mode:
        picture = picture.convert(mode)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _open(data: bytes, name: str) -> Image.Image:
    """The decoded file, in its own colours but 8 bits deep."""
    if not data:
        raise CorruptImage(name, "it is empty (0 bytes)")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        # A switch of the whole process, which other libraries flip: truncated images would come out part grey.
        raise UserError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which would hide truncated images; set it to False"
        )
    try:
        picture = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
        picture.load()
    except Image.UnidentifiedImageError:
        raise CorruptImage(name, "it is not a JPEG or PNG image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptImage(name, f"it is too large ({error}; the limit is {MAX_PIXELS} pixels)") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise CorruptImage(name, str(error) or type(error).__name__) from error
    # Pillow would keep the transparent colour through the conversion, and warn where it cannot.
    picture.info.pop("transparency", None)
    if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip to 255; 16-bit RGB arrives as high bytes
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    return picture


def train_crop(
    image: UInt8[np.ndarray, "h w c"],
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> UInt8[np.ndarray, "{size} {size} c"]:
    """Random resized crop (Szegedy et al., "Going deeper with convolutions", CVPR 2015), as in timm and torchvision.

    The crop's area is a uniform share `scale` of the image, its aspect ratio (width / height) log-uniform in `ratio`,
    and its place uniform. After ten tries that do not fit: the largest central crop whose ratio is allowed.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * (scale[0] + rng.random() * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + rng.random() * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
            break
    else:
        w = min(width, max(1, round(height * ratio[1])))
        h = min(height, max(1, round(width / ratio[0])))
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(image[top : top + h, left : left + w], size, size)


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
    return _resize(image, new_height, new_width)[top : top + size, left : left + size]


def _resize(image: UInt8[np.ndarray, "h w c"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} c"]:
    resized = _to_pillow(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(height, width, image.shape[-1])


def _to_pillow(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
