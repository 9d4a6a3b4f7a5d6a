"""How images are turned: what cameras note in EXIF of how a stored image is to be shown.

Tag 0x0112 of the Exif standard (CIPA DC-008) says where the stored image's first row and column are on the shown one:
1 top, left; 2 top, right; 3 bottom, right; 4 bottom, left; 5 left, top; 6 right, top; 7 right, bottom; 8 left, bottom.
"""

import struct

import numpy as np
from jaxtyping import Num

from lape_jax.data.boxes import Box

# Of `data.orientation`: "view" is the image as a viewer shows it, and as OpenCV and mmcv decode it; "stored" ignores
# the tag, as torchvision and TensorFlow do.
CHOICES = ("view", "stored")
TAG = 0x0112
_HEADER = b"Exif\0\0"
# From the stored to the shown image: exchange rows and columns, then turn round the rows, then the columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def orientation(data: bytes) -> int:
    """The tag's value in EXIF data (with or without the heading that JPEG files put before it); 1 if there is none."""
    return _find(data)[0]


def without(data: bytes) -> bytes:
    """The EXIF data with 1 in the tag's place."""
    _, place, form = _find(data)
    return data if place is None else data[:place] + struct.pack(form, 1) + data[place + struct.calcsize(form) :]


def _find(data: bytes) -> tuple[int, int | None, str]:
    """Value of the tag, where it stands, and in which form; a file that makes no sense has none."""
    start = len(_HEADER) if data.startswith(_HEADER) else 0
    end = {b"II*\0": "<", b"MM\0*": ">"}.get(data[start : start + 4])
    if end is None:
        return 1, None, ""
    try:
        directory = start + struct.unpack_from(f"{end}I", data, start + 4)[0]
        (count,) = struct.unpack_from(f"{end}H", data, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{end}HH", data, entry)
            if tag == TAG and kind in (3, 4):
                form = end + {3: "H", 4: "I"}[kind]
                value = struct.unpack_from(form, data, entry + 8)[0]
                return value if value in _TURNS else 1, entry + 8, form
    except struct.error:
        pass
    return 1, None, ""


def turn(pixels: Num[np.ndarray, "_h _w ..."], orientation: int) -> Num[np.ndarray, "_rows _columns ..."]:
    """The stored image as it is shown."""
    exchange, rows, columns = _TURNS[orientation]
    if orientation == 1:
        return pixels
    pixels = pixels.swapaxes(0, 1) if exchange else pixels
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def shown_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """(height, width) of the stored image, as it is shown."""
    return (width, height) if _TURNS[orientation][0] else (height, width)


def stored_box(box: Box, height: int, width: int, orientation: int) -> Box:
    """Where a box of the shown image, which is height x width, lies in the stored one."""
    exchange, rows, columns = _TURNS[orientation]
    top = height - box.bottom if rows else box.top
    left = width - box.right if columns else box.left
    return Box(left, top, box.width, box.height) if exchange else Box(top, left, box.height, box.width)
