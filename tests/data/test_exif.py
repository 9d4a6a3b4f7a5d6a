"""Images that are turned, against Pillow's `exif_transpose`."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from lape_jax.data import decode, exif, jpeg
from lape_jax.data.boxes import Box

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
TURNS = range(1, 9)


def noted(encode, pixels, orientation, form="JPEG", **options):
    """A file with this EXIF orientation."""
    note = Image.Exif()
    note[exif.TAG] = orientation
    return encode(pixels, form, exif=note, **options)


def shown(data):
    """As a viewer shows it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", LOSSLESS)
def test_files_are_viewed_or_left_as_they_are_stored(encode, photo, form, orientation):
    data = noted(encode, photo, orientation, form, **LOSSLESS[form])
    view = decode.examine(data, 3, "x", "view")
    np.testing.assert_array_equal(view.pixels, shown(data))
    assert view.pixels.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    assert view.orientation == orientation
    np.testing.assert_array_equal(decode.decode(data, 3, "x"), photo)
    np.testing.assert_array_equal(exif.turn(view.pixels, {6: 8, 8: 6}.get(orientation, orientation)), photo)


@pytest.mark.parametrize("orientation", TURNS)
def test_crops_are_those_of_the_viewed_image(encode, photo, orientation):
    """Of the fast way, where the file without a note has the viewed pixels: nearly the same boxes and values."""
    options = {"size": 16, "scale": (0.2, 0.6), "ratio": (0.5, 0.8), "interpolation": "bicubic"}
    smooth = np.asarray(Image.fromarray(photo).resize((240, 160)))
    data = noted(encode, smooth, orientation, quality=100, subsampling=0)
    assert jpeg.read_header(data).orientation == orientation
    upright = shown(data)
    plain = encode(upright, quality=100, subsampling=0, form="JPEG")
    for seed in range(4):
        found, same = (
            decode.train_image(file, 3, "x", rng=np.random.default_rng(seed), orientation=how, **options).astype(int)
            for file, how in ((data, "view"), (plain, "stored"))
        )
        assert np.abs(found - same).mean() < 2.5
        if orientation > 1:
            other = decode.train_image(data, 3, "x", rng=np.random.default_rng(seed), **options).astype(int)
            assert np.abs(other - same).mean() > 10


@pytest.mark.parametrize("orientation", TURNS)
def test_a_jpeg_that_the_fast_way_refuses_is_turned_too(encode, photo, orientation, monkeypatch):
    monkeypatch.setattr(jpeg, "decode_box", lambda *_: None)
    data, rng = noted(encode, photo, orientation), np.random.default_rng(0)
    options = {
        "size": 60 if orientation < 5 else 40,
        "scale": (1.0, 1.0),
        "ratio": (1.0, 1.0),
        "interpolation": "bilinear",
    }
    found = decode.train_image(data, 3, "x", rng=rng, orientation="view", **options)
    height, width, _ = shown(data).shape
    side, top, left = 40, (height - 40) // 2, (width - 40) // 2
    square = Image.fromarray(shown(data)[top : top + side, left : left + side])
    expected = square.resize((options["size"],) * 2, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("orientation", TURNS)
def test_a_box_of_the_view_is_the_box_of_what_is_stored(photo, orientation):
    view, box = exif.turn(photo, orientation), Box(3, 5, 20, 11)
    place = exif.stored_box(box, *view.shape[:2], orientation)
    part = photo[place.top : place.bottom, place.left : place.right]
    np.testing.assert_array_equal(exif.turn(part, orientation), view[box.top : box.bottom, box.left : box.right])
    assert exif.shown_size(40, 60, orientation) == view.shape[:2]


def tags(order, *entries):
    """EXIF data with these (tag, kind, value), kind 3 of two bytes and 4 of four."""
    form = {"II": "<", "MM": ">"}[order]
    rows = b"".join(
        struct.pack(f"{form}HHI{'I' if kind == 4 else 'HH'}", tag, kind, 1, *([value] if kind == 4 else [value, 0]))
        for tag, kind, value in entries
    )
    return order.encode() + struct.pack(f"{form}HIH", 42, 8, len(entries)) + rows + bytes(4)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("heading", [b"", b"Exif\0\0"])
def test_the_tag_is_found_among_others_and_can_be_taken_out(order, kind, heading):
    data = heading + tags(order, (0x010F, 3, 9), (exif.TAG, kind, 6), (0x0213, 3, 1))
    assert exif.orientation(data) == 6
    assert exif.orientation(exif.without(data)) == 1
    assert exif.without(data) == heading + tags(order, (0x010F, 3, 9), (exif.TAG, kind, 1), (0x0213, 3, 1))


def test_what_makes_no_sense_is_no_orientation():
    whole = tags("II", (exif.TAG, 3, 6))
    for data in (b"", b"Exif\0\0", b"junk" * 9, whole[:15], tags("II", (exif.TAG, 3, 9)), tags("MM", (exif.TAG, 3, 0))):
        assert exif.orientation(data) == 1
    assert exif.without(b"junk") == b"junk"


def test_a_jpeg_loses_its_note_and_nothing_else(encode, photo):
    data = noted(encode, photo, 6)
    plain = jpeg.without_orientation(data)
    assert len(plain) == len(data)
    assert jpeg.read_header(plain).orientation == 1
    np.testing.assert_array_equal(decode.decode(plain, 3, "x", "view"), decode.decode(data, 3, "x"))
    assert jpeg.without_orientation(encode(photo, "JPEG")) == encode(photo, "JPEG")
