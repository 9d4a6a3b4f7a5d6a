import shlex

import numpy as np
import pytest
from PIL import Image

from lape_jax.config.reading import parse_arg
from lape_jax.data import survey
from lape_jax.data.offline import check, look
from lape_jax.data.offline.splits import DataSet
from lape_jax.errors import UserError


def report(data, wanted="", everything=False):
    """The lines of the report, and the error at its end."""
    lines = []
    try:
        check.report(data, wanted, everything=everything, threads=2, say=lines.append)
    except UserError as error:
        return lines, str(error)
    return lines, None


def test_a_folder(photos):
    path = photos(train=5, val=2)
    size = sum(file.stat().st_size for file in (path / "train").rglob("*.jpeg"))
    lines, error = report(DataSet("folder", str(path)))
    assert error is None
    assert lines[:4] == [
        f"train: 5 examples of 2 classes, {size / 1e6:.1f} MB",
        "  examples per class: 2 to 3",
        "  height 12, width 16 pixels; most often 12 x 16",
        "  5 read (--all reads all), 0 of them unreadable",
    ]
    assert lines[4].startswith("val: 2 examples of 2 classes")
    assert lines[-1] == (
        f"train on it: python -m lape_jax.main --config=configs/images.py:path={path},val=val --workdir=DIR"
    )


def test_the_command_can_be_pasted_into_a_shell(photos, tmp_path):
    path = photos(train=1, val=1).rename(tmp_path / "my photos")
    command = shlex.split(report(DataSet("folder", str(path)))[0][-1].removeprefix("train on it: "))
    assert command[3:] == [f"--config=configs/images.py:path={path},val=val", "--workdir=DIR"]


def test_a_comma_in_the_path_of_the_command(photos, tmp_path):
    path = photos(train=1, val=1).rename(tmp_path / "my, photos")
    command = shlex.split(report(DataSet("folder", str(path)))[0][-1].removeprefix("train on it: "))
    arg = command[3].removeprefix("--config=configs/images.py:")
    assert parse_arg(arg, path="", val="").to_dict() == {"path": str(path), "val": "val"}


def test_orientations_and_dim_images_are_counted(photos, encode):
    path = photos(train=3)
    note = Image.Exif()
    note[0x0112] = 6
    (path / "train/a/00.jpeg").write_bytes(encode(np.zeros((12, 16, 3), np.uint8), "JPEG", exif=note))
    (path / "train/b/x.png").write_bytes(encode(np.full((12, 16), 4095, np.uint16)))
    lines, error = report(DataSet("folder", str(path)))
    assert error is None
    assert lines[4].startswith("  1 of 4 images read carry an EXIF orientation, which data.orientation=view follows")
    assert lines[5].startswith(f"  1 of 4 images read, as {path}/train/b/x.png: nearly black, as the upper 2 of 16")
    source = DataSet("folder", str(path)).open("train")
    turned, dim = survey.start(source, "view", 2)
    assert turned == "1 of 4 images read carry an EXIF orientation, which is followed (data.orientation=view)"
    assert dim == lines[5].strip()
    assert survey.start(source, "stored", 2)[0].endswith("is not followed: --config.data.orientation=view does")


def test_unreadable_images_are_named(photos):
    path = photos(train=5, val=2)
    bad = path / "train/a/02.jpeg"
    bad.write_bytes(bad.read_bytes()[:-20])
    (path / "val/b/01.jpeg").write_bytes(b"")
    lines, error = report(DataSet("folder", str(path)))
    assert error == "2 of the images cannot be read, as said above"
    first, second = [line for line in lines if "unreadable:" in line]
    assert first.startswith(f"  unreadable: {bad}: image file is truncated (")
    assert second == f"  unreadable: {path}/val/b/01.jpeg: it is empty (0 bytes)"
    lines, error = report(DataSet("folder", str(path)), "val")
    assert (error, len(lines)) == ("1 of the images cannot be read, as said above", 5)


def test_a_sample_is_read_unless_all_are(photos, monkeypatch):
    path = photos(train=7)
    (path / "train/b/05.jpeg").write_bytes(b"")  # the last one
    monkeypatch.setattr(look, "SAMPLE", 3)
    monkeypatch.setattr(check, "CHUNK", 2)
    lines, error = report(DataSet("folder", str(path)))
    assert (lines[3], error) == ("  3 read (--all reads all), 0 of them unreadable", None)
    (path / "train/b/01.jpeg").write_bytes(b"")  # the fifth: of 0, 2 and 4
    assert report(DataSet("folder", str(path)))[1] == "1 of the images cannot be read, as said above"
    lines, error = report(DataSet("folder", str(path)), everything=True)
    assert (lines[3], error) == ("  7 read, 2 of them unreadable", "2 of the images cannot be read, as said above")


def test_splits_that_cannot_be_used(photos):
    path = photos(train=2)
    (path / "val").mkdir()
    (path / "val/ILSVRC2012_val_00000001.JPEG").touch()
    lines, error = report(DataSet("folder", str(path)))
    assert error == "val cannot be used, as said above; --splits=train leaves that out"
    assert lines[-1].startswith(f"val: cannot be used: {path}/val has no class directories, only ILSVRC2012_val_0000")
    assert report(DataSet("folder", str(path)), "train")[1] is None


def test_classes_without_examples(photos):
    path = photos(train=2, val=1)
    lines, _ = report(DataSet("folder", str(path)))
    assert lines[5:7] == ["  examples per class: 0 to 1", "  classes without examples: b"]


def test_arrays(tmp_path):
    images = np.zeros((4, 3, 5, 1), np.uint8)
    np.savez(tmp_path / "train.npz", image=images, label=[0, 1, 1, 1], classes=["a", "b"])
    np.savez(tmp_path / "test.npz", image=images, label=[0, 1, 1, 2])
    lines, error = report(DataSet("arrays", str(tmp_path)))
    assert lines[:3] == [
        "train: 4 examples of 2 classes, 0.0 MB",
        "  examples per class: 1 to 3",
        "  height 3, width 5 pixels; most often 3 x 5",
    ]
    assert lines[4] == f"test: cannot be used: label[3] of {tmp_path}/test.npz is 2, but the 2 classes are 0 to 1"
    assert error == "test cannot be used, as said above; --splits=train leaves that out"
    np.savez(tmp_path / "test.npz", image=images, label=[0, 1, 1, 1])
    assert report(DataSet("arrays", str(tmp_path)))[0][-1] == (
        f"train on it: python -m lape_jax.main --config=configs/images.py:path={tmp_path},val=test --workdir=DIR"
        f" --config.data.source=arrays"
    )


@pytest.fixture
def pets(tmp_path, encode, write_tfds):
    image = encode(np.zeros((4, 6, 3), np.uint8))
    write_tfds(tmp_path / "pets/1.0.0", {"train": [(image, 1)] * 6, "test": [(image, 0), (image, 2)]})
    write_tfds(tmp_path / "old/2.0.0", {"train": [(image, 1)]}, form="tfrecord")
    return tmp_path


def test_a_tfds_data_set(pets):
    lines, error = report(DataSet("tfds", str(pets), "pets"), everything=True)
    size = sum(file.stat().st_size for file in (pets / "pets/1.0.0").glob("*-train.*"))
    assert error is None
    assert lines[:4] == [
        f"train: 6 examples of 3 classes, {size / 1e6:.1f} MB",
        "  examples per class: 0 to 6",
        "  classes without examples: cat, owl",
        "  height 4, width 6 pixels; most often 4 x 6",
    ]
    assert lines[-1] == (
        f"train on it: python -m lape_jax.main --config=configs/images.py:tfds=pets,path={pets},val=test --workdir=DIR"
    )
    (pets / "pets/1.0.0/pets-train.array_record-00001-of-00002").unlink()
    lines, error = report(DataSet("tfds", str(pets), "pets"))
    assert error == "train cannot be used, as said above"
    assert "1 of the 2 files of pets/1.0.0 are missing" in lines[0]
    with pytest.raises(UserError, match=r"old/2\.0\.0 is stored as tfrecord; .* lape_jax.prepare tfds old --path="):
        check.report(DataSet("tfds", str(pets), "old"), everything=False, threads=1)


def test_all_tfds_data_sets_are_listed(pets, tmp_path):
    lines, error = report(DataSet("tfds", str(pets)))
    assert error is None
    assert lines[:2] == [
        "old:2.0.0: train 1; tfrecord; not readable yet: prepare tfds converts it",
        "pets:1.0.0: train 6, test 2; array_record",
    ]
    (tmp_path / "empty").mkdir()
    assert report(DataSet("tfds", str(tmp_path / "empty")))[1] == f"{tmp_path}/empty holds no TFDS data set"
