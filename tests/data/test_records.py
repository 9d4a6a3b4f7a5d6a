import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.records import tfds_records
from lape_jax.data.sources import open_split
from lape_jax.errors import UserError


@pytest.fixture
def pets(tmp_path, encode, write_tfds):
    """A TFDS directory with pets/1.0.9 and the newer pets/1.0.10: 12 training and 3 test images, and the images."""
    images = [encode(np.full((4, 4, 3), number, np.uint8)) for number in range(15)]
    examples = [(image, number % 3) for number, image in enumerate(images)]
    write_tfds(tmp_path / "pets/1.0.9", {"train": examples[:2]})
    write_tfds(tmp_path / "pets/1.0.10", {"train": examples[:12], "test": examples[12:]})
    return SimpleNamespace(data_dir=str(tmp_path), path=tmp_path, images=images)


def test_images_stay_encoded_and_in_order(pets):
    source = tfds_records("pets", pets.data_dir, "train")
    assert len(source) == 12
    assert source.classes == ("cat", "dog", "owl")
    examples = [source[index] for index in range(12)]  # three files
    assert [example.image for example in examples] == pets.images[:12]
    assert [example.label for example in examples] == [0, 1, 2] * 4
    assert examples[7].name == "pets/1.0.10 train[7]"
    assert tfds_records("pets", pets.data_dir, "test")[2].image == pets.images[14]
    assert source.root == str(pets.path / "pets/1.0.10")
    assert source.files == [f"pets-train.array_record-0000{number}-of-00003" for number in range(3)]


def test_slices_versions_and_the_config(pets):
    assert len(tfds_records("pets", pets.data_dir, "train[:25%]")) == 3
    assert tfds_records("pets", pets.data_dir, "train[-2:]+test")[2].image == pets.images[12]
    assert len(tfds_records("pets:1.0.9", pets.data_dir, "train")) == 2
    config = SimpleNamespace(source="tfds", path=pets.data_dir, name="pets", train_split="train[:6]", val_split="test")
    assert [len(open_split(config, "train")), len(open_split(config, "val"))] == [6, 3]


def test_the_default_directory(pets, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", pets.data_dir)
    assert len(tfds_records("pets", "", "train")) == 12


def test_builder_configs(pets, write_tfds):
    examples = [(pets.images[0], 0)]
    write_tfds(pets.path / "birds/small/2.0.0", {"train": examples}, config="small")
    assert len(tfds_records("birds", pets.data_dir, "train")) == 1
    write_tfds(pets.path / "birds/large/2.0.0", {"train": examples * 2}, config="large")
    assert len(tfds_records("birds/large:2.0.0", pets.data_dir, "train")) == 2
    with pytest.raises(UserError, match="'birds' has several configs; choose one of birds/large, birds/small"):
        tfds_records("birds", pets.data_dir, "train")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("", "train", "data.name is empty; .* holds pets"),
        (
            "pet",
            "train",
            r"'pet' is not one of pets \(did you mean 'pets'\?\) in .*python -m lape_jax.prepare tfds pet --path=/",
        ),
        ("pets:2.0.0", "train", r"version '2.0.0' is not one of 1.0.9, 1.0.10"),
        ("pets", "val", "split 'val' is not one of train, test of pets/1.0.10"),
        ("pets", "train[:x]", r"split 'train\[:x\]' of pets/1.0.10: Error parsing split"),
        ("pets", "train[:0]", r"split 'train\[:0\]' of pets/1.0.10 is empty"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(pets, name, split, message):
    with pytest.raises(UserError, match=message):
        tfds_records(name, pets.data_dir, split)


def test_an_empty_or_missing_directory(tmp_path):
    with pytest.raises(UserError, match=r"holds no TFDS data set; prepare it once with: .* tfds pets --path=/"):
        tfds_records("pets", str(tmp_path), "train")
    with pytest.raises(UserError, match=r"data\.path .*/nowhere' is not a directory"):
        tfds_records("pets", str(tmp_path / "nowhere"), "train")


def test_other_formats_and_features_are_refused(pets, write_tfds):
    examples = {"train": [(pets.images[0], 0)]}
    write_tfds(pets.path / "old/1.0.0", examples, form="tfrecord")
    with pytest.raises(UserError, match=r"old/1\.0\.0 is stored as tfrecord; prepare it once"):
        tfds_records("old", pets.data_dir, "train")
    write_tfds(pets.path / "two/1.0.0", examples, extra={"mirror": "Image"}, supervised=False)
    with pytest.raises(UserError, match=r"must have one image and one class label.*of which Image: image, mirror"):
        tfds_records("two", pets.data_dir, "train")
    # The supervised pair, or a single candidate, decides.
    write_tfds(pets.path / "pair/1.0.0", examples, extra={"mirror": "Image"})
    write_tfds(pets.path / "single/1.0.0", examples, supervised=False)
    for name in ("pair", "single"):
        assert tfds_records(name, pets.data_dir, "train")[0].image == pets.images[0]


def test_damage(pets):
    directory = pets.path / "pets/1.0.10"
    shard = directory / "pets-train.array_record-00001-of-00003"
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    shard.write_bytes(data)
    source = tfds_records("pets", pets.data_dir, "train")
    assert source[0].image == pets.images[0]
    with pytest.raises(CorruptImage, match=r"pets/1.0.10 train\[\d\] cannot be read: Corrupted"):
        [source[index] for index in range(5, 10)]
    shard.unlink()
    with pytest.raises(UserError, match=r"1 of the 3 files of pets/1.0.10 are missing: .*00001-of-00003"):
        tfds_records("pets", pets.data_dir, "train")
    (directory / "features.json").write_text("{}")
    with pytest.raises(UserError, match=r"pets/1\.0\.10 is not a readable TFDS data set"):
        tfds_records("pets", pets.data_dir, "train")


def test_a_split_without_labels_is_refused(pets, write_tfds):
    write_tfds(pets.path / "blind/1.0.0", {"test": [(pets.images[0], -1)]})
    with pytest.raises(UserError, match=r"blind/1.0.0 test\[0\] has the label -1"):
        tfds_records("blind", pets.data_dir, "test")[0]


def test_all_files_of_a_split_may_be_open_at_once(pets):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    tfds_records("pets", pets.data_dir, "train")
    after = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert after == (min(before[0] + 3, before[1]), before[1])


def test_neither_tensorflow_nor_the_network_is_needed(pets):
    program = """
import socket, sys
def refuse(*args): raise AssertionError("network access")
socket.socket.connect = socket.getaddrinfo = refuse
from types import SimpleNamespace
from lape_jax.data.sources import open_split
assert "tensorflow_datasets" not in sys.modules
config = SimpleNamespace(source="tfds", path=sys.argv[1], name="pets", train_split="train", val_split="test")
assert len(open_split(config, "train")[11].image) > 50
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", program, pets.data_dir]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert (done.returncode, done.stderr) == (0, "")
