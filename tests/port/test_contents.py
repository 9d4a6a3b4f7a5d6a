"""Files of weights by their content: shards, directories, and what is no file of weights."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lape_jax import port
from lape_jax.errors import UserError
from lape_jax.port import contents
from tests.port import test_pth
from tests.port.tiny import identical, random_variables, tiny

NAMES = ("model-00001-of-00002", "model-00002-of-00002")


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture
def shards(tmp_path, model, variables):
    """(directory, index as it is written, the arrays of each shard)"""
    state_dict = port.to_torch(variables, model)
    halves = [dict(list(state_dict.items())[i::2]) for i in range(2)]
    for name, half in zip(NAMES, halves, strict=True):
        save_file(half, tmp_path / f"{name}.safetensors")
    places = {name: f"{NAMES[i]}.safetensors" for i in range(2) for name in halves[i]}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path, index, halves


def test_shards(shards, model, variables):
    directory, _, _ = shards
    identical(variables, port.load(directory / "model.safetensors.index.json", model))
    identical(variables, port.load(directory, model))
    with pytest.raises(UserError, match=rf"{NAMES[0]}\.safetensors is one of 2 parts: give the index of them all"):
        port.load(directory / f"{NAMES[0]}.safetensors", model)


def test_shards_of_torch_save(tmp_path):
    for number in range(2):
        test_pth.archive(tmp_path / f"pytorch_model-0000{number + 1}-of-00002.bin", test_pth.tensor())
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}))
    found, place = contents.read(tmp_path)
    np.testing.assert_array_equal(found["w"], np.arange(4, dtype=np.float32))
    assert place == str(index)
    places = {"w": "pytorch_model-00001-of-00002.bin", "v": "pytorch_model-00002-of-00002.bin"}
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=r"00002\.bin, a part of pytorch_model\.bin\.index\.json, lacks v$"):
        contents.read(index)


def test_what_can_be_wrong_with_shards(shards):
    directory, index, halves = shards
    path = directory / "model.safetensors.index.json"
    save_file(halves[0] | halves[1], directory / f"{NAMES[1]}.safetensors")
    with pytest.raises(UserError, match=r"a part of .* has arrays that another part has, too"):
        contents.read(path)
    (directory / f"{NAMES[1]}.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{NAMES[1]}\.safetensors cannot be read: No such file"):
        contents.read(path)
    for place in ("../other.safetensors", "/etc/passwd", "", ".", 3):
        path.write_text(json.dumps({"weight_map": {"w": place}}))
        with pytest.raises(UserError, match="its weight_map does not name files that lie beside it"):
            contents.read(path)
    for text in ("", "[]", "{}", '{"weight_map": 3}', "[" * 10**5, json.dumps(index)[:-3]):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"^{path} is damaged, or not a \*\.index\.json file \("):
            contents.read(path)


def test_a_directory_of_a_hub(tmp_path, model, variables):
    port.save(tmp_path / "model.safetensors", variables, model)
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    identical(variables, port.load(tmp_path, model))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be read: it is a directory without any of model\.safet"):
        port.load(tmp_path, model)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors", "w.npz", "w"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "is a pointer of Git LFS: the weights themselves",
        ),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"<html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
    ],
)
def test_what_is_found_in_the_place_of_weights(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path / name} {message}"):
        contents.read(tmp_path / name)


@pytest.mark.parametrize("name", ["w", "w.jpg", "w.txt"])
def test_no_weights_at_all(tmp_path, name):
    for content in (b"", b"hello", bytes(100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"is no file of weights: an \.npz file, safetensors, and what torch\.save"):
            contents.read(tmp_path / name)


def test_what_is_skipped_is_said(tmp_path, caplog):
    path = tmp_path / "w"
    beside = b"s" + test_pth.atom("lr") + b"cnumpy._core.multiarray\nscalar\n)R" + b"s" + test_pth.atom("out")
    test_pth.archive(path, test_pth.tensor() + beside + b"cpathlib\nPosixPath\n)R")
    found, _ = contents.read(path)
    assert set(found) == {"w", "lr", "out"}
    assert (
        f"{path}: skipped values that are no tensors: numpy._core.multiarray.scalar, pathlib.PosixPath" in caplog.text
    )


@pytest.mark.parametrize(
    ("text", "file", "key"),
    [
        ("x.npz", "x.npz", ""),
        ("x.npz:a", "x.npz", "a"),
        ("x.npz:a.b:c", "x.npz", "a.b:c"),
        ("y:z.npz:a", "y:z.npz", "a"),
    ],
)
def test_file_and_key(tmp_path, monkeypatch, text, file, key):
    monkeypatch.chdir(tmp_path)
    for name in ("x.npz", "y:z.npz"):
        (tmp_path / name).touch()
    found, found_key = contents.split(text)
    assert (str(found), found_key) == (file, key)
    assert contents.split("none.npz:a")[1] == ""
