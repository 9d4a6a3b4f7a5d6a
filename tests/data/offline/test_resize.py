import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from lape_jax.data import decode
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.offline import parts, resize
from lape_jax.data.offline.splits import DataSet
from lape_jax.data.records import tfds_records
from lape_jax.errors import UserError

OPTIONS = {"short": 8, "quality": 90, "orientation": "stored"}


@pytest.mark.parametrize(
    ("size", "smaller"),
    [((40, 60), (30, 20)), ((60, 40), (20, 30)), ((67, 41), (20, 32)), ((40, 40), (20, 20)), ((21, 200), (190, 20))],
)
def test_the_shorter_side_is_reduced_and_the_aspect_kept(encode, size, smaller):
    pixels = np.zeros((*size, 3), np.uint8)
    assert Image.open(io.BytesIO(resize.shrink(encode(pixels, "JPEG"), 20, 90, "x"))).size == smaller


def test_evaluation_sees_the_same_pixels_as_before(encode, photo):
    small = decode.decode(resize.shrink(encode(photo), 20, 90, "x"), 3, "x")  # PNG: nothing is lost
    assert small.shape == (20, 30, 3)
    np.testing.assert_array_equal(decode.eval_crop(small, 18, 0.9), decode.eval_crop(photo, 18, 0.9))
    assert not np.array_equal(decode.eval_crop(small, 18, 0.6), decode.eval_crop(photo, 18, 0.6))


def test_jpeg_stays_jpeg_without_metadata_and_png_stays_png(encode, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.open(io.BytesIO(resize.shrink(encode(photo, "JPEG", exif=exif, quality=95), 20, 90, "x")))
    reference = Image.open(io.BytesIO(encode(photo, "JPEG", quality=90, subsampling="4:2:0")))
    assert (small.format, small.mode, small.getexif()) == ("JPEG", "RGB", {})
    assert small.quantization == reference.quantization
    assert JpegImagePlugin.get_sampling(small) == JpegImagePlugin.get_sampling(reference)
    assert Image.open(io.BytesIO(resize.shrink(encode(photo), 20, 90, "x"))).format == "PNG"


def test_small_images_are_kept_byte_by_byte_but_not_unread(encode, photo):
    data = encode(photo, "JPEG")  # 40 rows
    assert resize.shrink(data, 40, 90, "x") is data
    assert resize.shrink(data, 39, 90, "x") != data
    with pytest.raises(CorruptImage, match="y cannot be read"):
        resize.shrink(data[:-30], 40, 90, "y")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("choice", ["view", "stored"])
@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {})])
@pytest.mark.parametrize("short", [20, 40])
def test_copies_carry_no_orientation(encode, photo, orientation, choice, form, options, short):
    note = Image.Exif()
    note[0x0112] = orientation
    data = encode(photo, form, exif=note, **options)
    copy = resize.shrink(data, short, 95, "x", choice)
    pixels = decode.decode(copy, 3, "x", "view")
    np.testing.assert_array_equal(pixels, decode.decode(copy, 3, "x", "stored"))
    assert copy[:2] == data[:2]
    whole = decode.decode(data, 3, "x", choice)
    if short == 40 and (form, choice) != ("JPEG", "view"):
        np.testing.assert_array_equal(pixels, whole)
    else:
        size = tuple(round(side * short / 40) for side in whole.shape[1::-1])
        smaller = np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BICUBIC))
        assert np.abs(pixels.astype(int) - smaller).mean() < 10


@pytest.mark.parametrize("form", ["WEBP", "BMP", "TIFF", "GIF"])
def test_what_tfds_does_not_read_becomes_png_or_jpeg(encode, photo, form):
    data = encode(photo, form)
    same = resize.shrink(data, 40, 90, "x")
    assert Image.open(io.BytesIO(same)).format == "PNG"
    np.testing.assert_array_equal(decode.decode(same, 3, "x"), decode.decode(data, 3, "x"))
    small = Image.open(io.BytesIO(resize.shrink(data, 20, 90, "x")))
    assert (small.format, small.size) == ("JPEG" if form == "WEBP" else "PNG", (30, 20))


def test_the_copy_is_a_tfds_data_set(photos, tmp_path):
    lines = []
    path = photos(train=5, val=2)
    resize.copy(
        DataSet("folder", str(path)), "", str(tmp_path / "out"), "", **OPTIONS, how=parts.How(2, say=lines.append)
    )
    train, val = (tfds_records("photos_8", str(tmp_path / "out"), split) for split in ("train", "val"))
    assert train.classes == val.classes == ("a", "b")
    files = sorted((path / "train").rglob("*.jpeg"))
    assert [train[index].image for index in range(5)] == [
        resize.shrink(file.read_bytes(), 8, 90, "x") for file in files
    ]
    assert [train[index].label for index in range(5)] == [0, 0, 0, 1, 1]
    names = [train.records[index]["file_name"].decode() for index in range(5)]
    assert names == ["a/00.jpeg", "a/02.jpeg", "a/04.jpeg", "b/01.jpeg", "b/03.jpeg"]
    assert decode.decode(val[1].image, 3, "x").shape == (8, 10, 3)
    before = sum(file.stat().st_size for file in files)
    after = sum(len(train[index].image) for index in range(5))
    sizes = f"{before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({after / before:.0%})"
    assert lines[0] == f"train: 5 images, {sizes}"
    assert lines[2].startswith("7 images in ")
    assert lines[3] == f"look it over: python -m lape_jax.prepare check --name=photos_8 --path={tmp_path}/out"


def test_a_tfds_data_set_is_copied_too(write_tfds, encode, photo, tmp_path):
    write_tfds(tmp_path / "in/pets/1.0.0", {"train": [(encode(photo), 2)] * 7, "test": [(encode(photo), 0)]})
    data = DataSet("tfds", str(tmp_path / "in"), "pets:1.0.0")
    resize.copy(data, "", str(tmp_path / "out"), "", **OPTIONS, how=parts.How(2, say=lambda line: None))
    copy = tfds_records("pets_8", str(tmp_path / "out"), "train[6:]")
    assert (len(copy), copy.classes, copy[0].label) == (1, ("cat", "dog", "owl"), 2)
    assert copy[0].image == resize.shrink(encode(photo), 8, 90, "x")
    options = json.loads((tmp_path / "out/pets_8/1.0.0/options.json").read_text())
    assert (options["origin"], options["short"], options["left_out"]) == ("pets/1.0.0", 8, {})


def test_splits_without_labels_are_named_before_the_work(write_tfds, encode, photo, tmp_path):
    write_tfds(tmp_path / "in/pets/1.0.0", {"train": [(encode(photo), 2)], "test": [(encode(photo), -1)]})
    data, out = DataSet("tfds", str(tmp_path / "in"), "pets"), tmp_path / "out"
    with pytest.raises(UserError, match=r"test\[0\] has the label -1, .* without test: --splits=A,B"):
        resize.copy(data, "", str(out), "", **OPTIONS, how=parts.How(2))
    assert not out.exists()
    resize.copy(data, "train", str(out), "", **OPTIONS, how=parts.How(2, say=lambda line: None))
    assert len(tfds_records("pets_8", str(out), "all")) == 1


def test_what_cannot_be_done(photos, tmp_path):
    path, elsewhere = photos(train=1), str(tmp_path / "out")
    for data, name, out, message in (
        (DataSet("arrays", str(path)), "", elsewhere, "arrays cannot be resized"),
        (DataSet("folder", str(path)), "My-Copy", elsewhere, r"--as=My-Copy: the name must consist of a-z"),
        (DataSet("folder", str(path)), "", str(path / "train" / ".." / "small"), "lies in the data set itself"),
        (
            DataSet("folder", str(path), train="training"),
            "",
            elsewhere,
            r"no split 'training' \(--train\).*found: train",
        ),
        (DataSet("folders", str(path)), "", elsewhere, "--source: 'folders' is not one of .*did you mean 'folder'"),
        (DataSet("folder", str(path / "no")), "", elsewhere, "--path=.*/no is not a directory"),
    ):
        with pytest.raises(UserError, match=message):
            resize.copy(data, "", out, name, **OPTIONS, how=parts.How(2))
    with pytest.raises(UserError, match=r"--splits: 'vall' is not one of train"):
        resize.copy(DataSet("folder", str(path)), "train,vall", elsewhere, "", **OPTIONS, how=parts.How(2))
    assert [entry.name for entry in Path(tmp_path).iterdir()] == ["photos"]


@pytest.mark.parametrize(("directory", "name"), [("My Photos (2)", "my_photos_2_8"), ("2024", "images_2024_8")])
def test_the_copy_gets_a_name_that_tfds_can_use(photos, tmp_path, directory, name):
    path = photos(train=1).rename(tmp_path / directory)
    resize.copy(
        DataSet("folder", str(path)), "", str(tmp_path / "out"), "", **OPTIONS, how=parts.How(2, say=lambda line: None)
    )
    assert len(tfds_records(name, str(tmp_path / "out"), "train")) == 1
