import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lape_jax.data import pictures, rescale
from lape_jax.data.batches import Reading
from lape_jax.data.offline import look, tfds_files
from lape_jax.data.offline.parts import How
from lape_jax.data.order import Order
from lape_jax.data.records import prepared
from lape_jax.errors import UserError
from lape_jax.tasks.segment import masks
from lape_jax.tasks.segment import prepare as scenes
from lape_jax.tasks.segment.pipeline import View, train_scene_batches
from lape_jax.tasks.segment.records import tfds_scenes
from lape_jax.tasks.segment.scene import IGNORE, Scene
from lape_jax.tasks.segment.sources import ade20k, folder

CLASSES = ("wall", "flower pot", "crib")
ADE20K = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t1\twall\n2\t0.1\t6\t6\tflower pot, pot\n3\t0.02\t9\t1\tcrib\n"
SPLITS = {"ade20k": ("training", "validation"), "folder": ("train", "val")}
OPEN = {"ade20k": ade20k, "folder": folder}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def tree(tmp_path, encode):
    """tree(layout) -> a directory of 5 and 2 noisy images (JPEG, the last PNG) with maps of all classes and of none."""

    def make(layout: str) -> Path:
        rng = np.random.default_rng(0)
        root, first = tmp_path / f"{layout} files", {"ade20k": 1, "folder": 0}[layout]
        maps = {"ade20k": "annotations", "folder": "masks"}[layout]
        for split, count in zip(SPLITS[layout], (5, 2), strict=True):
            for kind in ("images", maps):
                (root / kind / split).mkdir(parents=True)
            for number in range(count):
                height, width = 16 + number, 26 - 2 * number
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                labels = rng.choice([*range(first + 3), 255], (height, width)).astype(np.uint8)
                form = "PNG" if number == 1 else "JPEG"
                (root / "images" / split / f"{number}.{form.lower()}").write_bytes(encode(pixels, form))
                (root / maps / split / f"{number}.png").write_bytes(encode(labels))
        if layout == "ade20k":
            (root / "objectInfo150.txt").write_text(ADE20K)
        else:
            (root / "classes.txt").write_text("\n".join(CLASSES))
        return root

    return make


def copy(path, out, layout="folder", wanted="", name="rooms", *, short=0, say=lambda line: None):
    scenes.copy(
        str(path), layout, wanted, str(out), name, short=short, quality=90, orientation="view", how=How(2, say=say)
    )
    return Path(out) / name / "1.0.0"


def content(directory):
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("layout", ["ade20k", "folder"])
def test_the_copy_holds_the_same_scenes(tree, tmp_path, layout):
    path = tree(layout)
    copy(path, tmp_path / "out", layout)
    for split, count in zip(SPLITS[layout], (5, 2), strict=True):
        before, after = OPEN[layout](str(path), split), tfds_scenes("rooms", str(tmp_path / "out"), split)
        assert after.classes == before.classes == CLASSES
        assert len(after) == len(before) == count
        for index in range(count):
            assert after[index].image == before[index].image
            assert layout == "ade20k" or after[index].mask == before[index].mask
            labels = masks.decode_scene(after[index], 3, 3)[1]
            np.testing.assert_array_equal(labels, masks.decode_scene(before[index], 3, 3)[1])
            assert set(np.unique(labels)) == {IGNORE, 0, 1, 2}
            assert after.records[index]["file_name"].decode() == before.files[index]


def test_tfds_itself_reads_the_same(tree, tmp_path):
    path = tree("ade20k")
    builder = tfds.builder_from_directory(copy(path, tmp_path / "out", "ade20k"))
    feature = builder.info.features["segmentation_mask"]
    assert (feature.names, feature.num_classes) == (list(CLASSES), 3)
    assert "rooms" in builder.info.full_name
    assert "ade20k files, images and maps of classes, of which 255 is none." in builder.info.description
    stored = np.asarray(Image.open(path / "annotations/validation/0.png"))
    expected = np.where((stored == 0) | (stored == 255), 255, stored.astype(int) - 1)
    record = builder.as_data_source("validation")[0]
    np.testing.assert_array_equal(record["segmentation_mask"][..., 0], expected)
    assert record["image"].shape == (16, 26, 3)


@pytest.mark.parametrize("layout", ["ade20k", "folder"])
def test_training_gets_the_same_batches(tree, tmp_path, layout):
    path, split = tree(layout), SPLITS[layout][0]
    copy(path, tmp_path / "out", layout)
    asked = Reading(Order(1, 4), range(3), threads=2)
    view = View(12, 3, (40, 16), (0.5, 2.0), 0.75, flip=True, distort=True)
    before, after = (
        list(train_scene_batches(source, asked, view))
        for source in (OPEN[layout](str(path), split), tfds_scenes("rooms", str(tmp_path / "out"), split))
    )
    for batch, same in zip(before, after, strict=True):
        assert batch.keys() == same.keys()
        for key, array in batch.items():
            assert array.dtype == same[key].dtype
            np.testing.assert_array_equal(array, same[key])
    assert any((batch["label"] == IGNORE).any() for batch in after)


def test_maps_of_other_kinds_become_grey(tree, tmp_path, encode):
    path = tree("folder")
    labels = np.arange(16 * 26).reshape(16, 26) % 3
    palette = Image.fromarray(labels.astype(np.uint8)).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    for kind, picture, options in (
        ("palette", palette, {}),
        ("16 bits", Image.fromarray(labels.astype(np.uint16)), {}),
        ("2 bits", palette, {"bits": 2}),
        ("1 bit", Image.fromarray(labels > 1), {}),
    ):
        picture.save(path / "masks/val/0.png", **options)
        copy(path, tmp_path / kind, wanted="val")
        mask = tfds_scenes("rooms", str(tmp_path / kind), "val")[0].mask
        assert mask != (path / "masks/val/0.png").read_bytes()
        grey = pictures.open_picture(mask, "mask", ("PNG",))
        assert (grey.mode, mask[24]) == ("L", 8)
        np.testing.assert_array_equal(np.asarray(grey), labels if kind != "1 bit" else labels > 1)


def test_larger_scenes_are_reduced(encode, photo):
    labels = (np.arange(40)[:, None] * 60 + np.arange(60)) % 5  # 1 and 2 are classes 0 and 1, 0 is none
    labels = np.where(labels > 2, 255, labels).astype(np.uint8)
    scene = Scene(encode(photo), encode(labels), "x", first=1)
    small = scenes.convert(scene, 2, 24, 90)
    pixels, found = masks.decode_scene(small, 3, 2)
    np.testing.assert_array_equal(pixels, rescale.resize(photo, 24, 36))  # PNG: nothing is lost
    whole = masks.decode_scene(scene, 3, 2)[1]
    np.testing.assert_array_equal(found, whole[np.arange(24) * 40 // 24][:, np.arange(36) * 60 // 36])
    jpeg = scenes.convert(Scene(encode(photo, "JPEG"), encode(labels), "x", first=1), 2, 24, 90).image
    assert pictures.open_picture(jpeg, "x", ("JPEG",)).size == (36, 24)
    tall = Scene(encode(photo.swapaxes(0, 1)), encode(labels.T), "x", first=1)
    assert masks.decode_scene(scenes.convert(tall, 2, 23, 90), 3, 2)[1].shape == (35, 23)  # 34.5 is rounded up
    for short in (0, 40, 41):
        assert scenes.convert(scene, 2, short, 90).image == scene.image


def test_a_reduced_copy(tree, tmp_path):
    path, lines = tree("folder"), []
    copy(path, tmp_path / "out", name="", short=16, say=lines.append)
    assert os.listdir(tmp_path / "out") == ["folder_files_16"]
    source = tfds_scenes("folder_files_16", str(tmp_path / "out"), "train")
    sizes = [masks.decode_scene(source[index], 3, 3)[1].shape for index in range(5)]
    assert sizes == [(16, 26), (16, 23), (16, 20), (16, 17), (18, 16)]
    options = json.loads((tmp_path / "out/folder_files_16/1.0.0/options.json").read_text())
    assert (options["layout"], options["short"], options["quality"]) == ("folder", 16, 90)
    assert lines[0] == "all 7 pairs can be used"
    assert "--config.data.name=folder_files_16 --config.data.train_split=train --config.data.val_split=val" in lines[-1]


class Killed(BaseException):
    """Passes every `except Exception`, as a kill would."""


def killer(patch, moment):
    """Raises Killed before or after the n-th change of the disk."""
    calls = 0

    def tick():
        nonlocal calls
        calls += 1
        if calls == moment:
            raise Killed

    def wrap(function):
        def wrapped(*args, **kwargs):
            tick()
            result = function(*args, **kwargs)
            tick()
            return result

        return wrapped

    for module, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree"), (tfds_files, "ArrayRecordWriter")):
        patch.setattr(module, name, wrap(getattr(module, name)))


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(tree, tmp_path):
    path = tree("ade20k")
    whole = content(copy(path, tmp_path / "whole", "ade20k"))
    assert len(whole) == 2 + 4
    moment, looked_again = 0, 0
    while True:
        moment += 1
        out = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            killer(patch, moment)
            try:
                copy(path, out, "ade20k")
                break
            except Killed:
                pass
        done = out / "rooms/1.0.0"
        assert not done.exists() or content(done) == whole
        assert ("rooms" in prepared(str(out))) == done.exists()
        lines = []
        copy(path, out, "ade20k", say=lines.append)
        looked_again += "all 7 pairs can be used" in lines
        assert content(done) == whole
        assert os.listdir(out / "rooms") == ["1.0.0"]
    assert moment > 20
    assert looked_again == 1  # only if nothing had been begun


def test_what_is_written_is_looked_at_when_it_goes_on_too(tree, tmp_path, encode):
    path = tree("folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_files, "write_shard", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy(path, tmp_path / "out")
    (path / "masks/val/1.png").write_bytes(encode(np.full((17, 24), 9, np.uint8)))
    with pytest.raises(UserError, match=r"the mask of .*images/val/1\.png has the value 9 in row 0, column 0"):
        copy(path, tmp_path / "out")
    assert not (tmp_path / "out/rooms/1.0.0").exists()
    (path / "masks/val/1.png").write_bytes(encode(np.full((17, 24), 2, np.uint8)))
    (path / "images/val/0.jpeg").write_bytes(b"")
    with pytest.raises(UserError, match=r"images/val/0\.jpeg cannot be read: it is empty"):
        copy(path, tmp_path / "out")


def test_all_pairs_that_cannot_be_used_are_named_before_the_work(tree, tmp_path, encode, monkeypatch):
    path, lines = tree("folder"), []
    (path / "masks/train/1.png").write_bytes(encode(np.zeros((3, 4), np.uint8)))
    (path / "masks/train/3.png").write_bytes(b"no PNG")
    (path / "masks/val/0.png").write_bytes(encode(np.full((16, 26), 3, np.uint8)))
    with pytest.raises(UserError, match=r"^3 of the 7 pairs cannot be used, as said above: nothing was written$"):
        copy(path, tmp_path / "out", say=lines.append)
    assert not (tmp_path / "out").exists()
    for line, start, reason in zip(
        lines,
        (f"train: the mask of {path}/images/train/1.png", "train: the mask of", "val: the mask of"),
        ("has 4 x 3 pixels", f"{path}/images/train/3.jpeg cannot be read: it is not a PNG image", "has the value 3"),
        strict=True,
    ):
        assert line.startswith(start)
        assert reason in line
    monkeypatch.setattr(look, "MOST", 2)
    with pytest.raises(UserError, match=r"^2 pairs cannot be used, as said above; the rest was not looked at$"):
        copy(path, tmp_path / "out", say=lines.append)
    assert len(lines) == 5


def test_a_finished_copy_is_left_alone_and_not_mixed_with_others(tree, tmp_path):
    path, lines = tree("folder"), []
    done = copy(path, tmp_path / "out")
    copy(path, tmp_path / "out", say=lines.append)
    assert lines[:-1] == [f"{done} is there already, whole"]
    with pytest.raises(UserError, match=r"was written with other options \(short was 0 and is 9 now\)"):
        copy(path, tmp_path / "out", short=9)
    (path / "images/val/1.png").rename(path / "images/val/8.png")
    (path / "masks/val/1.png").rename(path / "masks/val/8.png")
    with pytest.raises(UserError, match="its source had other splits, classes or files"):
        copy(path, tmp_path / "out")


def test_what_cannot_be_done(tree, tmp_path):
    path, out = tree("folder"), tmp_path / "out"
    other = tree("ade20k")
    for arguments, options, message in (
        (("", out), {}, "^--path=DIR is missing"),
        ((path / "no", out), {}, "^--path=.*/no is not a directory"),
        ((path, path / "images/x"), {}, "lies in the data set itself"),
        ((path, out), {"name": "My-Rooms"}, r"--as=My-Rooms: the name must consist of a-z"),
        ((path, out, "folders"), {}, r"--layout: 'folders' is not one of ade20k, folder \(did you mean 'folder'"),
        ((path, out, "ade20k"), {}, r"has no directory 'annotations', but 'masks': its layout is --layout=folder"),
        ((other, out), {}, r"has no directory 'masks', but 'annotations': its layout is --layout=ade20k"),
        ((path, out), {"wanted": "train,vall"}, r"--splits: 'vall' is not one of train, val \(did you mean 'val'"),
    ):
        with pytest.raises(UserError, match=message):
            copy(*arguments, **options)
    (path / "images/test").mkdir()
    with pytest.raises(UserError, match=r"has no directory 'test'; .*; --splits=train,val leaves test out"):
        copy(path, out)
    (path / "images/test").rename(path / "images/old test")
    with pytest.raises(UserError, match=r"a split cannot be called 'old test', only by letters.*rename .*/old test"):
        copy(path, out)
    shutil.rmtree(path / "images")
    (path / "images").mkdir()
    with pytest.raises(UserError, match=r"images holds no directory of a split, as train/; it holds nothing"):
        copy(path, out)
    assert not out.exists()
