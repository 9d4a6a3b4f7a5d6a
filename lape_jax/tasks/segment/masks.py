"""The files of a scene -> pixels and labels. One scene at a time, safe in threads."""

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from lape_jax.data import decode, exif, pictures
from lape_jax.errors import UserError
from lape_jax.tasks.segment import values
from lape_jax.tasks.segment.scene import IGNORE, NO_CLASS, Scene

MOST_CLASSES = NO_CLASS
# Pillow's modes for PNGs of one channel of indices: 1 bit, 8 bits or fewer, a palette, 16 bits (older Pillow: "I").
_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I")


def decode_scene(
    scene: Scene, channels: int, classes: int, orientation: str = "stored"
) -> tuple[UInt8[np.ndarray, "_h _w {channels}"], Int32[np.ndarray, "_h _w"]]:
    """The image as `decode.decode` gives it, and the map: 0 .. classes - 1, or what `scene.numbers` has; or IGNORE.

    In the file, `scene.first` + c stands for class c; values below `scene.first`, and 255, stand for none. A palette
    PNG gives its indices, whatever their colours; grey PNGs of 1, 2, 4, 8 and 16 bits give their samples.

    With orientation="view" a map that has the size of the image as it is shown belongs to this, as labelling tools and
    OpenCV show it, and one that fits the stored image only is turned as the image is.

    Raises:
      CorruptImage: a file cannot be read, or the map is no PNG.
      UserError: image and map differ in size, or the map holds colours, or values that stand for nothing.
    """
    found, indices = examine_scene(scene, channels, orientation)
    return found.pixels, to_labels(indices, scene, classes)


def examine_scene(scene: Scene, channels: int, orientation: str) -> tuple[decode.Decoded, Integer[np.ndarray, "_h _w"]]:
    """The image with what its file says of itself, and the map as its file has it, but turned as the image is."""
    found = decode.examine(scene.image, channels, scene.name, orientation)
    indices = scene.mask
    if not isinstance(indices, np.ndarray):
        indices = read_indices(indices, f"the mask of {scene.name}")
    shape = found.pixels.shape[:2]
    if orientation == "view" and indices.shape == exif.shown_size(*shape, found.orientation) != shape:
        indices = exif.turn(indices, found.orientation)  # it has the size of the stored image
    if indices.shape != shape:
        (height, width), (mask_height, mask_width) = shape, indices.shape
        hint = ""
        if found.orientation != 1 and orientation == "stored" and (mask_width, mask_height) == (height, width):
            hint = " (that is the size of the image as EXIF says it is shown: use orientation=view)"
        raise UserError(
            f"the mask of {scene.name} has {mask_width} x {mask_height} pixels (width x height), but the image "
            f"{width} x {height}: they must be equal{hint}"
        )
    return found, indices


def read_indices(data: bytes, name: str) -> Integer[np.ndarray, "h w"]:
    """The samples of a grey PNG, or the indices of a palette PNG.

    Raises:
      CorruptImage: the bytes are not a whole PNG image.
      UserError: it has colours or transparency.
    """
    picture = pictures.open_picture(data, name, ("PNG",))
    if picture.mode not in _INDEX_MODES:
        raise UserError(
            f"{name} is a PNG of mode {picture.mode} (with colours or transparency), but must hold class indices: a "
            f"grey or palette PNG; {_how_to_convert(np.asarray(picture))}"
        )
    indices = np.asarray(picture)
    if picture.mode == "1":
        return indices.astype(np.uint8)
    # Pillow stretches grey of 2 and 4 bits to 0..255. The depth is the 25th byte of every PNG, in its first chunk.
    depth = data[24]
    return indices // (255 // (2**depth - 1)) if picture.mode == "L" and depth < 8 else indices


def _how_to_convert(pixels: np.ndarray) -> str:
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        return "its channels are equal, so save one of them: Image.fromarray(np.asarray(mask)[..., 0])"
    return "replace each class's colour by its index, as uint8 (h, w), and save that: Image.fromarray(indices)"


def to_labels(indices: Integer[np.ndarray, "h w"], scene: Scene, classes: int) -> Int32[np.ndarray, "h w"]:
    """The map of labels that `decode_scene` gives, of the values in a scene's file.

    Raises:
      UserError: there are values that stand for nothing.
    """
    if scene.numbers is not None:
        classes = len(scene.numbers)
    first, end = scene.first, scene.first + classes
    labels = indices.astype(np.int32)
    none = (labels < first) | (labels == NO_CLASS)
    wrong = (labels >= end) & ~none
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        unlabelled = {0: "", 1: "0 or "}.get(first, f"0 to {first - 1} or ") + str(NO_CLASS)
        raise UserError(
            f"the mask of {scene.name} has the value {labels[row, column]} in row {row}, column {column} "
            f"({np.count_nonzero(wrong)} such pixels), but must hold {first} to {end - 1} for the {classes} classes, "
            f"and {unlabelled} for none{values.hint(np.unique(indices).tolist(), first, classes)}"
        )
    labels = np.where(none, IGNORE, labels - first).astype(np.int32)
    if scene.numbers is None:
        return labels
    numbers = np.array([*(IGNORE if number < 0 else number for number in scene.numbers), IGNORE], np.int32)
    return numbers[labels]  # IGNORE, -1, is the last of them
