"""Data sets on disk, which of their images are learned, and what is said of them."""

import os

import numpy as np
import pytest
from PIL import Image

from lape_jax.errors import UserError
from lape_jax.tasks.config import base
from lape_jax.tasks.detect import pipeline, sources, survey
from lape_jax.tasks.detect.digits import DigitPhotos
from tests.tasks.detect import samples


def config(path, **detect):
    found = base()
    found.task, found.data.source, found.data.path = "detect", "json", str(path)
    found.data.threads = 2
    found.detect.update(detect)
    return found


@pytest.fixture
def mine(tmp_path):
    """A data set under names of one's own: 40 x 60 and 64 x 48 pixels."""
    samples.write(tmp_path, samples.content())
    samples.write(tmp_path, samples.content(), "val.json")
    return tmp_path


def test_own_names(mine):
    train, val = (sources.open_photos(config(mine), split) for split in ("train", "val"))
    assert (len(train), len(val), train.classes, val.ids) == (2, 2, ("dog", "cat"), {"dog": 3, "cat": 7})
    assert (train[0].name, train[0].number) == (str(mine / "a.png"), 20)
    assert pipeline.examine(train[0], "view").pixels.shape == (40, 60, 3)
    (mine / "labels").mkdir()
    (mine / "val.json").rename(mine / "labels" / "v.json")
    moved = sources.open_photos(config(mine, val_json="labels/v.json", val_images="."), "val")
    assert moved.files == ["a.png", "b.png"]


def test_the_layout_of_coco(mine):
    (mine / "annotations").mkdir()
    for name in ("train", "val"):
        os.rename(mine / f"{name}.json", mine / "annotations" / f"instances_{name}2017.json")
        (mine / f"{name}2017").mkdir()
        for image in ("a.png", "b.png"):
            (mine / f"{name}2017" / image).write_bytes((mine / image).read_bytes())
    found = config(mine)
    found.data.source, found.data.train_split, found.data.val_split = "coco", "train2017", "val2017"
    assert len(sources.open_photos(found, "train")) == len(sources.open_photos(found, "val")) == 2
    found.data.val_split = "val2014"
    with pytest.raises(UserError, match="has no directory 'val2014'; it holds"):
        sources.open_photos(found, "val")


def test_which_images_are_learned(mine):
    content = samples.content()
    content["images"] += [
        {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 2, "file_name": "a.png", "height": 31, "width": 60},
    ]
    content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 2})
    del content["annotations"][3]  # a crowd alone is left in b.png, which stays
    samples.write(mine, content)
    samples.write(mine, content, "val.json")
    train, val = (sources.open_photos(config(mine), split) for split in ("train", "val"))
    assert [entry.number for entry in train.entries] == [20, 10]
    assert [(one.what, one.why, one.count) for one in train.left] == [
        ("images", "have no object", 1),
        ("images", "have a side of less than 32 pixels", 1),
    ]
    assert len(val) == 4


def test_what_is_missing_or_does_not_go_together(mine):
    os.remove(mine / "b.png")
    with pytest.raises(UserError, match=r"b\.png is not there, which .*train\.json tells of"):
        sources.open_photos(config(mine), "train")
    with pytest.raises(UserError, match=r"there is no file .*tain\.json \(config.detect.train_json\).* holds a\.png"):
        sources.open_photos(config(mine, train_json="tain.json"), "train")
    with pytest.raises(UserError, match="is not a directory"):
        sources.open_photos(config(mine / "no"), "train")
    content = samples.content()
    content["categories"][1]["name"] = "hound"
    samples.write(mine, content, "val.json")
    with pytest.raises(UserError, match=r"there is 'hound' where that has 'dog'"):
        sources.open_photos(config(mine), "val")
    samples.write(mine, samples.content() | {"annotations": []})
    with pytest.raises(UserError, match="has no object to learn in any of its 2 images"):
        sources.open_photos(config(mine), "train")


def test_an_image_of_another_size(mine):
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(mine / "a.png")
    with pytest.raises(UserError, match=r"a\.png has 40 x 60 pixels \(width x height\), but .* are for 60 x 40$"):
        pipeline.examine(sources.open_photos(config(mine), "train")[0], "view")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(mine / "a.png", exif=turned)
    photo = sources.open_photos(config(mine), "train")[0]
    assert pipeline.examine(photo, "stored").pixels.shape == (40, 60, 3)
    with pytest.raises(UserError, match="EXIF says that it is shown turned: --config"):
        pipeline.examine(photo, "view")


def test_what_is_said_at_the_start(mine):
    content = samples.content()
    content["annotations"] += [{**content["annotations"][0], "id": 10 + i} for i in range(4)]
    content["annotations"].append({**content["annotations"][0], "id": 30, "category_id": 99})
    content["annotations"][3]["bbox"] = [4, 30, 20, 0.5]
    content["categories"].append({"id": 50, "name": "cow"})
    samples.write(mine, content)
    samples.write(mine, content, "val.json")
    (mine / "b.png").write_bytes(b"")
    found = config(mine, max_objects=4)
    train, val = (sources.open_photos(found, split) for split in ("train", "val"))
    assert survey.start(found, train, val) == [
        "train: 2 images with 6 objects of 3 classes, and 1 crowds, which are not learned",
        "train: 1 annotations are less than a pixel wide or high, and are left out (the first is annotation 4 of "
        "b.png)",
        "train: 1 annotations have a category that is not in the file, and are left out (the first is annotation 30 of "
        "a.png: 99)",
        "train: there is not one object of cow",
        "train: 1 images have more objects than config.detect.max_objects = 4 (up to 6): each time, 4 of them are "
        "drawn and learned",
        "val: 1 annotations have a category that is not in the file, and are left out (the first is annotation 30 of "
        "a.png: 99)",
        f"evaluation will stop: {mine}/b.png cannot be read: it is empty (0 bytes)",
    ]


@pytest.mark.parametrize(("split", "count"), [("train", 239), ("val", 59)])
def test_digits(split, count):
    source = DigitPhotos(split)
    assert len(source) == count
    for index in (0, 7, count - 1):
        photo, again = source[index], DigitPhotos(split)[index]
        pixels, objects = photo.image(), photo.objects
        np.testing.assert_array_equal(pixels, again.image())
        assert (pixels.shape, len(objects), objects.learned.all()) == ((96, 126, 3), 6, True)
        for mask, (x1, y1, x2, y2) in zip(objects.masks, objects.corners.astype(int), strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1:y2, x1:x2].any(axis=0)[[0, -1]].all()
            assert (pixels[mask > 0] >= 64).all()
    chosen = source._order[: 6 * count]
    assert len(set(chosen.tolist())) == 6 * count
