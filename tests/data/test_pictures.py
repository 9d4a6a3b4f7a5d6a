"""Formats, and samples of more than eight bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lape_jax.data import decode, pictures
from lape_jax.data.corrupt import CorruptImage

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)  # twelve bits


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(("form", "options"), [("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PNG", {})])
def test_formats_are_told_by_content(encode, photo, form, options):
    np.testing.assert_array_equal(decode.decode(encode(photo, form, **options), 3, "x.jpg"), photo)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_images_the_first_is_taken(form):
    first, second = (Image.new("RGB", (4, 3), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(first, form, save_all=True, append_images=[second], **options)
    assert set(map(tuple, decode.decode(data, 3, "x").reshape(-1, 3).tolist())) == {(250, 0, 0)}


def test_transparency_of_a_gif_is_dropped():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([1, 0])
    assert decode.decode(saved(picture, "GIF", transparency=1), 3, "x").tolist() == [[[200, 100, 50], [10, 20, 30]]]


@pytest.mark.parametrize("form", ["WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_file_is_corrupt(encode, photo, form):
    data = encode(photo, form)
    with pytest.raises(CorruptImage, match=r"^x cannot be read: "):
        decode.decode(data[: len(data) // 2], 3, "x")


def twelve_bit_tiff(samples):
    """Grey, two samples in three bytes: BitsPerSample says 12."""
    pairs = samples.reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    data = packed.astype(np.uint8).tobytes()
    height, width = samples.shape
    entries = ((256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height))
    entries += ((279, len(data)),)
    rows = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + rows + bytes(4)


def test_twelve_bits_that_the_file_tells_are_scaled():
    found = decode.examine(twelve_bit_tiff(RAMP), 1, "x")
    np.testing.assert_array_equal(found.pixels[..., 0], RAMP >> 4)
    assert not found.dim


def rgb16(samples):
    """A PNG of 16 bits a colour, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "TIFF", "colour"])
def test_twelve_bits_that_no_file_tells_are_said_and_not_guessed(form):
    def stored(samples):
        return rgb16(np.stack([samples] * 3, -1)) if form == "colour" else saved(Image.fromarray(samples), form)

    found = decode.examine(stored(RAMP), 1, "x")
    np.testing.assert_array_equal(found.pixels[..., 0], RAMP >> 8)
    assert found.dim
    assert decode.examine(stored(RAMP >> 4), 1, "x").dim  # eight bits in sixteen
    assert decode.examine(stored(RAMP * 3), 1, "x").dim  # not quite fourteen
    full = decode.examine(stored(RAMP * 16), 1, "x")
    np.testing.assert_array_equal(full.pixels[..., 0], RAMP >> 4)
    assert not full.dim


def test_a_dark_image_of_eight_bits_is_nothing_to_mention(encode):
    assert not decode.examine(encode(np.full((2, 2, 1), 3, np.uint8)), 3, "x").dim


def test_a_tiff_in_which_white_is_zero():
    data = saved(Image.fromarray(RAMP * 16), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    np.testing.assert_array_equal(decode.decode(data, 1, "x")[..., 0], (65535 - RAMP * 16) >> 8)


@pytest.mark.parametrize("samples", [np.float32([[0.0, 1.0]]), np.int32([[0, 70000]])])
def test_numbers_that_do_not_say_what_is_white_are_refused(samples):
    with pytest.raises(CorruptImage, match=r"x cannot be read: its samples are 32-bit or signed numbers"):
        decode.decode(saved(Image.fromarray(samples), "TIFF"), 3, "x")


def test_suffixes_are_those_of_the_formats():
    Image.init()
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in pictures.SUFFIXES} == set(pictures.FORMATS)
