"""Swin's state dicts in official names and in timm's: names, axes, bits, and what is not learned."""

import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests.port.tiny import identical, random_variables, round_trip

BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def tiny(**settings):
    """Stages of 8 x 8 tokens in shifted windows of 4 x 4, and of 4 x 4 in one."""
    sizes = {"image_size": 16, "patch_size": 2, "width": 8, "depths": (2, 1), "heads": (2, 4), "window_size": 4}
    return models.create("swin_t", num_classes=3, **{**sizes, **settings})


def refusal(state_dict, model):
    with pytest.raises(UserError) as caught:
        port.from_torch(state_dict, model)
    return str(caught.value)


def names(*parts):
    return {f"{part}.{leaf}" for part in parts for leaf in ("weight", "bias")}


PLAIN = names("patch_embed.proj", "patch_embed.norm", "layers.0.downsample.norm", "norm", "head")
PLAIN |= {"layers.0.downsample.reduction.weight", "layers.0.blocks.1.attn_mask"}
BLOCKS = ("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0")
PLAIN |= names(*(f"{block}.{part}" for block in BLOCKS for part in BLOCK))
RELATIVE = {f"{block}.attn.relative_position_{what}" for block in BLOCKS for what in ("bias_table", "index")}


@pytest.mark.parametrize(
    ("pe", "join", "more"),
    [
        ("none", "default", set()),
        ("relative", "default", RELATIVE),
        ("learnable", "default", {"absolute_pos_embed"}),
        ("sincos_2d+relative", "shared", RELATIVE | {"absolute_pos_embed"}),
        ("learnable+relative", "lape", {*RELATIVE, "absolute_pos_embed", *names(*(f"{b}.pe_norm" for b in BLOCKS))}),
        (
            "learnable",
            "unshared",
            {
                f"layers.{table}"
                for table in ("0.absolute_pos_embed0", "0.absolute_pos_embed1", "1.absolute_pos_embed0")
            },
        ),
    ],
)
def test_round_trip_and_names(pe, join, more):
    assert set(round_trip(tiny(pe=pe, join=join))) == PLAIN | more


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_types_are_kept(dtype):
    state_dict = round_trip(tiny(pe="sincos_1d+relative"), dtype)
    assert {array.dtype for array in state_dict.values()} == {np.dtype(dtype), np.dtype(np.int64)}


def test_axes():
    model = tiny()
    variables = random_variables(model)
    params, state_dict = variables["params"], port.to_torch(variables, model)
    assert state_dict["absolute_pos_embed"].shape == (1, 64, 8)
    assert state_dict["absolute_pos_embed"][0, 9, 5] == params["pos_embed"][9, 5]
    reduction = state_dict["layers.0.downsample.reduction.weight"]
    assert reduction.shape == (16, 32)
    assert reduction[3, 17] == params["downsample_0"]["reduction"]["kernel"][17, 3]
    qkv = state_dict["layers.0.blocks.1.attn.qkv.weight"]
    assert qkv[17, 5] == params["layers_0"]["blocks"]["attn"]["qkv"]["kernel"][1, 5, 17]
    table = state_dict["layers.1.blocks.0.attn.relative_position_bias_table"]
    assert table[30, 3] == params["layers_1"]["blocks"]["attn"]["relative_position_bias_table"][0, 30, 3]


def in_timms_names(state_dict):
    """timm (0.9 and later) merges at the start of a stage, has another head, and stores no buffers."""
    moved = {"layers.0.downsample": "layers.1.downsample", "layers.1.downsample": "layers.2.downsample"}
    renamed = {}
    for name, array in state_dict.items():
        start = next((start for start in moved if name.startswith(start)), "")
        name = moved[start] + name.removeprefix(start) if start else name.replace("head.", "head.fc.")
        if not name.endswith(("attn_mask", "relative_position_index")):
            renamed[name] = array
    return renamed


def test_timm():
    model = tiny(depths=(1, 1, 1), heads=(1, 2, 4), pe="relative")
    official = port.to_torch(random_variables(model), model)
    timm = in_timms_names(official)
    assert "layers.2.downsample.norm.weight" in timm
    expected = port.from_torch(official, model)
    identical(expected, port.from_torch(timm, model))
    identical(expected, port.from_torch({"model": {f"module.{name}": x for name, x in timm.items()}}, model))
    del official["layers.0.downsample.norm.bias"]
    assert refusal(official, model).endswith("it lacks layers.0.downsample.norm.bias")


def test_masks_and_indices_must_be_the_models():
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    expected = port.from_torch(state_dict, model)
    mask, index = "layers.0.blocks.1.attn_mask", "layers.1.blocks.0.attn.relative_position_index"
    assert state_dict[mask].shape == (4, 16, 16)
    assert set(np.unique(state_dict[mask])) == {-100, 0}
    identical(expected, port.from_torch({n: x for n, x in state_dict.items() if n not in (mask, index)}, model))
    identical(expected, port.from_torch({**state_dict, mask: state_dict[mask].astype(np.float16)}, model))
    assert refusal({**state_dict, mask: 2 * state_dict[mask]}, model).startswith(f"{mask} masks other pairs of tokens")
    assert refusal({**state_dict, mask: state_dict[mask][:1]}, model).startswith(f"{mask} is float32 (1, 16, 16) and")
    assert refusal({**state_dict, index: state_dict[index].T}, model).startswith(f"{index} differs by up to")
    assert refusal({**state_dict, "layers.0.blocks.0.attn_mask": state_dict[mask]}, model).endswith(
        "the model has no layers.0.blocks.0.attn_mask"
    )


@pytest.mark.parametrize(("suffix", "format"), [(".npz", "torch"), (".safetensors", "lape")])
def test_files(tmp_path, suffix, format):
    model = tiny()
    variables = random_variables(model)
    port.save(tmp_path / f"swin{suffix}", variables, model, format=format)
    identical(variables, port.load(tmp_path / f"swin{suffix}", model))


@pytest.mark.parametrize("pe", ["relative", "learnable+relative"])
def test_warm_start_with_larger_windows_and_lape(tmp_path, pe):
    source, model = tiny(pe=pe, join="default"), tiny(image_size=32, window_size=8)
    weights = random_variables(source)
    port.save(tmp_path / "swin.npz", weights, source)
    found, transfer = port.warm_start(tmp_path / "swin.npz", model, random_variables(model))
    biases = {f"layers_{stage}/blocks/attn/relative_position_bias_table" for stage in (0, 1)}
    tables = {"pos_embed"} if pe.startswith("learnable") else set()
    norms = {f"layers_{stage}/blocks/pe_norm/{leaf}" for stage in (0, 1) for leaf in ("scale", "bias")}
    assert set(transfer.resized) == biases | tables
    assert set(transfer.initialised) == norms | {"pos_embed"} - tables
    resized = found["params"]["layers_0"]["blocks"]["attn"]["relative_position_bias_table"]
    assert resized.shape == (2, 15 * 15, 2)
    middle = weights["params"]["layers_0"]["blocks"]["attn"]["relative_position_bias_table"].reshape(2, 7, 7, 2)
    np.testing.assert_allclose(resized.reshape(2, 15, 15, 2)[:, 7, 7], middle[:, 3, 3], rtol=1e-5)


@pytest.mark.peer
def test_the_official_index_and_mask():
    """As microsoft/Swin-Transformer computes them, written again with PyTorch."""
    torch = pytest.importorskip("torch")
    window, shift, height, width = 7, 3, 28, 14
    sizes = {"image_size": (4 * height, 4 * width), "width": 8, "depths": (2,), "heads": (1,), "num_classes": 3}
    model = models.create("swin_t", **sizes)
    state_dict = port.to_torch(random_variables(model), model)
    region = torch.zeros(height, width)
    number = 0
    for rows in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
        for columns in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
            region[rows, columns] = number
            number += 1
    region = region.reshape(height // window, window, width // window, window).permute(0, 2, 1, 3).reshape(-1, 49)
    mask = (region[:, None] != region[:, :, None]).float() * -100
    np.testing.assert_array_equal(state_dict["layers.0.blocks.1.attn_mask"], mask.numpy())
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    index = offsets[0] * (2 * window - 1) + offsets[1]
    np.testing.assert_array_equal(state_dict["layers.0.blocks.1.attn.relative_position_index"], index.numpy())
