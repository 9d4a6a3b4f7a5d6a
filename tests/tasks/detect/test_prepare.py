"""`prepare objects`: the same objects and batches from array_record as from files; and `prepare check`."""

import json
import os
import shlex

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lape_jax.data.batches import Reading
from lape_jax.data.offline.parts import How
from lape_jax.data.offline.splits import DataSet
from lape_jax.data.order import ALL
from lape_jax.errors import UserError
from lape_jax.tasks import TASKS
from lape_jax.tasks.detect import bitmaps, check, coco, pipeline, prepare, sources
from tests.tasks.detect import samples
from tests.tasks.detect.test_sources import config


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def three():
    """Images of 40 x 60, 64 x 48 and 33 x 34 pixels: the last without an object, which training leaves out."""
    found = samples.content()
    found["images"].insert(0, {"id": 5, "file_name": "c.png", "height": 33, "width": 34})
    found["annotations"].append({**found["annotations"][0], "id": 9, "category_id": 99})
    return found


@pytest.fixture
def mine(tmp_path):
    """A data set under names of one's own."""
    root = tmp_path / "my set"
    root.mkdir()
    samples.write(root, three())
    samples.write(root, samples.content(), "val.json")
    Image.fromarray(np.full((33, 34, 3), 90, np.uint8)).save(root / "c.png")
    return root


def official(mine):
    """The same as COCO's authors would publish it."""
    (mine / "annotations").mkdir()
    for name in ("train", "val"):
        os.rename(mine / f"{name}.json", mine / "annotations" / f"instances_{name}2017.json")
        (mine / f"{name}2017").mkdir()
        for image in ("a.png", "b.png", "c.png"):
            (mine / f"{name}2017" / image).write_bytes((mine / image).read_bytes())


def copy(path, out, wanted="", name="", short=0):
    lines = []
    prepare.copy(
        str(path), wanted, str(out), name, short=short, quality=90, orientation="view", how=How(2, say=lines.append)
    )
    return lines


def of_records(out, name, splits=("train", "val")):
    found = config(out)
    found.data.source, found.data.name = "tfds", name
    found.data.train_split, found.data.val_split = splits
    return found


def batches(found, total=3):
    found.batch_size, found.augment.flip = 2, True
    found.detect.update(canvas=(64, 64), short=(32, 48), long=64, crop_short=(24, 40), crop=(16, 30), max_objects=3)
    with pipeline.train_batches(sources.open_photos(found, "train"), found, Reading.of(found, 0, total, ALL)) as made:
        return list(made)


def same_objects(one, other):
    assert (one.height, one.width) == (other.height, other.width)
    for name in ("boxes", "labels", "crowd", "learned", "areas"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left.dtype, left.tobytes()) == (right.dtype, right.tobytes())
    for left, right in zip(one.masks, other.masks, strict=True):
        np.testing.assert_array_equal(*(bitmaps.bitmap(mask, one.height, one.width) for mask in (left, right)))


@pytest.mark.parametrize("layout", ["json", "coco"])
def test_records_hold_the_same_objects_and_give_the_same_batches(mine, tmp_path, layout):
    splits = ("train", "val")
    if layout == "coco":
        official(mine)
        splits = ("train2017", "val2017")
    name = {"json": "my_set", "coco": "coco"}[layout]
    lines = copy(mine, tmp_path / "out")
    assert lines[0] == "all 5 images can be used"
    before, after = config(mine), of_records(tmp_path / "out", name, splits)
    before.data.source, (before.data.train_split, before.data.val_split) = layout, splits
    for split, count in (("train", 2), ("val", 2)):
        files, records = (sources.open_photos(one, split) for one in (before, after))
        assert (len(files), files.classes, files.ids) == (count, records.classes, records.ids)
        assert [*records.left] == [*files.left]
        for index in range(count):
            assert (records[index].number, records[index].image()) == (files[index].number, files[index].image())
            same_objects(records[index].objects, files[index].objects)
    for one, other in zip(batches(before), batches(after), strict=True):
        assert {name: array.tobytes() for name, array in one.items()} == {
            name: array.tobytes() for name, array in other.items()
        }
    assert one["valid"].any()
    command = shlex.split(lines[-1].removeprefix("train on it: "))
    assert [command[3], *command[5:]] == {
        "coco": [f"--config=configs/mask_rcnn_vit_adapter_ti_coco.py:path={tmp_path / 'out'},source=tfds"],
        "json": [
            f"--config=configs/detect.py:path={tmp_path / 'out'}",
            "--config.data.source=tfds",
            "--config.data.name=my_set",
        ],
    }[layout]


def test_tfds_itself_reads_the_images(mine, tmp_path):
    copy(mine, tmp_path / "out")
    directory = tmp_path / "out/my_set/1.0.0"
    record = tfds.builder_from_directory(directory).as_data_source("val")[1]
    assert (record["image_id"], record["file_name"], record["image"].shape) == (10, b"b.png", (64, 48, 3))
    assert json.loads((directory / "val.json").read_text()) == samples.content()


def test_a_reduced_copy(mine, tmp_path):
    lines = copy(mine, tmp_path / "out", short=32)
    assert "my_set_32" in lines[-1]
    before = sources.open_photos(config(mine), "val")
    after = sources.open_photos(of_records(tmp_path / "out", "my_set_32"), "val")
    assert [pipeline.examine(photo, "view").pixels.shape for photo in (after[0], after[1])] == [
        (32, 48, 3),
        (43, 32, 3),
    ]
    for index, ratios in enumerate(([48 / 60, 32 / 40], [32 / 48, 43 / 64])):
        one, other = before[index].objects, after[index].objects
        np.testing.assert_allclose(other.boxes, one.boxes * [*ratios, *ratios], rtol=1e-12)
        np.testing.assert_allclose(other.areas, one.areas * np.prod(ratios), rtol=1e-12)
    (polygons, rle), (old, _) = after[0].objects.masks, before[0].objects.masks
    np.testing.assert_allclose(polygons[0], old[0] * np.tile([48 / 60, 32 / 40], 4))
    assert bitmaps.bitmap(rle, 32, 48).sum() == 6  # 3 x 2 pixels, as before
    with pytest.raises(UserError, match=r"other options \(short was 32 and is 30 now\)"):
        copy(mine, tmp_path / "out", name="my_set_32", short=30)


def test_boxes_without_masks(mine, tmp_path):
    for name, found in (("train.json", three()), ("val.json", samples.content())):
        for item in found["annotations"]:
            del item["segmentation"], item["area"]
        samples.write(mine, found, name)
    found = config(mine)
    with pytest.raises(UserError, match=r"has no mask: .*; --config.detect.masks=False learns boxes alone$"):
        sources.open_photos(found, "train")
    assert any("4 of 4 objects have no mask: --config" in line for line in copy(mine, tmp_path / "out"))
    records = of_records(tmp_path / "out", "my_set")
    found.detect.masks = records.detect.masks = False
    one, other = batches(found)[0], batches(records)[0]
    assert one["valid"].any()
    assert not one["masks"].any()
    assert {name: array.tobytes() for name, array in one.items()} == {n: array.tobytes() for n, array in other.items()}
    objects = sources.open_photos(found, "val")[0].objects
    assert objects.areas.tolist() == [200, 6]


def test_a_copy_is_not_mixed_with_another(mine, tmp_path):
    copy(mine, tmp_path / "out")
    (done, _) = copy(mine, tmp_path / "out")
    assert done.endswith("my_set/1.0.0 is there already, whole")
    changed = samples.content()
    changed["annotations"][0]["bbox"][0] += 1
    samples.write(mine, changed, "val.json")
    with pytest.raises(UserError, match=r"was written with other options \(annotations was"):
        copy(mine, tmp_path / "out")


def test_what_cannot_be_copied(mine, tmp_path):
    out = tmp_path / "out"
    (mine / "empty").mkdir()
    for arguments, message in (
        (("", out), "^--path=DIR is missing"),
        ((mine / "empty", out), r"has no file of annotations in COCO's format: it must hold ann"),
        ((mine, mine / "x"), "lies in the data set itself"),
        ((mine, out, "vall"), r"--splits: 'vall' is not one of train, val \(did you mean 'val'"),
        ((mine, out, "", "My Set"), "--as=My Set: the name must consist of"),
    ):
        with pytest.raises(UserError, match=message):
            copy(*arguments)
    (mine / "c.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^1 of the 5 images cannot be used, as said above: nothing was written"):
        copy(mine, out)
    os.remove(mine / "c.png")
    with pytest.raises(UserError, match=r"c\.png is not there, which .*train\.json tells of"):
        copy(mine, out)
    other = samples.content()
    other["categories"][0]["name"] = "cow"
    samples.write(mine, other, "val.json")
    with pytest.raises(UserError, match=r"is not there"):
        copy(mine, out)
    samples.write(mine, samples.content())
    with pytest.raises(UserError, match=r"there is 'cow' where that has 'cat'.*; --splits=train leaves val out$"):
        copy(mine, out)
    assert not out.exists()


def test_records_that_are_not_of_objects(mine, tmp_path):
    copy(mine, tmp_path / "out")
    found = of_records(tmp_path / "out", "my_set", ("train[:50%]", "val"))
    with pytest.raises(UserError, match=r"has no file train\[:50%\]\.json of objects.*prepare objects.*as a whole"):
        sources.open_photos(found, "train")
    place = tmp_path / "out/my_set/1.0.0"
    cut = samples.content()
    del cut["images"][1]
    (place / "val.json").write_text(json.dumps(cut))
    with pytest.raises(UserError, match=r"has 2 images in split 'val', but 1 in val\.json"):
        sources.open_photos(of_records(tmp_path / "out", "my_set"), "val")


# ---- `prepare check` -------------------------------------------------------------------------------------------------


def report(data, wanted="", everything=True):
    lines = []
    try:
        check.report(data, wanted, everything=everything, threads=2, say=lines.append)
    except UserError as error:
        return lines, str(error)
    return lines, None


def test_a_directory(mine, tmp_path):
    data = DataSet("folder", str(mine))
    assert [name for name, task in TASKS.items() if task.recognises(data)] == ["detect"]
    lines, error = report(data)
    assert error is None
    assert lines == [
        "train: 3 images with 3 objects and 1 crowds of 2 classes",
        "  height 33 to 64, width 34 to 60 pixels; most often 33 x 34",
        "  objects in an image: 0 to 2; dog 2, cat 1",
        "  3 read, 0 of them unusable",
        "  1 annotations have a category that is not in the file, and are left out (the first is annotation 9 of "
        "a.png: 99)",
        "val: 2 images with 3 objects and 1 crowds of 2 classes",
        "  height 40 to 64, width 48 to 60 pixels; most often 40 x 60",
        "  objects in an image: 1 to 2; dog 2, cat 1",
        "  2 read, 0 of them unusable",
        f"train on it: python -m lape_jax.main '--config=configs/detect.py:path={mine}' --workdir=DIR",
    ]
    copy(mine, tmp_path / "out")
    records = DataSet("tfds", str(tmp_path / "out"), "my_set")
    assert [name for name, task in TASKS.items() if task.recognises(records)] == ["detect"]
    again, error = report(records)
    assert (again[:-1], error) == (lines[:-1], None)
    assert report(data, wanted="val")[0] == lines[5:9]


def test_layouts_of_tools(mine):
    official(mine)
    assert report(DataSet("folder", str(mine)))[0][-1] == (
        f"train on it: python -m lape_jax.main "
        f"'--config=configs/mask_rcnn_vit_adapter_ti_coco.py:path={mine}' --workdir=DIR"
    )
    for name in ("train", "val"):
        (mine / f"{name}2017").rename(mine / name)
        (mine / f"annotations/instances_{name}2017.json").rename(mine / name / "_annotations.coco.json")
    lines, _ = report(DataSet("folder", str(mine)))
    told = f"path={mine},train=train/_annotations.coco.json,val=val/_annotations.coco.json"
    assert lines[-1] == f"train on it: python -m lape_jax.main '--config=configs/detect.py:{told}' --workdir=DIR"
    assert not check.recognises(DataSet("folder", str(mine / "annotations")))
    assert not check.recognises(DataSet("arrays", str(mine)))


def test_all_that_cannot_be_used_is_named(mine):
    found = three()
    found["images"] += [
        {"id": 6, "file_name": "images/b.png", "height": 4, "width": 4},
        {"id": 5, "file_name": "a.png", "height": 4, "width": 4},
    ]
    first = found["annotations"][0]
    found["annotations"] += [
        {**first, "id": 20, "bbox": [1, 2, 3]},
        {**first, "id": 21, "segmentation": {"size": [60, 40], "counts": [2400]}},
        {**first, "id": 1},
        {**first, "id": 22, "segmentation": [[50, 30, 55, 30, 55, 35]]},
        {key: value for key, value in first.items() if key != "segmentation"} | {"id": 23},
    ]
    samples.write(mine, found)
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(mine / "a.png")
    (mine / "c.png").write_bytes(b"not an image")
    lines, error = report(DataSet("folder", str(mine)), wanted="train")
    assert error == "7 of the images and annotations cannot be used, as said above"
    unusable = [line for line in lines if line.startswith("  unusable: ")]
    for line, words in zip(
        unusable,
        (
            "two images have the id 5, c.png and a.png",
            "annotation 20 of a.png: 'bbox' must be four finite numbers",
            "annotation 21 of a.png: its RLE is of the size [60, 40], but its image is [40, 60] (height, width)",
            "two annotations have the id 1",
            "/images/b.png is not there, but ",
            "c.png cannot be read: it is not",
            "a.png has 40 x 60 pixels (width x height), but its annotations are for 60 x 40",
        ),
        strict=True,
    ):
        assert words in line
    assert any("1 objects have a mask that lies outside of their box" in line for line in lines)
    assert any("1 of 6 objects have no mask: --config.detect.masks=False" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda x, y, w, h: [x / 60, y / 64, w / 60, h / 64], "they seem to be parts of the image, and must be pixels"),
        (lambda x, y, w, h: [x, y, x + w + 20, y + h + 20], "they seem to be x1, y1, x2, y2"),
    ],
)
def test_boxes_that_are_meant_otherwise(mine, change, hint):
    found = samples.content()
    for item in found["annotations"]:
        item["bbox"] = change(*item["bbox"])
    samples.write(mine, found)
    lines, _ = report(DataSet("folder", str(mine)), wanted="train")
    assert any(hint in line for line in lines)


@pytest.mark.parametrize("words", ["not JSON", "a list", "no images", "empty categories", "a name twice"])
def test_a_file_that_makes_no_sense(mine, words):
    from tests.tasks.detect.test_coco import WRONG

    found, message = WRONG[words]
    samples.write(mine, found)
    lines, error = report(DataSet("folder", str(mine))) if coco_like(mine) else ([], None)
    if lines:
        assert error.endswith("cannot be used, as said above")
        assert lines[0].startswith("train: cannot be used: ")
    else:  # it is not taken for one
        assert "train" not in prepare.layouts.find(str(mine))
    with pytest.raises(UserError, match=message):
        coco.read(str(mine / "train.json"))


def coco_like(mine):
    return prepare.layouts.in_format((mine / "train.json").read_text())
