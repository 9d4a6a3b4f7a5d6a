"""`prepare check` of scenes, and what a run says at its start."""

import shlex

import numpy as np
import pytest
from PIL import Image

from lape_jax.data import exif
from lape_jax.data.offline.parts import How
from lape_jax.data.offline.splits import DataSet
from lape_jax.errors import UserError
from lape_jax.tasks import TASKS
from lape_jax.tasks.segment import check, prepare, sources, survey
from lape_jax.tasks.segment.limits import Limits

SMALL = Limits(scale=(64, 48), window=32, stride=32, grid=4, classes=2)


@pytest.fixture
def tree(tmp_path, encode):
    """tree(train=[mask, ...], val=[...]) -> a directory of images and these maps; `note` is their EXIF orientation."""

    def make(note=1, **splits):
        exif_data = Image.Exif()
        exif_data[exif.TAG] = note
        for split, masks in splits.items():
            for number, mask in enumerate(masks):
                mask = np.asarray(mask, np.uint8)
                image = np.full((*(mask.T if note > 4 else mask).shape, 3), 40, np.uint8)
                for kind, data in (("images", encode(image, "JPEG", exif=exif_data)), ("masks", encode(mask))):
                    place = tmp_path / "set" / kind / split / f"{number}.{'jpg' if kind == 'images' else 'png'}"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(data)
        (tmp_path / "set/classes.txt").write_text("background\nobject\n")
        return DataSet("folder", str(tmp_path / "set"))

    return make


def report(data, wanted="", everything=True):
    lines = []
    try:
        check.report(data, wanted, everything=everything, threads=2, say=lines.append)
    except UserError as error:
        return lines, str(error)
    return lines, None


BOX = np.zeros((4, 6), np.uint8)
BOX[:2, :3] = 1


def test_a_directory_of_scenes(tree):
    data = tree(train=[BOX] * 3, val=[BOX.T])
    assert TASKS["segment"].recognises(data)
    assert not TASKS["classify"].recognises(data)
    lines, error = report(data)
    assert error is None
    assert lines[:-1] == [
        "train: 3 scenes of 2 classes",
        "  height 4, width 6 pixels; most often 4 x 6",
        "  pixels: background 75.0%, object 25.0%",
        "  3 read, 0 of them unusable",
        "val: 1 scenes of 2 classes",
        "  height 6, width 4 pixels; most often 6 x 4",
        "  pixels: background 75.0%, object 25.0%",
        "  1 read, 0 of them unusable",
    ]
    command = shlex.split(lines[-1].removeprefix("train on it: "))
    assert command[3:] == [f"--config={check.CONFIG}:path={data.path},source=folder", "--workdir=DIR"]


def test_classes_have_other_directories(tmp_path):
    for name in ("train/images", "images", "masks"):
        (tmp_path / name).mkdir(parents=True)
    assert not check.recognises(DataSet("folder", str(tmp_path)))
    assert not check.recognises(DataSet("folder", str(tmp_path / "train")))
    assert not check.recognises(DataSet("arrays", str(tmp_path)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (BOX * 255, "not a pixel of the 2 maps read is of class 'object'; 255 stands for no class: if it means one"),
        (BOX * 0, "not a pixel of the 2 maps read is of class 'object'"),
        (BOX * 0 + 255, "not a pixel of the 2 maps read has a class; 255 stands for no class"),
    ],
)
def test_classes_without_a_pixel_are_named(tree, mask, message, tmp_path):
    data = tree(train=[mask] * 2, val=[BOX])
    lines, error = report(data)
    assert any(line.startswith(f"  {message}") for line in lines)
    assert error == ("train cannot be used, as said above" if mask.min() == 255 else None)
    said = []
    options = {"short": 0, "quality": 90, "orientation": "view", "how": How(2, say=said.append)}
    if mask.min() == 255:
        with pytest.raises(UserError, match=r"^train: not a pixel of the 2 maps read has a class"):
            prepare.copy(data.path, "folder", "", str(tmp_path / "out"), "x", **options)
    else:
        prepare.copy(data.path, "folder", "", str(tmp_path / "out"), "x", **options)
        assert any(line.startswith(f"train: {message}") for line in said)


def test_values_that_are_no_classes_are_explained(tree):
    data = tree(train=[BOX + 1, BOX * 128], val=[BOX])
    lines, error = report(data)
    assert error == "2 of the scenes cannot be used, as said above"
    first, second = [line for line in lines if line.startswith("  unusable: the mask of")]
    assert first.endswith("and 255 for none; it seems to count its classes from 1: subtract 1 from all of them")
    assert second.endswith("; its values are 0 and 128: replace each by the number of its class, 0 to 1")


def test_rare_classes_of_a_part_are_not_cried_about(tree):
    source = sources.folder(tree(train=[BOX * 0] * 4).path, "train")
    few = survey.look(source, [0, 2], "view", None, 1)
    assert few.gaps() == ["not a pixel of the 2 maps read of 4 is of class 'object'"]
    few.classes = [str(number) for number in range(200)]
    assert few.gaps() == []
    few.total = 2
    (line,) = few.gaps()
    assert "'1', '2', '3', '4', '5', '6', '7', '8', ... (199 in all)" in line


def test_narrow_images_are_found_beforehand(tree):
    lines, error = report(tree(train=[BOX], val=[np.zeros((1, 6000), np.uint8)]))
    assert error == "1 of the scenes cannot be used, as said above"
    (line,) = [line for line in lines if "narrow" in line]
    assert "too narrow to be evaluated: " in line
    assert "images/val/0.jpg: an image of 6000 x 1 pixels" in line


@pytest.mark.parametrize("note", [3, 6])
def test_the_start_of_a_run(tree, note):
    path = tree(note, train=[BOX * 255] * 3, val=[BOX, np.zeros((1, 6000), np.uint8)]).path
    train, val = (sources.folder(path, split) for split in ("train", "val"))
    turned, gap, narrow = survey.start(train, val, "view", SMALL, 2)
    assert turned == "3 of 3 images read carry an EXIF orientation, which is followed (data.orientation=view)"
    assert gap.startswith("not a pixel of the 3 maps read is of class 'object'; 255 stands for no class")
    assert narrow.startswith(f"evaluation will stop: {path}/images/val/1.jpg: an image of 6000 x 1 pixels")
    assert survey.start(train, val, "stored", SMALL, 2)[0].endswith(
        "is not followed: --config.data.orientation=view does"
    ) == (note == 3)


def test_nothing_is_said_of_what_is_right(tree):
    path = tree(train=[BOX], val=[BOX]).path
    assert survey.start(sources.folder(path, "train"), sources.folder(path, "val"), "view", SMALL, 1) == []


@pytest.mark.parametrize("note", [3, 6])
@pytest.mark.parametrize("choice", ["view", "stored"])
@pytest.mark.parametrize("short", [0, 3])
def test_records_are_the_same_to_all_readers(tree, tmp_path, note, choice, short):
    """Of images with an orientation the copy has none."""
    from lape_jax.tasks.segment import masks
    from lape_jax.tasks.segment.records import tfds_scenes

    stored = BOX.T if note > 4 and choice == "stored" else BOX
    data = tree(note, train=[BOX], val=[BOX])
    for split in ("train", "val"):  # a map of what the choice means
        Image.fromarray(stored).save(f"{data.path}/masks/{split}/0.png")
    options = {"short": short, "quality": 90, "orientation": choice, "how": How(1, say=lambda line: None)}
    prepare.copy(data.path, "folder", "", str(tmp_path / "out"), "rooms", **options)
    scene = tfds_scenes("rooms", str(tmp_path / "out"), "train")[0]
    both = [masks.decode_scene(scene, 3, 2, how) for how in exif.CHOICES]
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one, other)
    if not short:
        np.testing.assert_array_equal(both[0][1], stored)
    copied = DataSet("tfds", str(tmp_path / "out"), "rooms")
    assert check.recognises(copied)
    lines, error = report(copied)
    assert (error, lines[0]) == (None, "train: 1 scenes of 2 classes")
    assert "--config.data.name=rooms --config.data.train_split=train --config.data.val_split=val" in lines[-1]
