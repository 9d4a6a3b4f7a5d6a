"""CeiT's state dicts in the names of the official code."""

import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests.port.tiny import identical, random_variables, round_trip

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "image_size": 16, "patch_size": 8, "num_classes": 5}


def tiny(**settings):
    return models.create("ceit_ti", **{**SIZES, "stem_width": 8, **settings})


def linear(*names):
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


def test_round_trip_and_names():
    state_dict = round_trip(tiny())
    names = linear("norm", "head", "i2t.proj") | {"cls_token", "pos_embed", "pos_layer_embed"}
    names |= {"i2t.backbone.conv.weight", *(f"i2t.backbone.bn.{leaf}" for leaf in NORM)}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2")
    for i in range(2):
        names |= linear(*(f"blocks.{i}.{part}" for part in ("pe_norm", *parts)))
        names |= linear(*(f"blocks.{i}.leff.conv{n}" for n in (1, 2, 3)))
        names |= {f"blocks.{i}.leff.bn{n}.{leaf}" for n in (1, 2, 3) for leaf in NORM}
    names |= linear(*(f"lca.{part}" for part in (*parts, "feedforward.fc1", "feedforward.fc2")))
    assert set(state_dict) == names


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_types_are_kept(dtype):
    types = {name: array.dtype for name, array in round_trip(tiny(), dtype).items()}
    assert {kind for name, kind in types.items() if "tracked" not in name} == {np.dtype(dtype)}
    assert {kind for name, kind in types.items() if "tracked" in name} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    "settings",
    [
        {"join": "default"},
        {"join": "unshared"},
        {"pe": "sincos_2d+relative"},
        {"pe": "learnable+peg", "layer_scale": 0.1},
    ],
)
def test_round_trips_of_its_variations(settings):
    state_dict = round_trip(tiny(**settings))
    if "layer_scale" in settings:
        assert {"blocks.1.gamma_2", "lca.gamma_1", "pos_block.0.proj.0.weight"} < set(state_dict)
    if "pe" in settings:
        assert not any("lca" in name and "relative" in name for name in state_dict)


def test_axes():
    model = tiny()
    variables = random_variables(model)
    params, stats, state_dict = variables["params"], variables["batch_stats"], port.to_torch(variables, model)
    mlp, kernels = params["blocks"]["mlp"], {n: state_dict[f"blocks.1.leff.conv{n}.weight"] for n in (1, 2, 3)}
    assert (kernels[1].shape, kernels[2].shape, kernels[3].shape) == ((32, 16, 1, 1), (32, 1, 3, 3), (16, 32, 1, 1))
    np.testing.assert_array_equal(kernels[1][:, :, 0, 0], mlp["fc1"]["kernel"][1].T)
    np.testing.assert_array_equal(kernels[3][:, :, 0, 0], mlp["fc2"]["kernel"][1].T)
    assert kernels[2][7, 0, 0, 2] == mlp["conv"]["kernel"][1, 0, 2, 0, 7]  # row, column
    conv = state_dict["i2t.backbone.conv.weight"]
    assert conv.shape == (8, 3, 7, 7)
    assert conv[5, 1, 2, 6] == params["patch_embed"]["conv"]["kernel"][2, 6, 1, 5]
    np.testing.assert_array_equal(state_dict["blocks.0.leff.bn3.running_var"], stats["blocks"]["mlp"]["bn3"]["var"][0])
    np.testing.assert_array_equal(state_dict["i2t.backbone.bn.running_mean"], stats["patch_embed"]["bn"]["mean"])
    np.testing.assert_array_equal(state_dict["pos_layer_embed"][0], params["pos_layer_embed"])


def test_as_it_is_published():
    """In a checkpoint under "model", with counters of training steps, which may be anything and may lack."""
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    expected = port.from_torch(state_dict, model)
    counted = {name: np.full((), 375_300) if name.endswith("tracked") else x for name, x in state_dict.items()}
    without = {name: x for name, x in state_dict.items() if not name.endswith("tracked")}
    for given in ({"model": counted}, {f"module.{name}": x for name, x in counted.items()}, without):
        identical(expected, port.from_torch(given, model))
    wrong = {**state_dict, "blocks.1.leff.bn2.num_batches_tracked": np.zeros(1)}
    with pytest.raises(UserError, match=r"blocks.1.leff.bn2.num_batches_tracked is .* and should be one integer"):
        port.from_torch(wrong, model)


def test_files(tmp_path):
    model = tiny()
    variables = random_variables(model)
    for name, format in (("a.npz", "lape"), ("b.safetensors", "torch")):
        port.save(tmp_path / name, variables, model, format=format)
        identical(variables, port.load(tmp_path / name, model))
    with np.load(tmp_path / "a.npz") as file:
        assert "batch_stats/blocks/mlp/bn1/mean" in file.files


def test_a_vit_and_a_ceit_are_not_mistaken_for_each_other():
    vit = models.create("deit_ti", **SIZES)
    theirs, ours = (port.to_torch(random_variables(model), model) for model in (vit, tiny()))
    with pytest.raises(
        UserError, match=r"it lacks blocks.0-1.leff.bn1.bias, .*; the model has no blocks.0-1.mlp.fc1.bias"
    ):
        port.from_torch(theirs, tiny())
    with pytest.raises(UserError, match=r"CeiT's names .* it lacks blocks.0-1.mlp.fc1.bias, "):
        port.from_torch(ours, vit)
