"""Image files -> Pillow's images of 8 bits, told apart by their content, and what the files say of themselves."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from lape_jax.data import exif
from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError

# What can be read, of files with several images the first; and what their names end in, wherever files are looked for.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
NAMES = "JPEG, PNG, WebP, BMP, TIFF or GIF"
# Pillow's own threshold for a decompression bomb (2^30 / 4 / 3 pixels: a quarter of a gigabyte of RGB).
MAX_PIXELS = 89_478_485
DIM = 64  # of 256: a file of 16 bits that does not get brighter holds fewer bits, more likely than a dark image


class Picture(NamedTuple):
    """An image as it is stored, in its own colours but 8 bits deep.

    Attributes:
        image: as it is stored.
        orientation: what EXIF notes of how it is to be shown, 1 if nothing.
        dim: whether it comes from 16 bits of which the upper ones are not used: it will be nearly black.
    """

    image: Image.Image
    orientation: int
    dim: bool


def read(data: bytes, name: str) -> Picture:
    """The file's image, see `Picture`.

    Of 16-bit samples the upper eight bits are kept, and of a TIFF whose BitsPerSample are 12 the upper eight of those.
    No other file says how many of its 16 bits are used: sBIT of a PNG tells from how many bits the samples were scaled
    up to 16 (PNG specification, "Sample depth scaling"), and MaxSampleValue of a TIFF must not change what is shown
    (TIFF 6.0). To stretch each image by its own maximum would change the brightness from image to image. So `dim` is
    said, and nothing is scaled.

    Raises:
        CorruptImage: the bytes are not a whole image of at most MAX_PIXELS pixels, or a TIFF of 32 bits or of signed
            numbers, which do not say what is white.
    """
    image = open_picture(data, name, FORMATS)
    # A TIFF file is what EXIF data are made like.
    turned = exif.orientation(data if image.format == "TIFF" else image.info.get("exif") or b"")
    if image.format == "TIFF":
        image = _stored_tiff(image, turned, name)
    # Pillow would keep the transparent colour through the conversion, and warn where it cannot.
    image.info.pop("transparency", None)
    deep = image.mode.startswith("I") or _is_deep(image, data)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to 255; 16-bit RGB arrives as high bytes
        bits = _bits(image)
        samples = np.clip(np.asarray(image).astype(np.int64), 0, 2**bits - 1)
        if image.format == "TIFF" and _tag(image, 262) == 0:  # PhotometricInterpretation: white is zero
            samples = 2**bits - 1 - samples
        deep &= bits == 16
        image = Image.fromarray((samples >> (bits - 8)).astype(np.uint8))
    return Picture(image, turned, deep and _brightest(image) < DIM)


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
        kinds = NAMES if formats == FORMATS else " or ".join(formats)
        raise CorruptImage(name, f"it is not a {kinds} image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptImage(name, f"it is too large ({error}; the limit is {MAX_PIXELS} pixels)") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise CorruptImage(name, str(error) or type(error).__name__) from error
    return picture


def converted(image: Image.Image, mode: str, name: str) -> Image.Image:
    """The image in Pillow's mode "RGB" or "L".

    Raises:
        CorruptImage: Pillow cannot convert its colours, as those of a TIFF in CIELAB.
    """
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise CorruptImage(name, f"its colours cannot be read ({error})") from None


def _tag(image: Image.Image, tag: int) -> object:
    """A tag of a TIFF file; its first value, if it has several."""
    value = image.tag_v2.get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _stored_tiff(image: Image.Image, turned: int, name: str) -> Image.Image:
    """The image as the file stores it: Pillow turns those of TIFF files, and no longer gives the tag then."""
    if image.mode in ("I", "F"):
        raise CorruptImage(
            name, "its samples are 32-bit or signed numbers, which do not say what is white: save it with 8 bits"
        )
    if turned == 1 or image.getexif().get(exif.TAG) == turned:
        return image
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[turned]
    stored = image.transpose(back)
    stored.format, stored.tag_v2 = image.format, image.tag_v2
    return stored


def _bits(image: Image.Image) -> int:
    """How many bits a grey sample has by what the file says."""
    bits = _tag(image, 258) if image.format == "TIFF" else 16  # BitsPerSample
    return bits if isinstance(bits, int) and 8 <= bits <= 16 else 16


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a colour file has 16 bits, of which Pillow gives the upper eight."""
    if image.format == "PNG":
        return data[24] == 16  # the 25th byte of every PNG, in its first chunk
    return image.format == "TIFF" and _tag(image, 258) == 16


def _brightest(image: Image.Image) -> int:
    return int(np.asarray(image.convert("RGB")).max())
