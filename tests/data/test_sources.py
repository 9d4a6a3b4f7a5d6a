import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.offline.splits import DataSet
from lape_jax.data.pictures import SUFFIXES
from lape_jax.data.sources import arrays, digits, folder, open_split
from lape_jax.errors import UserError


@pytest.fixture
def tree(tmp_path, encode):
    """tree("train/cat/1.png", ...) -> a directory with these files; every image is 1x1 with its own colour."""

    def make(*files: str) -> str:
        for number, name in enumerate(files):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.full((1, 1, 3), number, np.uint8)))
        return str(tmp_path)

    return make


def test_digits_are_the_real_ones_and_reversible():
    data = load_digits()
    total = 0
    for split, size in (("train", 1438), ("val", 359)):
        source = digits(split)
        assert len(source) == size
        assert source.classes == tuple("0123456789")
        for example in map(source.__getitem__, range(size)):
            index = int(example.name[len("digits[") : -1])
            assert example.image.shape == (8, 8, 1)
            np.testing.assert_array_equal(np.rint(example.image[..., 0] / 255 * 16), data.images[index])
            assert example.label == data.target[index]
        total += size
    assert total == len(data.target)
    assert {(16, 255), (8, 128), (0, 0)} <= {(v, round(v * 255 / 16)) for v in range(17)}


def test_the_split_of_the_digits_is_fixed_disjoint_and_stratified():
    names = {split: digits(split).names for split in ("train", "val")}
    assert not set(names["train"]) & set(names["val"])
    # Frozen: published accuracies hold for this split.
    assert names["val"][:4] == ["digits[0]", "digits[4]", "digits[10]", "digits[13]"]
    # A fifth of 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 examples.
    assert np.bincount(digits("val").labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_a_folder_is_read_in_sorted_order(tree):
    root = tree("train/dog/b.png", "train/dog/a.JPG", "train/cat/x.jpeg", "train/dog/deep/er/c.PNG", "val/dog/1.png")
    train = folder(root, "train")
    assert train.classes == ("cat", "dog")
    assert len(train) == 4
    found = [
        (os.path.relpath(example.name, root), example.label, example.image)
        for example in map(train.__getitem__, range(4))
    ]
    contents = [Path(root, name).read_bytes() for name, _, _ in found]
    assert [name for name, _, _ in found] == [
        "train/cat/x.jpeg",
        "train/dog/a.JPG",
        "train/dog/b.png",
        "train/dog/deep/er/c.PNG",
    ]
    assert [label for _, label, _ in found] == [0, 1, 1, 1]
    assert [image for _, _, image in found] == contents
    # Labels of val are those of train, though val lacks a class.
    assert [folder(root, "val")[0].label, folder(root, "val").classes] == [1, ("cat", "dog")]


def test_hidden_and_other_files_are_left_out(tree, caplog):
    root = tree("train/cat/1.png", "train/cat/._1.png", "train/cat/notes.txt", "train/.cache/2.png", "train/readme.png")
    with caplog.at_level(logging.WARNING):
        source = folder(root, "train")
    assert source.files == ["cat/1.png"]
    assert source.classes == ("cat",)
    assert "left out 1 files that are no JPEG, PNG, WebP, BMP, TIFF or GIF: cat/notes.txt" in caplog.text


def test_what_other_programs_leave_is_no_image_and_no_class(tree, caplog):
    clutter = [f"train/{name}/1.png" for name in ("@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".AppleDouble")]
    clutter += [f"train/cat/{name}" for name in ("@eaDir/1.jpg/S.jpg", "Thumbs.db", "Desktop.ini", "#recycle/2.png")]
    root = tree("train/cat/1.jpg", "@eaDir/x/1.png", *clutter)
    with caplog.at_level(logging.WARNING):
        source = folder(root, "train")
    assert (source.files, source.classes, caplog.text) == (["cat/1.jpg"], ("cat",), "")
    assert DataSet("folder", root).split_names() == ["train"]


def test_files_of_every_format_are_found(tree):
    names = [f"cat/{number}{suffix.upper()}" for number, suffix in enumerate(SUFFIXES)]
    assert folder(tree(*(f"train/{name}" for name in names)), "train").files == names


def test_symbolic_links_are_followed(tree):
    root = Path(tree("store/1.png", "store/sub/2.png", "train/dog/3.png"))
    (root / "train/cat").symlink_to(root / "store")
    (root / "train/dog/link.png").symlink_to(root / "store/1.png")
    (root / "train/dog/broken.png").symlink_to(root / "nowhere")
    source = folder(str(root), "train")
    assert source.files == ["cat/1.png", "cat/sub/2.png", "dog/3.png", "dog/broken.png", "dog/link.png"]
    assert source[4].image == source[0].image
    with pytest.raises(CorruptImage, match=r"dog/broken\.png cannot be read: No such file or directory"):
        source[3]
    (root / "store/loop").symlink_to(root / "store")
    with pytest.raises(UserError, match="loop is a symbolic link to a directory that it lies in"):
        folder(str(root), "train")


def test_the_home_directory_is_expanded(tree, monkeypatch):
    monkeypatch.setenv("HOME", tree("sets/train/a/1.png"))
    assert len(folder("~/sets", "train")) == 1


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["training/a/1.png", "test/a/1.png"], "train", "has no directory 'train'; it holds test, training"),
        (["train/a/1.png", "test/a/1.png"], "val", "has no directory 'val'; it holds test, train"),
        (["train/1.png"], "train", "train has no class directories, only 1.png; it must hold one directory per class"),
        (
            ["train/a/1.png", "train/b/1.svg"],
            "train",
            r"train/b holds no JPEG, PNG, WebP, BMP, TIFF or GIF file; it holds 1\.svg",
        ),
        (
            ["train/a/1.png", "train/b/.1.png"],
            "train",
            "train/b holds no JPEG, PNG, WebP, BMP, TIFF or GIF file; it holds nothing",
        ),
        (["train/cat/1.png", "val/cats/1.png"], "val", r"class 'cats' of .*val is not a class of .*train .*mean 'cat'"),
        (["train/cat/1.png", "val/owl/1.png"], "val", r"class 'owl' of .*val is not a class of .*train$"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tree, files, split, message):
    root = tree(*files)
    with pytest.raises(UserError, match=message):
        folder(root, split)


def test_a_root_that_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("no", "'.*no' is not a directory"),
        ("file", "not a directory"),
        ("empty", "it holds nothing"),
    ]:
        with pytest.raises(UserError, match=message):
            folder(str(tmp_path / name), "train")
    with pytest.raises(UserError, match=r"data\.path is empty: it must name a directory that holds train/ and val/"):
        folder("", "val")


def test_a_split_is_opened_from_a_config(tree):
    config = SimpleNamespace(source="digits", path="", name="", train_split="train", val_split="val")
    assert len(open_split(config, "train")) == 1438
    assert len(open_split(config, "val")) == 359
    root = tree("learn/a/1.png", "learn/b/2.png", "check/b/3.png")
    config = SimpleNamespace(source="folder", path=root, name="", train_split="learn", val_split="check")
    assert [len(open_split(config, "train")), len(open_split(config, "val"))] == [2, 1]
    assert open_split(config, "val")[0].label == 1
    config.source = "folders"
    with pytest.raises(UserError, match=r"data\.source: 'folders' is not one of .*did you mean 'folder'"):
        open_split(config, "train")


@pytest.fixture
def npz(tmp_path):
    """npz(split, key=array, ...) writes split.npz: five images of two classes but for what is given; None = no such."""

    def write(split, **changes):
        images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
        content = {"image": images, "label": np.array([1, 0, 1, 1, 0]), "classes": np.array(["cat", "dog"])} | changes
        np.savez(tmp_path / f"{split}.npz", **{key: array for key, array in content.items() if array is not None})
        return images

    return write


def test_arrays_are_read_as_they_are(npz, tmp_path):
    images = npz("train")
    npz("val", image=images[:2, ..., :1], label=np.array([1, 0], np.uint8), classes=None)
    source = arrays(str(tmp_path), "train")
    assert source.classes == ("cat", "dog")
    assert [source[index].label for index in range(len(source))] == [1, 0, 1, 1, 0]
    np.testing.assert_array_equal([source[index].image for index in range(5)], images)
    assert source[3].name == f"{tmp_path}/train.npz[3]"
    config = SimpleNamespace(source="arrays", path=str(tmp_path), name="", train_split="train", val_split="val")
    val = open_split(config, "val")
    assert (len(val), val.classes, val[0].image.shape, val[0].label) == (2, ("cat", "dog"), (4, 6, 1), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"train.npz has no array 'image'; it holds classes, label"),
        ({"label": None, "labels": np.zeros(5, int)}, "has no array 'label'; it holds classes, image, labels"),
        ({"classes": None}, "has no array 'classes'; it holds image, label"),
        ({"image": np.zeros((5, 4, 6, 3), np.float32)}, r"image of .* must be uint8 .*, not float32 \(5, 4, 6, 3\)"),
        ({"image": np.zeros((5, 3, 4, 6), np.uint8)}, r"must be uint8 \(n, h, w, 1 or 3\), not uint8 \(5, 3, 4, 6\)"),
        ({"image": np.zeros((0, 4, 6, 3), np.uint8), "label": np.zeros(0, int)}, r"not uint8 \(0, 4, 6, 3\)"),
        ({"label": np.zeros(5)}, r"label of .* must be whole numbers \(5,\), one per image, not float64 \(5,\)"),
        ({"label": np.zeros(4, int)}, r"must be whole numbers \(5,\), one per image, not int64 \(4,\)"),
        ({"label": np.array([0, 1, 2, 0, 0])}, r"label\[2\] of .* is 2, but the 2 classes are 0 to 1"),
        ({"label": np.array([0, 1, 1, 0, -1])}, r"label\[4\] of .* is -1"),
        ({"classes": np.array(["cat", "cat"])}, "must be different names"),
        ({"classes": np.arange(2)}, r"must be different names, a list of text, not int64 \(2,\)"),
        ({"classes": np.array([], "U1")}, r"must be different names, a list of text, not <U1 \(0,\)"),
        ({"classes": np.array(["cat", "dog"], object)}, "not a readable .npz file of plain arrays: Object arrays"),
    ],
)
def test_what_is_wrong_with_arrays_is_named(npz, tmp_path, changes, message):
    npz("train", **changes)
    with pytest.raises(UserError, match=message):
        arrays(str(tmp_path), "train")


def test_arrays_that_are_missing_or_damaged(npz, tmp_path):
    npz("train")
    with pytest.raises(UserError, match=r"has no file 'val.npz'; it holds train.npz"):
        arrays(str(tmp_path), "val")
    with pytest.raises(UserError, match=r"data\.path .*/nowhere' is not a directory"):
        arrays(str(tmp_path / "nowhere"), "val")
    with pytest.raises(UserError, match=r"data\.path is empty: .* train.npz and val.npz"):
        arrays("", "val")
    whole = (tmp_path / "train.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[300] ^= 1  # a pixel
    np.save(tmp_path / "array.npy", np.zeros(3))
    for data in (whole[:-30], whole[: len(whole) // 2], b"", b"text", flipped, (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "train.npz").write_bytes(data)
        with pytest.raises(UserError, match=r"train.npz is not a readable .npz file of plain arrays: "):
            arrays(str(tmp_path), "train")
