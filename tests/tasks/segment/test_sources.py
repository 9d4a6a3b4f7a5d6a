import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source
from lape_jax.errors import UserError
from lape_jax.tasks.segment.records import tfds_scenes
from lape_jax.tasks.segment.sources import ade20k, folder, open_scenes

HEADING = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
# As the two editions of the file have them: with and without the column Stuff, blanks here and there.
ADE20K = (
    f"{HEADING}1\t0.1576\t11664\t1172\t1\twall\n2\t0.1072\t6046\t612\t1\tbuilding, edifice\n3\t0.02\t9\t1\t0\tbed \n"
)
OLDER = "Idx\tRatio\tTrain\tVal\tName\n1\t0.0074\t709\t75\twater\n2 \t0.0198\t46\t46\twindowpane, window \n"


@pytest.fixture
def tree(tmp_path, encode):
    """tree({"images/train/a.png": 3, "classes.txt": "x"}) -> a directory of 1x1 images of these values, and texts."""

    def make(files: dict[str, int | str]) -> str:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            else:
                path.write_bytes(encode(np.full((1, 1, 1), content, np.uint8)))
        return str(tmp_path)

    return make


FOLDER = {
    "images/train/b.jpg": 0,
    "images/train/deep/er/a.PNG": 1,
    "images/train/a.jpeg": 2,
    "images/val/a.jpg": 3,
    "masks/train/b.png": 10,
    "masks/train/deep/er/a.png": 11,
    "masks/train/a.PNG": 12,
    "masks/val/a.png": 13,
    "classes.txt": "sky\nold tree\n",
}


def changed(files, changes):
    """The files with some changed, added, or (None) left out."""
    return {name: content for name, content in {**files, **changes}.items() if content is not None}


def config(source, path, train, val, name=""):
    return SimpleNamespace(source=source, path=path, name=name, train_split=train, val_split=val)


def test_a_folder_is_read_in_sorted_order(tree):
    root = tree(FOLDER)
    source = folder(root, "train")
    assert isinstance(source, Source)
    assert source.classes == ("sky", "old tree")
    scenes = [source[index] for index in range(len(source))]
    read = lambda name: Path(root, name).read_bytes()  # noqa: E731
    assert [(scene.name, scene.image, scene.mask, scene.first) for scene in scenes] == [
        (f"{root}/images/train/{image}", read(f"images/train/{image}"), read(f"masks/train/{mask}"), 0)
        for image, mask in [("a.jpeg", "a.PNG"), ("b.jpg", "b.png"), ("deep/er/a.PNG", "deep/er/a.png")]
    ]
    opened = config("folder", root, "train", "val")
    assert [len(open_scenes(opened, "train")), len(open_scenes(opened, "val"))] == [3, 1]
    assert open_scenes(opened, "val").classes == source.classes


def test_a_file_that_has_gone_is_named(tree):
    root = tree(FOLDER)
    source = folder(root, "val")
    Path(root, "masks/val/a.png").unlink()
    with pytest.raises(CorruptImage, match=r"masks/val/a\.png cannot be read: No such file"):
        source[0]


def test_other_files_are_left_out_with_a_warning(tree, caplog):
    root = tree({**FOLDER, "images/val/notes.txt": "", "masks/val/a.json": "", "masks/val/.hidden.png": 0})
    with caplog.at_level(logging.WARNING):
        assert len(folder(root, "val")) == 1
    assert "images/val: left out 1 files that are no JPEG, PNG, WebP, BMP, TIFF or GIF: notes.txt" in caplog.text
    assert "masks/val: left out 1 files that are no PNG: a.json" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"masks/val/a.png": None, "masks/val/b.png": 0},
            r"images/val/a\.jpg has no mask: there is no a\.png in .*masks",
        ),
        (
            {"masks/val/a.png": None, "masks/val/a.jpg": 0, "masks/val/b.png": 0},
            r"has no mask: .*; a\.jpg is no PNG, and only PNG keeps the indices",
        ),
        ({"masks/val/z.png": 0}, r"masks/val/z\.png has no image: there is no z\.jpg, \.jpeg, .* in .*images/val"),
        ({"masks/val/y.png": 0, "masks/val/z.png": 0}, r"y\.png has no image \(nor have 1 others\)"),
        ({"images/val/a.png": 0}, r"images/val holds a\.jpg and a\.png, which have the same name"),
        ({"images/val/a.jpg": None, "images/val/a.svg": 0}, r"images/val holds no JPEG, .* file; it holds a\.svg"),
        ({"masks/val/a.png": None, "masks/val/a.jpg": 0}, r"masks/val holds no PNG file; it holds a\.jpg"),
        ({"masks/val/a.png": None}, r"masks has no directory 'val'; it holds train"),
        ({"images/a.jpg": 0}, r"images holds image files itself: they must lie in .* as images/val/"),
        ({"masks/a.png": 0}, r"masks holds image files itself: they must lie in .* as masks/val/"),
        ({"classes.txt": None}, r"classes\.txt is missing: it must name the classes, one a line"),
        ({"classes.txt": "\n\n"}, r"classes\.txt is empty"),
        ({"classes.txt": "sky\n \ntree\n"}, r"line 2 of .*classes\.txt is blank"),
        ({"classes.txt": "sky\ntree\nsky \n"}, r"lines 1 and 3 of .*classes\.txt are both 'sky'"),
        ({"classes.txt": "\n".join(map(str, range(256)))}, r"names 256 classes, but there can be 255 at most"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tree, changes, message):
    root = tree(changed(FOLDER, changes))
    with pytest.raises(UserError, match=message):
        folder(root, "val")


def test_a_folder_that_is_missing_is_named(tree):
    with pytest.raises(
        UserError, match=r"data\.path is empty: it must name .* images/val/, masks/val/ and classes\.txt"
    ):
        folder("", "val")
    with pytest.raises(UserError, match=r"data\.path '/nowhere' is not a directory"):
        folder("/nowhere", "val")
    with pytest.raises(UserError, match=r"has no directory 'masks'; it holds classes\.txt, images"):
        folder(tree({"images/val/a.png": 0, "classes.txt": "a"}), "val")


def test_class_names_of_other_editors(tmp_path, tree):
    root = tree(FOLDER)
    (tmp_path / "classes.txt").write_bytes("\ufeffciel\r\nforêt\r\n".encode())
    assert folder(root, "val").classes == ("ciel", "forêt")
    (tmp_path / "classes.txt").write_bytes(b"for\xeat")
    with pytest.raises(UserError, match=r"classes\.txt is not a readable text file: 'utf-8' codec"):
        folder(root, "val")


BENCHMARK = {
    "images/training/ADE_train_00000002.jpg": 0,
    "images/training/ADE_train_00000001.jpg": 1,
    "images/validation/ADE_val_00000001.jpg": 2,
    "annotations/training/ADE_train_00000002.png": 3,
    "annotations/training/ADE_train_00000001.png": 4,
    "annotations/validation/ADE_val_00000001.png": 5,
    "objectInfo150.txt": ADE20K,
}


def test_ade20k(tree):
    root = tree(BENCHMARK)
    opened = config("ade20k", root, "training", "validation")
    train, val = open_scenes(opened, "train"), open_scenes(opened, "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.classes == val.classes == ("wall", "building", "bed")
    assert train[0].name.endswith("images/training/ADE_train_00000001.jpg")
    assert train[0].mask == Path(root, "annotations/training/ADE_train_00000001.png").read_bytes()
    assert train[0].first == 1
    assert ade20k(tree({"objectInfo150.txt": OLDER}), "validation").classes == ("water", "windowpane")


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        (
            {"objectInfo150.txt": None},
            "training",
            r"objectInfo150\.txt is missing: ADE20K's class names are read from it",
        ),
        ({"objectInfo150.txt": "wall\nsky\n"}, "training", r"objectInfo150\.txt is not ADE20K's list of classes"),
        ({"objectInfo150.txt": HEADING}, "training", r"objectInfo150\.txt is not ADE20K's list of classes"),
        ({"objectInfo150.txt": ADE20K.replace("3\t0.02", "4\t0.02")}, "training", r"not ADE20K's list"),
        ({"objectInfo150.txt": ADE20K.replace("bed ", "wall, door")}, "training", r"not ADE20K's list"),
        ({}, "train", r"images has no directory 'train'; it holds training, validation"),
        (
            {"annotations/validation/ADE_val_00000001.png": None},
            "validation",
            r"no directory 'validation'; it holds tr",
        ),
    ],
)
def test_what_is_wrong_with_ade20k_is_named(tree, changes, split, message):
    root = tree(changed(BENCHMARK, changes))
    with pytest.raises(UserError, match=message):
        ade20k(root, split)


def test_a_path_that_is_not_ade20k_is_named(tree):
    with pytest.raises(UserError, match=r"data\.path is empty: it must name ADEChallengeData2016"):
        ade20k("", "training")
    root = tree({f"ADEChallengeData2016/{name}": content for name, content in BENCHMARK.items()})
    with pytest.raises(UserError, match=r"has no directory 'images'; it holds ADEChallengeData2016"):
        ade20k(root, "training")


def test_unknown_sources_are_named():
    with pytest.raises(UserError, match=r"data\.source: 'ade' is not one of digits, ade20k, folder, tfds"):
        open_scenes(config("ade", "", "", ""), "train")


def test_digits_need_no_files():
    source = open_scenes(config("digits", "", "", ""), "val")
    assert isinstance(source, Source)
    assert source[0].mask.max() < len(source.classes) == 11


class Records:
    """Writes TFDS data sets of images and maps with array_record, without TensorFlow."""

    def __init__(self, root, encode):
        self.root, self.encode = root, encode

    def grey(self, value):
        return self.encode(np.full((2, 3, 1), value, np.uint8))

    def write(self, name, features, scenes):
        """features: key -> None for an image, "" for an image of unnamed labels, or names; scenes: key -> PNG file."""
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2

        directory = self.root / name / "1.0.0"
        directory.mkdir(parents=True)
        prefix, described = "tensorflow_datasets.core.features", {}
        for key, names in features.items():
            image = {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3" if names is None else "1"]}}
            kind = "image_feature.Image"
            if names is not None:
                kind = "labeled_image.LabeledImage"
                image |= {"encodingFormat": "png", "label": {"numClasses": str(len(names.split()) or 4)}}
                if names:
                    (directory / f"{key}.labels.txt").write_text("\n".join(names.split()) + "\n")
            described[key] = {"pythonClassName": f"{prefix}.{kind}", "image": image}
        whole = {"pythonClassName": f"{prefix}.features_dict.FeaturesDict", "featuresDict": {"features": described}}
        (directory / "features.json").write_text(json.dumps(whole))
        writer = ArrayRecordWriter(str(directory / f"{name}-train.array_record-00000-of-00001"), "group_size:1")
        for scene in scenes:
            record = tf_example_pb2.Example()
            for key, data in scene.items():
                record.features.feature[key].bytes_list.value.append(data)
            writer.write(record.SerializeToString())
        writer.close()
        split = {"name": "train", "shardLengths": [str(len(scenes))], "numBytes": "1"}
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
        (directory / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture
def records(tmp_path, encode):
    return Records(tmp_path, encode)


def test_tfds_labelled_images(records):
    scenes = [{"image": records.grey(index), "where": records.grey(10 + index)} for index in range(3)]
    records.write("rooms", {"image": None, "where": "wall floor"}, scenes)
    source = open_scenes(config("tfds", str(records.root), "train[:2]", "train[2:]", "rooms"), "train")
    assert isinstance(source, Source)
    assert (len(source), source.classes) == (2, ("wall", "floor"))
    assert (source[1].image, source[1].mask) == (scenes[1]["image"], scenes[1]["where"])
    assert (source[1].name, source[1].first) == ("rooms/1.0.0 train[:2][1]", 0)
    records.write("unnamed", {"image": None, "where": ""}, scenes)
    assert tfds_scenes("unnamed", str(records.root), "train").classes == ("0", "1", "2", "3")


def test_tfds_data_sets_that_are_known(records):
    features = {"image": None, "annotation": None}
    records.write("scene_parse150", features, [{"image": records.grey(1), "annotation": records.grey(150)}])
    source = tfds_scenes("scene_parse150", str(records.root), "train")
    assert (len(source.classes), source.classes[149], source[0].first) == (150, "150", 1)
    features = {"image": None, "segmentation_mask": None, "mirror": None}
    scene = {"image": records.grey(1), "segmentation_mask": records.grey(2), "mirror": records.grey(3)}
    records.write("oxford_iiit_pet", features, [scene])
    source = tfds_scenes("oxford_iiit_pet", str(records.root), "train")
    assert (source.classes, source[0].mask) == (("pet", "background", "border"), scene["segmentation_mask"])


def test_tfds_instance_maps_are_not_ade20k(records, photo):
    scene = {"image": records.grey(1), "annotation": records.encode(photo)}
    records.write("scene_parse150", {"image": None, "annotation": None}, [scene])
    with pytest.raises(UserError, match=r"scene_parse150/1\.0\.0 holds the instance maps .*: use data\.source=ade20k"):
        tfds_scenes("scene_parse150", str(records.root), "train")
    records.write("painted", {"image": None, "annotation": "a b"}, [scene])
    with pytest.raises(UserError, match=r"the mask of painted/1\.0\.0 train\[0\] is a PNG of mode RGB"):
        tfds_scenes("painted", str(records.root), "train")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": None, "where": None}, "does not say what the values of 'where' mean: it must be a LabeledImage"),
        ({"image": None}, "must have an image 'image' and one map of labels, but its features are image, of which"),
        ({"image": None, "where": " ".join(map(str, range(256)))}, "has 256 classes, but there can be 255 at most"),
        ({"image_left": None, "where": "a"}, "of which images: image_left, where"),
        ({"image": None, "one": "a", "two": "a"}, "of which images: image, one, two"),
        ({"image": None, "one": None, "two": None}, "of which images: image, one, two"),
    ],
)
def test_tfds_data_sets_that_cannot_be_used_are_named(records, features, message):
    records.write("odd", features, [dict.fromkeys(features, records.grey(0))])
    with pytest.raises(UserError, match=message):
        tfds_scenes("odd", str(records.root), "train")


def test_tfds_splits_that_are_missing_are_named(records):
    with pytest.raises(UserError, match=r"holds no TFDS data set; .*prepare tfds rooms --path="):
        tfds_scenes("rooms", str(records.root), "train")
    with pytest.raises(UserError, match=r"prepare scenes --path=ADEChallengeData2016 --layout=ade20k --out="):
        tfds_scenes("ade20k", str(records.root), "train")
    records.write("rooms", {"image": None, "where": "a"}, [{"image": records.grey(0), "where": records.grey(0)}])
    with pytest.raises(UserError, match="split 'val' is not one of train of rooms"):
        tfds_scenes("rooms", str(records.root), "val")


@pytest.mark.slow
def test_what_needs_no_tfds_does_not_import_it():
    program = "import sys, lape_jax.tasks.segment.sources; assert 'tensorflow_datasets' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
