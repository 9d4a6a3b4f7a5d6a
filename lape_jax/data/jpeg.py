"""The part of a JPEG file that a crop needs, decoded by libjpeg-turbo (simplejpeg), which does not hold the GIL.

The header tells the size, so a crop's box can be drawn before anything is decoded. Then two things save time:

- Rows are decoded from the top, so what lies below the box is left out. simplejpeg cannot stop at a row, but it decodes
  as many rows as the header says; it is given a header that says fewer. The rows above stay the same bit for bit.
- A box that is larger than the square it becomes is decoded without interpolating the colours between their samples,
  and one that is much larger at 1/2, 1/4 or 1/8 of its size (scaled inverse DCT).
"""

import math
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from lape_jax.data import exif
from lape_jax.data.boxes import Box

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all of them Huffman-coded
_SCAN, _EXIF = 0xDA, 0xE1
# Interpolating the colours of the last row takes the samples below it; four rows at most share one.
_MARGIN = 8
# How many times larger than the square a reduced box must be: the inverse DCT passes more detail than Pillow's filter.
_SPARE = 1.25


class Header(NamedTuple):
    """What the header of a JPEG file says.

    Attributes:
        height, width: in pixels, as it is stored.
        offset: where in the file the height (two bytes) stands.
        orientation: how it is to be shown, see `exif`.
    """

    height: int
    width: int
    offset: int
    orientation: int


def read_header(data: bytes) -> Header | None:
    """The header of a whole colour JPEG of 8 bits and three components, None for anything else (ITU-T T.81, annex B).

    Whole means that the file ends with the marker that ends an image. Compressed data cannot contain it, so a file that
    was cut off anywhere does not pass, even where what is missing lies below the part to be decoded.
    """
    if not data.startswith(_START) or not data.endswith(_END):
        return None
    place, end, orientation = len(_START), len(data) - 9, 1
    while place < end and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            height, width = (int.from_bytes(data[place + i : place + i + 2], "big") for i in (5, 7))
            usual = data[place + 4] == 8 and data[place + 9] == 3 and height > 0 and width > 0
            return Header(height, width, place + 5, orientation) if usual else None
        if marker == 0xFF:  # a marker may be preceded by any number of these
            place += 1
        elif marker == _SCAN or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return None  # other kinds of compression
        else:
            start, place = place + 4, place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            if marker == _EXIF and orientation == 1:
                orientation = exif.orientation(data[start:place])
    return None


def without_orientation(data: bytes) -> bytes:
    """The file with an EXIF orientation of 1, if there is one in it; all else stays as it is."""
    place = len(_START)
    while data[place : place + 1] == b"\xff" and data[place + 1] != _SCAN:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xFF:
            end = place + 1
        elif data[place + 1] == _EXIF:
            data = data[: place + 4] + exif.without(data[place + 4 : end]) + data[end:]
        place = end
    return data


def reduction(box: Box, size: int) -> int:
    """The largest of 1, 2, 4, 8 by which the box may be reduced before it becomes a square of size x size."""
    return max((r for r in (2, 4, 8) if r * size * _SPARE <= min(box.height, box.width)), default=1)


def decode_box(data: bytes, header: Header, box: Box, size: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The RGB pixels of `box`, for a square of size x size; None if the decoder refuses the file.

    They are reduced by r = `reduction(box, size)`: the box's edges must be multiples of r, or edges of the image.
    """
    r = reduction(box, size)
    rows = min(header.height, box.bottom + _MARGIN * r)
    shorter = bytearray(data)
    shorter[header.offset : header.offset + 2] = rows.to_bytes(2, "big")
    try:
        pixels = simplejpeg.decode_jpeg(
            shorter,
            min_height=math.ceil(rows / r),
            min_width=math.ceil(header.width / r),
            min_factor=r,
            fastupsample=min(box.height, box.width) >= size,
            strict=False,  # or the compressed data that is left over would count as an error
        )
    except ValueError:
        return None
    return pixels[box.top // r : math.ceil(box.bottom / r), box.left // r : math.ceil(box.right / r)]
