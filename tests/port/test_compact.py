"""Compact Transformers' state dicts in the names of the official code: names, axes and bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests.port.tiny import identical, random_variables, round_trip

SIZES = {"width": 16, "depth": 2, "heads": 2, "image_size": 8, "num_classes": 5}


def tiny(name, **settings):
    return models.create(name, **{**SIZES, **settings})


def linear(*names):
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


def names(*extra):
    """Of what ViT-Lite, CVT and CCT have in common, and the `extra` parts of each block."""
    found = linear("classifier.norm", "classifier.fc")
    for i in range(2):
        block = f"classifier.blocks.{i}."
        parts = ["pre_norm", "norm1", "self_attn.proj", "linear1", "linear2", *extra]
        found |= linear(*(block + part for part in parts)) | {block + "self_attn.qkv.weight"}
    return found


@pytest.mark.parametrize(("join", "extra"), [("default", []), ("lape", ["pe_norm"])])
def test_round_trip_and_names(join, extra):
    pool, pos = linear("classifier.attention_pool"), {"classifier.positional_emb"}
    patches = linear("tokenizer.conv_layers.0.0")
    lite = round_trip(tiny("vit_lite_7_4", join=join))
    assert set(lite) == names(*extra) | patches | pos | {"classifier.class_emb"}
    assert lite["classifier.positional_emb"].shape == (1, 5, 16)
    cvt = round_trip(tiny("cvt_7_4", join=join))
    assert set(cvt) == names(*extra) | patches | pos | pool
    assert cvt["classifier.positional_emb"].shape == (1, 4, 16)
    cct = round_trip(tiny("cct_7_3x2", join=join))
    assert set(cct) == names(*extra) | {f"tokenizer.conv_layers.{j}.0.weight" for j in (0, 1)} | pos | pool
    assert cct["tokenizer.conv_layers.1.0.weight"].shape == (16, 64, 3, 3)
    assert cct["classifier.attention_pool.weight"].shape == (1, 16)


def test_other_position_embeddings():
    unshared = round_trip(tiny("vit_lite_7_4", join="unshared"))
    assert {"classifier.positional_emb0", "classifier.positional_emb1"} <= set(unshared)
    relative = round_trip(tiny("cct_7_3x1", pe="relative", image_size=4))
    for leaf in ("table", "index"):
        assert f"classifier.blocks.1.self_attn.relative_position_{'bias_' * (leaf == 'table')}{leaf}" in relative
    assert not [name for name in round_trip(tiny("cvt_7_4", pe="none")) if "positional" in name]


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_types_are_kept(dtype):
    assert {array.dtype for array in round_trip(tiny("cvt_7_4"), dtype).values()} == {np.dtype(dtype)}


def test_axes():
    model = tiny("cct_7_3x2")
    variables = random_variables(model)
    params, state_dict = variables["params"], port.to_torch(variables, model)
    conv, kernel = state_dict["tokenizer.conv_layers.1.0.weight"], params["patch_embed"]["conv1"]["kernel"]
    assert conv[9, 33, 0, 2] == kernel[0, 2, 33, 9]  # out, in, row, column
    qkv = state_dict["classifier.blocks.1.self_attn.qkv.weight"]
    assert qkv[40, 9] == params["blocks"]["attn"]["qkv"]["kernel"][1, 9, 40]
    for theirs, ours in (("pre_norm", "norm1"), ("norm1", "norm2")):  # the names are shifted
        scale = params["blocks"][ours]["scale"][1]
        np.testing.assert_array_equal(state_dict[f"classifier.blocks.1.{theirs}.weight"], scale)
    for theirs, ours in (("linear1", "fc1"), ("linear2", "fc2")):
        kernel = params["blocks"]["mlp"][ours]["kernel"][0]
        np.testing.assert_array_equal(state_dict[f"classifier.blocks.0.{theirs}.weight"], kernel.T)


@pytest.mark.parametrize("name", ["vit_lite_7_4", "cvt_7_4"])
def test_a_frozen_sinusoid_is_compared(name):
    model = tiny(name, pe="sincos_1d")
    state_dict = port.to_torch(random_variables(model), model)
    table = state_dict["classifier.positional_emb"]
    assert table.shape == (1, 5 if name == "vit_lite_7_4" else 4, 16)
    np.testing.assert_array_equal(table[0, 0], [0, 1] * 8)  # position 0 is the class token, or the first patch
    expected = port.from_torch(state_dict, model)
    assert "pos_embed" not in expected["params"]
    missing = {name: array for name, array in state_dict.items() if name != "classifier.positional_emb"}
    identical(expected, port.from_torch(missing, model))
    with pytest.raises(UserError, match=r"classifier\.positional_emb differs by up to 2e-05 from the one"):
        port.from_torch({**state_dict, "classifier.positional_emb": table + 2e-5}, model)


def test_misfits_have_official_names():
    model = tiny("cct_7_3x1")
    state_dict = port.to_torch(random_variables(model), model)
    del state_dict["classifier.fc.bias"]
    state_dict["classifier.blocks.0.self_attn.qkv.bias"] = np.zeros(48, np.float32)
    with pytest.raises(UserError) as caught:
        port.from_torch(state_dict, model)
    assert str(caught.value) == (
        "the state dict in Compact Transformers' names (33 of 34 fit) does not fit the model: "
        "it lacks classifier.fc.bias; the model has no classifier.blocks.0.self_attn.qkv.bias"
    )
    with pytest.raises(UserError, match="dist_token of this model has no counterpart in PyTorch's Compact"):
        port.to_torch(random_variables(distilled := tiny("vit_lite_7_4", distilled=True)), distilled)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files(tmp_path, suffix):
    model = tiny("cct_7_3x1")
    variables = random_variables(model)
    port.save(tmp_path / f"cct{suffix}", variables, model)
    identical(variables, port.load(tmp_path / f"cct{suffix}", model))
