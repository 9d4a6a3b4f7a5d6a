"""What is said about a state dict that does not fit the model."""

import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests.port.tiny import random_variables, tiny


def refusal(state_dict, model):
    with pytest.raises(UserError) as caught:
        port.from_torch(state_dict, model)
    return str(caught.value)


def test_names_are_counted_and_the_first_are_given():
    model = tiny(depth=11)
    state_dict = port.to_torch(random_variables(model), model)
    without = {name: array for name, array in state_dict.items() if "pe_norm" not in name}
    given = {"head_dist.bias": np.zeros(5), **without, "dist_token": np.zeros((1, 1, 32))}
    names = "the state dict in DeiT's or timm's ViT names"
    assert refusal(given, model) == (
        f"{names} (140 of 162 fit) does not fit the model: it lacks blocks.0-10.pe_norm.bias, "
        f"blocks.0-10.pe_norm.weight; the model has no dist_token, head_dist.bias"
    )
    assert refusal(state_dict, tiny(depth=11, join="default")) == (
        f"{names} (140 of 140 fit) does not fit the model: the model has no blocks.0-10.pe_norm.bias, "
        f"blocks.0-10.pe_norm.weight"
    )
    assert refusal({}, tiny(depth=1)) == (
        "the state dict (0 of 22 fit) does not fit the model: it lacks blocks.0.attn.proj.bias, "
        "blocks.0.attn.proj.weight, blocks.0.attn.qkv.bias and 19 more"
    )
    gone = {name: array for name, array in without.items() if not name.startswith(("blocks.3", "blocks.5.norm1"))}
    assert "it lacks blocks.0-10.pe_norm.bias, blocks.0-10.pe_norm.weight, blocks.3.attn.proj.bias and 13 more" in (
        refusal(gone, model)
    )


def test_other_names_are_told_by_whose_they_are():
    given = {f"vit.encoder.layer.{i}.attention.attention.query.weight": np.zeros((32, 32)) for i in range(12)}
    assert refusal(given | {"x" * 99: np.zeros(1), "pooler.w": np.zeros(1)}, tiny()) == (
        f"the state dict in Hugging Face's ViT or DeiT names (0 of 36 fit) does not fit "
        f"the model: the model has no pooler.w, vit.encoder.layer.0-11.attention.attention.query.weight, {'x' * 67}..."
    )


def test_each_kind_of_misfit_in_one_message():
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    state_dict["head.weight"] = np.zeros((3, 32), np.float32)
    state_dict["patch_embed.proj.weight"] = state_dict["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    state_dict["norm.bias"] = np.zeros(32, np.int32)
    state_dict["blocks.0.norm1.bias"] = np.zeros(32, np.complex64)
    state_dict["blocks.1.norm1.bias"] = np.full(32, np.inf, np.float16)
    state_dict["cls_token"][0, 0, 7] = np.nan
    assert refusal(state_dict, model) == (
        "the state dict in DeiT's or timm's ViT names (30 of 36 fit) does not fit the model: "
        "shapes differ: head.weight is (3, 32) and should be (5, 32), "
        "patch_embed.proj.weight is (8, 8, 3, 32) and should be (32, 3, 8, 8); "
        "not floating point: blocks.0.norm1.bias is complex64, norm.bias is int32; "
        "not finite: blocks.1.norm1.bias, cls_token"
    )


def test_layers_of_different_type():
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    state_dict["blocks.1.norm1.bias"] = state_dict["blocks.1.norm1.bias"].astype(np.float16)
    assert refusal(state_dict, model) == (
        "the layers of blocks/norm1/bias have different types (float16, float32), and are one array here"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "epoch should be an array, and is a int"),
        ({"w": [1.0, 2.0]}, "w should be an array, and is a list"),
        ({"w": {"nested": 1}}, "w should be an array, and is a dict"),
        ({"model": {0: np.zeros(3)}}, "weights should have names, and 0 is none"),
    ],
)
def test_no_arrays(given, message):
    assert refusal(given, tiny()) == message


def test_variables_that_are_not_the_models():
    model = tiny()
    variables = random_variables(model)
    for wrong in ({}, variables["params"], {"params": None}):
        with pytest.raises(UserError, match="variables should be a dict with the parameters under 'params'"):
            port.to_torch(wrong, model)
    with pytest.raises(UserError, match="the model has no blocks/pe_norm/bias, blocks/pe_norm/scale"):
        port.to_torch(variables, tiny(join="default"))


def test_names_made_to_do_harm():
    """Numbers between which there are too many to count, or that are too long for Python."""
    names = [f"x.{block}.y" for block in (*range(50), 900_000_000, "9" * 5000)]
    assert refusal({name: np.zeros(1) for name in names}, tiny()).endswith(
        "the model has no x.0.y, x.1.y, x.2.y and 49 more"
    )
    blocks = {f"Transformer/encoderblock_{block}/x": np.zeros(1) for block in (0, 999_999, "9" * 5000)}
    with pytest.raises(UserError, match="has 2 blocks, and the last one is number 999999"):
        port.from_big_vision(blocks, tiny(gelu="tanh"))
    assert "layers" in refusal({f"layers.{'9' * 5000}.blocks.0.x": np.zeros(1)}, models.create("swin_t"))
    assert len(refusal({"a." * 10**5 + str(i): np.zeros(1) for i in range(3)}, tiny())) < 400
