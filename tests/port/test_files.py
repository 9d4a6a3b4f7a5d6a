"""Weights in files: what is written is read back bit for bit, and whatever is wrong with a file is said in one line."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port import files
from tests.port.tiny import identical, random_variables

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model():
    sizes = {"width": 8, "depth": 2, "heads": 2, "image_size": 8, "patch_size": 4, "num_classes": 3}
    return models.create("deit_ti", **sizes, pe="sincos_2d+relative", pe_norm="scalar_norm")  # scalars and buffers, too


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("format", ["torch", "lape"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_round_trip(tmp_path, model, suffix, format, dtype):
    variables = random_variables(model, dtype)
    path = tmp_path / f"weights{suffix}"
    port.save(path, variables, model, format=format)
    identical(variables, port.load(path, model))
    identical(variables, port.load(str(path), model))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("settings", [{"pe": "learnable+relative"}, {"gelu": "erf"}, {"join": "folded"}], ids=str)
def test_big_visions_names_for_what_it_has_not(tmp_path, settings):
    sizes = {"width": 8, "depth": 2, "heads": 2, "image_size": 8, "patch_size": 4, "num_classes": 3}
    model = models.create("vit_ti_16", **sizes, **settings)
    variables = random_variables(model)
    port.save(tmp_path / "weights.npz", variables, model, format="lape")
    identical(variables, port.load(tmp_path / "weights.npz", model))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_in_the_file(tmp_path, model, variables, suffix):
    path = tmp_path / f"weights{suffix}"
    read = {".npz": np.load, ".safetensors": safetensors.numpy.load_file}[suffix]
    port.save(path, variables, model)
    identical(dict(read(path)), port.to_torch(variables, model))
    port.save(path, variables, model, format="lape")  # replaces the file
    identical(dict(read(path)), flatten_dict(variables["params"], sep="/"))


@pytest.mark.peer
def test_pytorch_reads_it(tmp_path, model, variables):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = tmp_path / "weights.safetensors"
    port.save(path, variables, model)
    state_dict = load_file(path)
    identical({name: tensor.numpy() for name, tensor in state_dict.items()}, port.to_torch(variables, model))
    torch.save({"model": state_dict}, tmp_path / "weights.pth")
    identical(variables, port.load(tmp_path / "weights.pth", model))
    torch.save(state_dict, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    identical(variables, port.load(tmp_path / "weights.pt", model))


def test_arrays_of_any_layout(tmp_path, model, variables):
    path = tmp_path / "weights.safetensors"
    port.save(path, jax.tree.map(np.asfortranarray, variables), model, format="lape")
    identical(variables, port.load(path, model))
    port.save(path, jax.tree.map(jnp.asarray, variables), model, format="lape")
    identical(variables, port.load(path, model))


def test_suffixes_and_formats(tmp_path, model, variables):
    for name in ("weights", "weights.pth"):
        with pytest.raises(UserError, match=r"written to files that end in \.npz, \.safetensors$"):
            port.save(tmp_path / name, variables, model)
    with pytest.raises(UserError, match=r"format='trch' is not one of torch, lape, .*\(did you mean 'torch'\?\)"):
        port.save(tmp_path / "weights.npz", variables, model, format="trch")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["absent.npz", "absent.safetensors", "absent.pth"])
def test_missing(tmp_path, model, name):
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        port.load(tmp_path / name, model)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_directory(tmp_path, model, suffix):
    path = tmp_path / f"w{suffix}"
    path.mkdir()
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        port.load(path, model)


def test_misfit_names_the_file(tmp_path, model, variables):
    path = tmp_path / "weights.npz"
    for format, weight in (("torch", "head.bias"), ("lape", "head/bias")):
        port.save(path, variables, model, format=format)
        arrays = dict(np.load(path))
        np.savez(path, **{name: array for name, array in arrays.items() if name != weight})
        with pytest.raises(
            UserError, match=rf"{path}: the .* \(\d+ of \d+ fit\) does not fit the model: it lacks {weight}$"
        ):
            port.load(path, model)
        np.savez(path, **{**arrays, weight: np.full(3, np.nan, np.float32)})
        with pytest.raises(UserError, match=rf"{path}: the .* does not fit the model: not finite: {weight}$"):
            port.load(path, model)


def test_a_failed_write_leaves_the_old_file(tmp_path, model, variables, monkeypatch):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"old")
    wrong = {"params": {**variables["params"], "more": np.zeros(1, np.float32)}}
    with pytest.raises(UserError, match="the model has no more"):
        port.save(path, wrong, model)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.np, "savez", full)
    with pytest.raises(UserError, match=f"{path} cannot be written: No space left on device"):
        port.save(path, variables, model)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        port.save(tmp_path / "absent" / "weights.npz", variables, model)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_truncated_anywhere(tmp_path, model, variables, suffix):
    path = tmp_path / f"weights{suffix}"
    port.save(path, variables, model)
    content = path.read_bytes()
    for length in [*range(0, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            port.load(path, model)


def test_file_of_another_kind(tmp_path, model, variables):
    port.save(tmp_path / "w.safetensors", variables, model)
    port.save(tmp_path / "w.npz", variables, model)
    shutil.copy(GOLDEN / "vit.pth", tmp_path / "w.pth")
    shutil.copy(GOLDEN / "vit_legacy.pth", tmp_path / "legacy.pth")
    sizes = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "image_size": 8, "patch_size": 4, "num_classes": 3}
    timm = models.create("deit_ti_distilled", **sizes, join="default", layer_scale=1.0)
    expected = port.load(GOLDEN / "vit.pth", timm)
    for suffix in (".npz", ".safetensors", ".pth", ".bin", ".ckpt", ".NPZ", ""):
        for source in ("w.safetensors", "w.npz", "w.pth", "legacy.pth"):
            shutil.copy(tmp_path / source, tmp_path / f"disguised{suffix}")
            of_torch = source.endswith(".pth")
            found = port.load(tmp_path / f"disguised{suffix}", timm if of_torch else model)
            identical(expected if of_torch else variables, found)
    np.save(tmp_path / "array.npy", np.zeros(3))
    shutil.copy(tmp_path / "array.npy", tmp_path / "array.npz")
    with pytest.raises(UserError, match=r"is damaged, or not a NumPy \.npz file"):
        port.load(tmp_path / "array.npz", model)


def test_objects_in_npz_are_not_unpickled(tmp_path, model):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "weights.npz"
    np.savez(path, w=np.array([Touch()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        port.load(path, model)
    assert not (tmp_path / "owned").exists()


def test_npz_bomb_and_lies(tmp_path, model):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, w=np.zeros(2**24, np.float32))
    with pytest.raises(UserError, match="claim to unpack to 67"):
        port.load(path, model)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**60,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", header.getvalue())
    with pytest.raises(UserError, match="is damaged"):
        port.load(path, model)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(UserError, match="is damaged, or not a NumPy"):
        port.load(path, model)


def test_pth_without_weights(tmp_path, model):
    with pytest.raises(
        UserError, match=r"tensors\.pth: the state dict \(0 of \d+ fit\) does not fit the model: the mod"
    ):
        port.load(GOLDEN / "tensors.pth", model)
    path = tmp_path / "list.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02].")
    with pytest.raises(UserError, match="holds a list instead of arrays by name"):
        port.load(path, model)


def test_a_header_whose_length_begins_as_a_pickle_does(tmp_path, model, variables):
    """Headers are filled up to 8 bytes, so the first byte of every 32nd length is 0x80."""
    path, arrays = tmp_path / "weights.safetensors", dict(port.to_torch(variables, model))
    for length in range(0, 256, 8):
        safetensors.numpy.save_file(arrays, path, {"filler": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    identical(port.load(path, model), variables)
