import io
import struct
import zlib
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
from PIL import Image, ImageFile
from sklearn.datasets import load_sample_images

from lape_jax.data import decode, jpeg, resample
from lape_jax.data.boxes import align, random_box
from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError


def png_16_bit(value: int) -> bytes:
    """A grey 16-bit PNG of 2x3 equal pixels."""
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, np.uint16)).save(file, "PNG")
    return file.getvalue()


def test_pixels_survive(encode, photo):
    np.testing.assert_array_equal(decode.decode(encode(photo), 3, "x"), photo)
    np.testing.assert_array_equal(decode.decode(photo, 3, "x"), photo)
    jpeg = decode.decode(encode(photo, "JPEG", quality=95, subsampling=0), 3, "x")
    assert jpeg.dtype == np.uint8
    assert np.abs(jpeg.astype(int) - photo).mean() < 5


def test_grey_becomes_three_equal_channels(encode, photo):
    grey = photo[..., :1]
    for image in (grey, encode(grey)):
        np.testing.assert_array_equal(decode.decode(image, 3, "x"), np.repeat(grey, 3, -1))
        np.testing.assert_array_equal(decode.decode(image, 1, "x"), grey)


def test_colour_becomes_luma(encode):
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    for image in (primaries, encode(primaries)):
        # 255 * (0.299, 0.587, 0.114), rounded
        assert decode.decode(image, 1, "x")[0, :, 0].tolist() == [76, 150, 29, 255]


def test_alpha_is_dropped(encode, photo):
    alpha = np.full((40, 60, 1), 7, np.uint8)
    np.testing.assert_array_equal(decode.decode(encode(np.concatenate([photo, alpha], -1)), 3, "x"), photo)
    grey_alpha = decode.decode(encode(np.concatenate([photo[..., :1], alpha], -1)), 3, "x")
    np.testing.assert_array_equal(grey_alpha, np.repeat(photo[..., :1], 3, -1))


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_palettes_are_looked_up(transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([1, 0])
    file = io.BytesIO()
    picture.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    assert decode.decode(file.getvalue(), 3, "x").tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_16_bit_keeps_the_high_byte():
    assert set(decode.decode(png_16_bit(0xABCD), 3, "x").flat) == {0xAB}
    assert decode.decode(png_16_bit(255), 1, "x").max() == 0


def test_cmyk_becomes_rgb(photo):
    file = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(file, "JPEG", quality=95)
    decoded = decode.decode(file.getvalue(), 3, "x")
    assert np.abs(decoded.astype(int) - photo).mean() < 8


def test_black_and_white(encode):
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    file = io.BytesIO()
    bits.save(file, "PNG")
    assert decode.decode(file.getvalue(), 3, "x").tolist() == [[[0] * 3, [255] * 3]]


def test_orientations_are_two(photo):
    with pytest.raises(UserError, match=r"data\.orientation: 'views' is not one of view, stored \(did you mean 'view'"):
        decode.decode(photo, 3, "x", "views")


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})],
    ids=["png", "jpeg", "progressive"],
)
def test_a_truncated_file_is_corrupt(encode, photo, form, options, part):
    data = encode(photo, form, **options)
    assert decode.decode(data, 3, "x").shape == (40, 60, 3)
    with pytest.raises(CorruptImage, match=r"^cat\.png cannot be read: ") as caught:
        decode.decode(data[: int(len(data) * part)], 3, "cat.png")
    assert caught.value.name == "cat.png"


def test_what_is_no_image_is_corrupt(encode, photo):
    for data, reason in [
        (b"", "it is empty"),
        (b"<html>404 Not Found</html>", "it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
        (bytes(1000), "it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
        (encode(photo, "PPM"), "it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
    ]:
        with pytest.raises(CorruptImage, match=reason):
            decode.decode(data, 3, "x")


@pytest.mark.parametrize("side", [10_000, 50_000])
@pytest.mark.parametrize("warnings", ["ignore", "error"])  # Pillow warns of the smaller one, and refuses the larger
def test_a_decompression_bomb_is_corrupt(side, warnings):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with catch_warnings():
        simplefilter(warnings)
        with pytest.raises(CorruptImage, match="it is too large"):
            decode.decode(bomb, 3, "x")


def test_lenient_loading_is_refused(encode, photo, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
        decode.decode(encode(photo), 3, "x")


def test_channels_are_one_or_three(photo):
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        decode.decode(photo, 4, "x")


class Draws(np.random.Generator):
    """A generator that gives the listed numbers."""

    def __init__(self, *numbers: float):
        super().__init__(np.random.PCG64(0))
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


def test_a_crop_is_where_the_draws_say():
    image = np.arange(10 * 10 * 3, dtype=np.int64).reshape(10, 10, 3).astype(np.uint8)
    # Area 0.16 * 100, ratio 1 (the middle of the logarithmic range): 4x4. Places 0..6: down 3, right 6.
    crop = decode.train_crop(image, 4, Draws(0.0, 0.5, 0.5, 0.999), (0.16, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(crop, image[3:7, 6:10])
    # Area 0.08 * 100 and ratio 1/2: width 2, height 4; then resized to 3x3.
    crop = decode.train_crop(image, 3, Draws(0.0, 0.0, 0.0, 0.0), (0.08, 1.0), (0.5, 2.0))
    expected = Image.fromarray(image[:4, :2]).resize((3, 3), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop, np.asarray(expected))


@pytest.mark.parametrize("tall", [False, True])
def test_a_crop_that_never_fits_is_central(tall):
    image = np.random.default_rng(0).integers(0, 256, (4, 100, 1), np.uint8)
    image = image.swapaxes(0, 1) if tall else image
    crop = decode.train_crop(image, 8, Draws(*[0.5] * 20), (1.0, 1.0), (3 / 4, 4 / 3))
    # 4 high allows a width of round(4 * 4/3) = 5, from column (100 - 5) // 2 = 47 on; likewise transposed.
    cut = image[47:52, :, 0] if tall else image[:, 47:52, 0]
    expected = Image.fromarray(cut).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop[..., 0], np.asarray(expected))


def test_crops_of_the_smallest_image():
    pixel = np.full((1, 1, 3), 9, np.uint8)
    crop = decode.train_crop(pixel, 2, np.random.default_rng(0), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crop.tolist() == np.full((2, 2, 3), 9).tolist()


def cropped(data: bytes | np.ndarray, seed: int, size: int = 24, channels: int = 3, interpolation: str = "bicubic"):
    options = {"size": size, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "interpolation": interpolation}
    return decode.train_image(data, channels, "cat.jpg", rng=np.random.default_rng(seed), **options)


def exactly(data: bytes | np.ndarray, seed: int, size: int = 24, channels: int = 3, interpolation: str = "bicubic"):
    """The same crop by Pillow."""
    pixels = decode.decode(data, channels, "cat.jpg")
    rng = np.random.default_rng(seed)
    if isinstance(data, bytes) and (header := jpeg.read_header(data)):
        box = random_box(*header[:2], rng, (0.08, 1.0), (3 / 4, 4 / 3))
        box = align(box, jpeg.reduction(box, size), *header[:2])
        kind = interpolation if interpolation != "random" else ("bilinear", "bicubic")[rng.random() >= 0.5]
        return resample.resize(pixels[box.top : box.bottom, box.left : box.right], size, size, kind)
    return decode.train_crop(pixels, size, rng, (0.08, 1.0), (3 / 4, 4 / 3), interpolation)


@pytest.mark.parametrize("size", [320, 224, 112, 40])
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_crops_of_photos_are_close_to_pillows(encode, size, interpolation):
    errors = []
    for photo in load_sample_images().images:
        data = encode(photo, "JPEG", quality=90)
        for seed in range(8):
            exact = exactly(data, seed, size, interpolation=interpolation).astype(int)
            errors.append(np.abs(cropped(data, seed, size, interpolation=interpolation) - exact).mean())
    assert np.mean(errors) < 2
    assert max(errors) < 4.5  # a box that is off by one pixel, or another filter, makes more


def test_what_the_fast_way_does_not_take_is_exact(encode, photo):
    cmyk, behind = io.BytesIO(), encode(photo, "JPEG") + b"behind the end"
    Image.fromarray(photo).convert("CMYK").save(cmyk, "JPEG")
    for data in (photo, encode(photo), encode(photo[..., :1], "JPEG"), cmyk.getvalue(), behind):
        np.testing.assert_array_equal(cropped(data, 0), exactly(data, 0))
    np.testing.assert_array_equal(cropped(behind[:-14], 0, channels=1), exactly(behind, 0, channels=1))


def test_a_jpeg_that_the_fast_way_refuses_is_cut_at_the_same_place(encode, photo, monkeypatch):
    data = encode(photo, "JPEG")
    monkeypatch.setattr(jpeg, "decode_box", lambda *_: None)
    for seed in range(5):
        np.testing.assert_array_equal(cropped(data, seed, 4), exactly(data, seed, 4))


def test_interpolations_are_drawn_evenly(photo):
    kinds = ("bilinear", "bicubic")
    counts = dict.fromkeys(kinds, 0)
    for seed in range(200):
        drawn = cropped(photo, seed, interpolation="random")
        matches = [kind for kind in kinds if (drawn == cropped(photo, seed, interpolation=kind)).all()]
        counts[matches[0]] += 1
    assert sum(counts.values()) == 200
    assert abs(counts["bicubic"] - 100) < 5 * np.sqrt(200 / 4)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["jpeg", "progressive"])
def test_a_truncated_jpeg_is_corrupt_wherever_the_crop_lies(encode, photo, options):
    data = encode(photo, "JPEG", **options)
    for missing in (1, 2, 3, 20, len(data) // 2, len(data) - 10):
        for seed in range(4):
            with pytest.raises(CorruptImage, match=r"^cat\.jpg cannot be read: "):
                cropped(data[:-missing], seed)


def test_a_broken_jpeg_says_what_is_wrong(encode, photo):
    data = encode(photo, "JPEG")
    place = data.index(b"\xff\xc4")  # Huffman tables
    with pytest.raises(CorruptImage, match=r"^cat\.jpg cannot be read: "):
        cropped(data[: place + 4] + b"\xff" * 40 + data[place + 44 :], 0)


def test_a_huge_jpeg_is_corrupt(encode, photo):
    data = encode(photo, "JPEG")
    place = jpeg.read_header(data).offset
    with pytest.raises(CorruptImage, match="it is too large"):
        cropped(data[:place] + struct.pack(">HH", 20_000, 20_000) + data[place + 4 :], 0)


def test_evaluation_takes_the_centre():
    image = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    resized = np.asarray(Image.fromarray(image).resize((16, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode.eval_crop(image, 8, 1.0), resized[:, 4:12])
    # floor(7 / 0.875) = 8: the same resize; margins (8 - 7) / 2 = 0.5 and (16 - 7) / 2 = 4.5 go to the even side.
    np.testing.assert_array_equal(decode.eval_crop(image, 7, 0.875), resized[:7, 4:11])


def test_evaluation_of_an_image_of_the_right_size_changes_nothing(photo):
    np.testing.assert_array_equal(decode.eval_crop(photo[:, :40], 40, 1.0), photo[:, :40])
    np.testing.assert_array_equal(decode.eval_crop(photo, 40, 1.0), photo[:, 10:50])
    # A margin of 5.5 goes to 6, one of 4.5 to 4, as Python's (and torchvision's) round does.
    np.testing.assert_array_equal(decode.eval_crop(photo[:, :51], 40, 1.0), photo[:, 6:46])
    np.testing.assert_array_equal(decode.eval_crop(photo[:, :49], 40, 1.0), photo[:, 4:44])


def test_of_a_very_narrow_image_only_the_centre_is_made(monkeypatch):
    """As the whole would have been, but for what lies outside; nothing of 2 x 10^8 pixels is made."""
    row = np.random.default_rng(0).integers(0, 256, (2, 600, 3), np.uint8)
    whole = decode.eval_crop(row, 14, 0.875)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    part = decode.eval_crop(row, 14, 0.875)
    assert np.abs(part.astype(int) - whole).max() <= 1
    monkeypatch.undo()
    assert (
        decode.eval_crop(np.full((1, 6000, 3), 7, np.uint8), 224, 0.875).tolist() == np.full((224, 224, 3), 7).tolist()
    )


@pytest.mark.parametrize("ratio", [0.0, 1.2])
def test_crop_ratio_is_checked(photo, ratio):
    with pytest.raises(UserError, match=f"crop_ratio is {ratio}, but must be above 0 and at most 1"):
        decode.eval_crop(photo, 8, ratio)
