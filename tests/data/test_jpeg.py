import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from lape_jax.data import jpeg
from lape_jax.data.boxes import Box

LARGE = 10**4  # a square that no box is larger than, so that nothing is given up for speed


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """A picture (90, 130, 3) whose colours change from sample to sample."""
    y, x = np.mgrid[:90, :130]
    waves = np.stack([np.sin(x / 3) * np.cos(y / 5), np.sin((x + y) / 4), np.cos(y / 2)], -1)
    return (waves * 100 + 128).astype(np.uint8)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 95, "subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"exif": b"Exif\0\0" + bytes(999), "comment": b"\xff\xc0\xff\xda\xff\xd9"},
    ],
    ids=str,
)
def test_rows_down_to_the_box_are_those_of_the_whole_image(encode, smooth, options):
    data = encode(smooth, "JPEG", **options)
    header = jpeg.read_header(data)
    assert header[:2] == (90, 130)
    expected = pillow(data)
    for bottom in (1, 7, 8, 9, 31, 32, 40, 81, 82, 89, 90):
        pixels = jpeg.decode_box(data, header, Box(0, 0, bottom, 130), LARGE)
        np.testing.assert_array_equal(pixels, expected[:bottom])
    np.testing.assert_array_equal(jpeg.decode_box(data, header, Box(20, 30, 50, 60), LARGE), expected[20:70, 30:90])


@pytest.mark.parametrize("subsampling", ["411", "440"])  # which Pillow cannot write
def test_rows_of_rare_samplings_are_those_of_the_whole_image(smooth, subsampling):
    data = simplejpeg.encode_jpeg(smooth, quality=90, colorsubsampling=subsampling)
    expected = pillow(data)
    for bottom in range(1, 91):
        pixels = jpeg.decode_box(data, jpeg.read_header(data), Box(0, 0, bottom, 130), LARGE)
        np.testing.assert_array_equal(pixels, expected[:bottom])


def test_fill_bytes_before_a_marker_are_allowed(encode, smooth):
    data = encode(smooth, "JPEG")
    padded = data[:2] + b"\xff\xff\xff" + data[2:]
    assert jpeg.read_header(padded)[:2] == (90, 130)
    np.testing.assert_array_equal(
        jpeg.decode_box(padded, jpeg.read_header(padded), Box(0, 0, 50, 50), LARGE), pillow(data)[:50, :50]
    )


def test_only_whole_colour_jpegs_have_a_header(encode, smooth):
    data = encode(smooth, "JPEG")
    cmyk = io.BytesIO()
    Image.fromarray(smooth).convert("CMYK").save(cmyk, "JPEG")
    others = [b"", b"\xff\xd8\xff\xd9", encode(smooth), encode(smooth[..., :1], "JPEG"), cmyk.getvalue(), data + b"\0"]
    assert [jpeg.read_header(other) for other in others] == [None] * len(others)
    for sof, precision in ((0xC3, 8), (0xC9, 8), (0xC1, 12)):  # lossless, arithmetic-coded, 12 bits
        place = jpeg.read_header(data).offset - 5
        other = data[: place + 1] + bytes([sof]) + data[place + 2 : place + 4] + bytes([precision]) + data[place + 5 :]
        assert jpeg.read_header(other) is None
    offset = jpeg.read_header(data).offset
    assert jpeg.read_header(data[:offset] + b"\0\0" + data[offset + 2 :]) is None  # the height comes after the image


@pytest.mark.parametrize("progressive", [False, True])
def test_no_truncated_file_has_a_header(encode, smooth, progressive):
    data = encode(smooth, "JPEG", progressive=progressive, exif=b"Exif\0\0" + encode(smooth[:16, :16], "JPEG"))
    thumbnail_end = data.index(b"\xff\xd9") + 2  # the only place inside where the end could seem to be
    assert thumbnail_end < len(data)
    assert not [cut for cut in range(len(data)) if jpeg.read_header(data[:cut])]


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_refused_or_decoded_but_never_fatal(encode, smooth, seed):
    data = encode(smooth, "JPEG")
    rng = np.random.default_rng(seed)
    for _ in range(100):
        broken = bytearray(data)
        for place in rng.integers(2, len(data) - 2, 3):
            broken[place] = rng.integers(256)
        header = jpeg.read_header(bytes(broken))
        if header is None or header.height * header.width > 10**6:
            continue
        box = Box(0, 0, min(50, header.height), min(60, header.width))
        pixels = jpeg.decode_box(bytes(broken), header, box, LARGE)
        assert pixels is None or pixels.shape == (*box[2:], 3)


def test_a_file_without_its_tables_is_refused(encode, smooth):
    data = encode(smooth, "JPEG")
    while (place := data.find(b"\xff\xdb")) >= 0:  # define quantisation tables
        data = data[:place] + data[place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0] :]
    assert jpeg.decode_box(data, jpeg.read_header(data), Box(0, 0, 50, 50), LARGE) is None


def test_reduction_leaves_a_quarter_more_than_the_square():
    sizes = {279: 1, 280: 2, 559: 2, 560: 4, 1119: 4, 1120: 8, 9999: 8}
    assert {side: jpeg.reduction(Box(0, 0, side, 9999), 112) for side in sizes} == sizes
    assert jpeg.reduction(Box(0, 0, 9999, 280), 112) == 2


@pytest.mark.parametrize("reduced", [2, 4, 8])
def test_a_reduced_box_is_where_it_should_be(encode, reduced):
    rng = np.random.default_rng(reduced)
    coarse = rng.integers(0, 256, (12, 20, 3), np.uint8)
    data = encode(coarse.repeat(8, 0).repeat(8, 1)[:91, :157], "JPEG", quality=95, subsampling=0)
    box = Box(24, 40, 48, 96)
    size = int(48 / reduced / 1.25)
    assert jpeg.reduction(box, size) == reduced
    pixels = jpeg.decode_box(data, jpeg.read_header(data), box, size)
    expected = coarse[3:9, 5:17].repeat(8 // reduced, 0).repeat(8 // reduced, 1)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 4
    # Down to the edges of the image, which are no multiples of 2.
    edge = jpeg.decode_box(data, jpeg.read_header(data), Box(24, 40, 67, 117), size)
    assert edge.shape == (-(-67 // reduced), -(-117 // reduced), 3)
