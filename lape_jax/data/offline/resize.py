"""Copies of data sets with smaller images, which take less room and less time to decode.

JPEG of quality 90 with 4:2:0 chroma is a compromise. 200 photographs of 500x375, of 44.4 kB that one core decodes in
2.1 ms, reduced to a shorter side of 256; the difference is that between the centre crops of 224 of copy and original:

    quality, chroma     kB    decoding    mean absolute difference, grey levels
    85, 4:2:0         20.0      0.8 ms    2.3
    90, 4:2:0         24.6      0.8 ms    1.8
    90, 4:4:4         28.4      0.8 ms    1.6
    95, 4:2:0         34.2      0.9 ms    1.3
    95, 4:4:4         39.8      0.9 ms    1.1
"""

import io
import os
import shlex
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lape_jax.data import decode, jpeg
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Example
from lape_jax.data.offline import parts, rewrite, tfds_files
from lape_jax.data.offline.splits import DataSet
from lape_jax.errors import UserError

PNG = b"\x89PNG"  # what such files begin with


def shrink(data: bytes, short: int, quality: int, name: str, orientation: str = "stored") -> bytes:
    """The image file with its shorter side reduced to `short` pixels, or as `kept` if that is no longer than this.

    The longer side becomes floor(short * long / old short), by Pillow's bicubic filter, as in `decode.eval_crop`: so an
    evaluation with floor(image_size / crop_ratio) = short sees the pixels it saw before, but for the compression.
    JPEG and WebP become JPEG in RGB, with 4:2:0 chroma and no metadata, all others PNG.

    Args:
      orientation: view | stored, as for `decode.decode`: which image is written. Either way the copy carries no EXIF
        orientation, so that it is the same to all readers.

    Raises:
      CorruptImage: it cannot be read, whether or not it is small.
    """
    pixels, turned, _ = decode.examine(data, 3, name, orientation)
    height, width = pixels.shape[:2]
    if min(height, width) <= short:
        return kept(data, pixels, turned, orientation)
    size = (short, short * height // width) if width <= height else (short * width // height, short)
    return encode(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), data, quality)


def kept(data: bytes, pixels: UInt8[np.ndarray, "h w 3"], turned: int, orientation: str) -> bytes:
    """The image file at its size, in a format that TFDS reads, and without an EXIF orientation.

    JPEG and PNG files stay as they are, byte by byte, if they carry none. A JPEG file that does loses the note of it if
    the stored image is meant, and else is written anew, of quality 95. Everything else becomes PNG.

    Args:
      pixels, turned: what `decode.examine` gives for it and this `orientation`.
    """
    is_jpeg = data.startswith(b"\xff\xd8")
    if turned == 1 and (is_jpeg or data.startswith(PNG)):
        return data
    if is_jpeg and orientation == "stored":
        return jpeg.without_orientation(data)
    return encode(Image.fromarray(pixels), data if is_jpeg else PNG, 95)


def encode(picture: Image.Image, original: bytes, quality: int) -> bytes:
    """The picture as JPEG of this quality with 4:2:0 chroma if its original is JPEG or WebP, or else as PNG."""
    file = io.BytesIO()
    if original.startswith((b"\xff\xd8", b"RIFF")):
        picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def copy(
    data: DataSet,
    wanted: str,
    out: str,
    name: str,
    *,
    short: int,
    quality: int,
    orientation: str,
    how: parts.How,
) -> None:
    """Writes the copy of the splits `wanted` ("a,b", or "" for all) of a data set, and says how to use it.

    Args:
      name: of the copy; "" to make one from the data set's name and `short`.
      out, short, quality, orientation, how: see `shrink` and `rewrite.write`.

    Raises:
      UserError: the data set cannot be read, or `name` cannot be one, or as in `rewrite.write`.
    """
    if data.kind in ("arrays", "packed"):
        what = "arrays" if data.kind == "arrays" else "packed images"
        raise UserError(f"{what} cannot be resized, only image files and TFDS data sets")
    splits = {split: data.open(split) for split in data.split_names(wanted)}
    for split, source in splits.items():
        try:
            source[0]
        except CorruptImage:
            pass
        except UserError as error:  # found now, not after a day
            raise UserError(f"{error}; name the splits to copy without {split}: --splits=A,B") from None
    if not name:
        base = data.name.partition(":")[0] or os.path.basename(os.path.abspath(data.path))
        name = f"{tfds_files.make_name(base)}_{short}"
    tfds_files.check_name(name)
    if data.kind == "folder":
        parts.check_outside(out, data.path)
    about = (
        f"{data.title()}, images reduced to a shorter side of at most {short} pixels (Pillow's bicubic filter; JPEG of "
        f"quality {quality}, 4:2:0)"
    )

    def smaller(example: Example) -> Example:
        image = shrink(example.image, short, quality, example.name, orientation)
        return Example(image, example.label, example.name)

    options = {"origin": data.title(), "short": short, "quality": quality, "orientation": orientation}
    rewrite.write(rewrite.Records(Path(out), name, about, smaller), splits, options, how)
    how.say(f"look it over: python -m lape_jax.prepare check --name={name} --path={shlex.quote(out)}")
