import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lape_jax.data import exif
from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError
from lape_jax.tasks.segment.masks import decode_scene, read_indices
from lape_jax.tasks.segment.scene import Scene

INDICES = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def decoded(mask, classes=4, first=0, channels=3, image=None):
    image = np.zeros((*INDICES.shape, 3), np.uint8) if image is None else image
    return decode_scene(Scene(image, mask, "pic.jpg", first), channels, classes)


def png(samples, depth):
    """A grey PNG of so many bits, written by hand: signature, header, one chunk of unfiltered rows, end."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape
    rows = b""
    for row in samples:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_gives_its_samples(depth):
    samples = np.arange(15).reshape(3, 5) % min(2**depth, 16)
    np.testing.assert_array_equal(read_indices(png(samples, depth), "m"), samples)


def test_the_palette_does_not_matter(encode, tmp_path):
    for bits in (4, 8):
        picture = Image.fromarray(INDICES % 4)
        picture.putpalette([200, 0, 0, 7, 7, 7, 0, 0, 0, 255, 255, 255] * 4)
        assert picture.mode == "P"
        picture.save(tmp_path / "m.png", bits=bits, transparency=1)
        np.testing.assert_array_equal(read_indices((tmp_path / "m.png").read_bytes(), "m"), INDICES % 4)


@pytest.mark.parametrize(
    ("first", "classes", "expected"),
    [
        (0, 4, [[0, 1, 2], [3, -1, 1]]),
        (1, 3, [[-1, 0, 1], [2, -1, 0]]),
        (2, 2, [[-1, -1, 0], [1, -1, -1]]),
    ],
)
def test_labels_count_from_the_first(encode, first, classes, expected):
    for mask in (encode(INDICES[..., None]), INDICES, INDICES.astype(np.int64)):
        pixels, labels = decoded(mask, classes, first)
        assert (pixels.shape, pixels.dtype, labels.dtype) == ((2, 3, 3), np.uint8, np.int32)
        np.testing.assert_array_equal(labels, expected)


def test_the_image_is_decoded_as_ever(encode, photo):
    pixels, labels = decoded(np.zeros((40, 60), np.uint8), channels=1, image=encode(photo))
    assert pixels.shape == (40, 60, 1)
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(Image.fromarray(photo).convert("L")))
    assert not labels.any()


def test_values_that_mean_nothing_are_named(encode):
    wrong = INDICES.copy()
    wrong[1, [0, 2]] = 4, 17
    message = (
        r"the mask of pic\.jpg has the value 4 in row 1, column 0 \(2 such pixels\), but must hold 0 to 3 for the "
    )
    with pytest.raises(UserError, match=message + "4 classes, and 255 for none"):
        decoded(encode(wrong[..., None]))
    with pytest.raises(UserError, match=r"value 17 in row 1, column 2 .*hold 1 to 4 for .*, and 0 or 255 for none"):
        decoded(wrong, classes=4, first=1)
    with pytest.raises(UserError, match=r"value 17 .*hold 2 to 4 for the 3 classes, and 0 to 1 or 255 for none"):
        decoded(wrong, classes=3, first=2)
    deep = png(np.array([[0, 1, 2], [3, 255, 1000]]), 16)
    with pytest.raises(UserError, match=r"has the value 1000 in row 1, column 2 \(1 such"):
        decoded(deep)


def test_the_greatest_number_of_classes_leaves_255_for_none():
    labels = decoded(np.array([[0, 254, 255]] * 2, np.uint8), classes=255)[1]
    assert labels.tolist() == [[0, 254, -1]] * 2


def test_other_sizes_are_named():
    with pytest.raises(
        UserError, match=r"pic\.jpg has 3 x 4 pixels \(width x height\), but the image 3 x 2: .* equal$"
    ):
        decoded(np.zeros((4, 3), np.uint8))
    with pytest.raises(UserError, match=r"has 2 x 3 pixels .*must be equal$"):
        decoded(INDICES.T)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_the_view_and_of_what_is_stored(encode, photo, orientation):
    """A mask that has the size of the view belongs to it, and another one is turned as the image is."""
    note = Image.Exif()
    note[exif.TAG] = orientation
    image = encode(photo, exif=note)
    view = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image))))
    mask = view[..., 0] % 3
    scenes = [Scene(image, mask, "x"), Scene(image, encode(mask[..., None]), "x")]
    if orientation > 4:
        scenes.append(Scene(image, photo[..., 0] % 3, "x"))
    for scene in scenes:
        pixels, labels = decode_scene(scene, 3, 3, "view")
        np.testing.assert_array_equal(pixels, view)
        np.testing.assert_array_equal(labels, mask)
    pixels, labels = decode_scene(Scene(image, photo[..., 0] % 3, "x"), 3, 3, "stored")
    np.testing.assert_array_equal(pixels, photo)
    np.testing.assert_array_equal(labels, photo[..., 0] % 3)
    if orientation > 4:
        with pytest.raises(
            UserError, match=r"must be equal \(that is the size of the image as EXIF .*orientation=view"
        ):
            decode_scene(scenes[0], 3, 3, "stored")
        with pytest.raises(UserError, match=r"x has 5 x 7 pixels .* but the image 40 x 60: they must be equal$"):
            decode_scene(Scene(image, np.zeros((7, 5), np.uint8), "x"), 3, 3, "view")


@pytest.mark.parametrize("orientation", [2, 5, 6])
def test_of_a_square_image_the_view_counts(encode, photo, orientation):
    note = Image.Exif()
    note[exif.TAG] = orientation
    mask = np.arange(1600).reshape(40, 40) % 3
    labels = decode_scene(Scene(encode(photo[:, :40], exif=note), mask, "x"), 3, 3, "view")[1]
    np.testing.assert_array_equal(labels, mask)


@pytest.mark.parametrize(
    ("mode", "hint"),
    [("RGB", "its channels are equal, so save one of them"), ("RGBA", "channels are equal"), ("LA", "grey or palette")],
)
def test_colours_are_refused(encode, mode, hint):
    mask = encode(np.asarray(Image.fromarray(INDICES).convert(mode)))
    with pytest.raises(UserError, match=rf"the mask of pic\.jpg is a PNG of mode {mode} \(.*{hint}"):
        decoded(mask)


def test_real_colours_are_refused(encode, photo):
    with pytest.raises(UserError, match=r"replace each class's colour by its index, as uint8 \(h, w\)"):
        decoded(encode(photo))


def test_files_that_cannot_be_read_are_corrupt(encode):
    whole = encode(np.random.default_rng(0).integers(0, 256, (30, 30, 1), np.uint8))
    for data, reason in (
        (b"", "it is empty"),
        (b"junk", "it is not a PNG image"),
        (encode(INDICES[..., None], "JPEG"), "it is not a PNG image"),
        (whole[: len(whole) // 2], "truncated"),
    ):
        with pytest.raises(CorruptImage, match=rf"the mask of pic\.jpg cannot be read: .*{reason}"):
            decoded(data)
    with pytest.raises(CorruptImage, match=r"^pic\.jpg cannot be read"):
        decoded(INDICES, image=b"junk")
