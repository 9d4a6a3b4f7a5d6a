"""PyTorch state dicts to parameters and back: names, axes and bits."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.nn.join import JOINS
from lape_jax.nn.pe_norm import PE_NORMS
from tests import quick
from tests.port.tiny import identical, random_variables, round_trip, tiny

GOLDEN = Path(__file__).parent / "golden"


def exists(pe, join):
    absolute, _ = position.parse_pe(pe)
    return join == "default" if absolute is None else absolute == "learnable" or join != "unshared"


METHODS = [name for name, join in JOINS.items() if join.trainable and not join.pools]
# A PEG adds the same entries to all of them, and a third kind of sinusoid is a table like the others; for RoPE see
# test_rope.py.
KINDS = [
    kind
    for kind in position.KINDS
    if not position.has_peg(kind) and not position.parse_rope(kind) and position.SINCOS_2D_MOCO not in kind
]
PAIRS = [pair for pair in itertools.product(KINDS, METHODS) if exists(*pair)]


def block(i, *extra):
    parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", *extra]
    return [f"blocks.{i}.{part}.{leaf}" for part in parts for leaf in ("weight", "bias")]


PLAIN = ["cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", *block(0), *block(1)]
PLAIN += ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_all_pairs_are_here():
    assert len(PAIRS) == 28
    for pe, join in itertools.product(KINDS, METHODS):
        if (pe, join) not in PAIRS:
            with pytest.raises(UserError):
                tiny(pe=pe, join=join)


@pytest.mark.parametrize("distilled", quick.first(1, [False, True]))
@pytest.mark.parametrize(("pe", "join"), PAIRS)
def test_round_trip_and_names(pe, join, distilled):
    state_dict = round_trip(tiny(pe=pe, join=join, distilled=distilled))
    names = set(PLAIN)
    absolute, relative = position.parse_pe(pe)
    if absolute:
        names |= {"pos_embed0", "pos_embed1"} if join == "unshared" else {"pos_embed"}
    for i in range(2):
        if relative:
            names |= {f"blocks.{i}.attn.relative_position_bias_table", f"blocks.{i}.attn.relative_position_index"}
        if join in ("lape", "lape_sharing"):
            names |= {f"blocks.{i}.pe_norm.weight", f"blocks.{i}.pe_norm.bias"}
    if distilled:
        names |= {"dist_token", "head_dist.weight", "head_dist.bias"}
    assert set(state_dict) == names


def test_positional_encoding_generators():
    """Names of Twins; also beside a table."""
    model = tiny(pe="learnable+peg", peg_blocks=2)
    variables, state_dict = random_variables(model), round_trip(model)
    names = {f"pos_block.{i}.proj.0.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}
    assert set(state_dict) - set(round_trip(tiny())) == names
    assert state_dict["pos_block.1.proj.0.weight"].shape == (32, 1, 3, 3)
    kernel = variables["params"]["peg_1"]["proj"]["kernel"]  # rows, columns, 1, channels
    assert state_dict["pos_block.1.proj.0.weight"][17, 0, 2, 1] == kernel[2, 1, 0, 17]
    round_trip(models.create("vit_lite_7_4", width=32, depth=2, heads=2, image_size=16, pe="peg"))


def test_sinusoid_of_moco():
    model = tiny(pe="sincos_2d_moco")
    table = round_trip(model)["pos_embed"]
    np.testing.assert_allclose(table[0], position.sincos_2d_moco((2, 2), 32, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [
        ("layernorm", {"weight": (32,), "bias": (32,)}),
        ("norm", {}),
        ("scalar", {"weight": ()}),
        ("vector", {"weight": (32,)}),
        ("affine", {"weight": (32,), "bias": (32,)}),
        ("scalar_norm", {"weight": ()}),
        ("vector_norm", {"weight": (32,)}),
        ("identity", {}),
    ],
)
def test_pe_norms(kind, leaves):
    assert kind in PE_NORMS
    state_dict = round_trip(tiny(pe_norm=kind))
    shapes = {name: array.shape for name, array in state_dict.items() if ".1.pe_norm." in name}
    assert shapes == {f"blocks.1.pe_norm.{leaf}": shape for leaf, shape in leaves.items()}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("pe", ["learnable", "sincos_1d", "sincos_2d"])
def test_types_are_kept(pe, dtype):
    state_dict = round_trip(tiny(pe=pe), dtype)
    assert {array.dtype for array in state_dict.values()} == {np.dtype(dtype)}


def test_shapes():
    model = tiny(pe="learnable+relative", distilled=True, pool="token", image_size=(16, 24), patch_size=(8, 4))
    shapes = {name: array.shape for name, array in round_trip(model).items()}
    assert shapes["cls_token"] == shapes["dist_token"] == (1, 1, 32)
    assert shapes["pos_embed"] == (1, 2 + 2 * 6, 32)
    assert shapes["patch_embed.proj.weight"] == (32, 3, 8, 4)
    assert shapes["blocks.1.attn.qkv.weight"] == (96, 32)
    assert shapes["blocks.1.mlp.fc1.weight"] == (128, 32)
    assert shapes["blocks.1.mlp.fc2.weight"] == (32, 128)
    assert shapes["blocks.1.attn.relative_position_bias_table"] == (3 * 11, 2)
    assert shapes["blocks.1.attn.relative_position_index"] == (12, 12)
    assert shapes["head.weight"] == (5, 32)


def test_other_sizes_round_trip():
    round_trip(tiny(pool="gap", depth=11, mlp_ratio=2.0, in_channels=1))
    state_dict = round_trip(tiny(depth=11))
    blocks = [int(name.split(".")[1]) for name in state_dict if name.startswith("blocks.")]
    assert blocks == sorted(blocks)


def test_axes():
    model = tiny(join="unshared")
    variables = random_variables(model)
    params, state_dict = variables["params"], port.to_torch(variables, model)
    conv, kernel = state_dict["patch_embed.proj.weight"], params["patch_embed"]["proj"]["kernel"]
    assert conv[17, 2, 3, 5] == kernel[3, 5, 2, 17]  # out, in, row, column
    assert state_dict["blocks.1.attn.qkv.weight"][70, 9] == params["blocks"]["attn"]["qkv"]["kernel"][1, 9, 70]
    assert state_dict["blocks.1.attn.qkv.bias"][70] == params["blocks"]["attn"]["qkv"]["bias"][1, 70]
    assert state_dict["blocks.0.mlp.fc1.weight"][70, 9] == params["blocks"]["mlp"]["fc1"]["kernel"][0, 9, 70]
    assert state_dict["blocks.1.norm2.weight"][4] == params["blocks"]["norm2"]["scale"][1, 4]
    assert state_dict["pos_embed1"][0, 3, 9] == params["pos_embed"][1, 3, 9]
    assert state_dict["head.weight"][4, 9] == params["head"]["kernel"][9, 4]


@pytest.mark.parametrize("name", quick.first(1, ["vit", "vit_legacy"]))
def test_logits_of_timm(name):
    """A distilled ViT of timm with layer scales, in its own names and file format, computes what timm computes."""
    sizes = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "image_size": 8, "patch_size": 4, "num_classes": 3}
    model = models.create("deit_ti_distilled", **sizes, join="default", layer_scale=1.0)
    variables = port.load(GOLDEN / f"{name}.pth", model)
    with np.load(GOLDEN / "vit.npz") as expected:
        logits, _ = quick.jit(model.apply)(variables, jnp.asarray(expected["images"], jnp.float32))
        np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-5)


def test_layer_scale_names():
    model = tiny(layer_scale=0.1)
    state_dict = round_trip(model)
    expected = port.from_torch(state_dict, model)
    assert {name for name in state_dict if "gamma" in name} == {f"blocks.{i}.gamma_{j}" for i in (0, 1) for j in (1, 2)}
    timm = {name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): x for name, x in state_dict.items()}
    identical(expected, port.from_torch(timm, model))
    with pytest.raises(UserError, match=r"the model has no blocks\.0\.ls1\.gamma$"):
        port.from_torch({**state_dict, "blocks.0.ls1.gamma": timm["blocks.0.ls1.gamma"]}, model)
    with pytest.raises(UserError, match=r"it lacks blocks\.1\.gamma_2$"):
        port.from_torch({name: x for name, x in timm.items() if name != "blocks.1.ls2.gamma"}, model)


def test_prefix_and_wrappers():
    model = tiny(pe="sincos_2d+relative", layer_scale=0.1)
    state_dict = port.to_torch(random_variables(model), model)
    expected = port.from_torch(state_dict, model)
    prefixed = {f"module.{name}": array for name, array in state_dict.items()}
    for wrapped in (
        prefixed,
        {"model": state_dict, "epoch": 3, "args": object()},
        {"state_dict": prefixed, "state_dict_ema": {}},
    ):
        identical(expected, port.from_torch(wrapped, model))
    with pytest.raises(UserError, match="under 'model' and under 'state_dict'"):
        port.from_torch({"model": state_dict, "state_dict": state_dict}, model)
    del prefixed["module.head.bias"]
    with pytest.raises(UserError, match=r"lacks head\.bias$"):
        port.from_torch(prefixed, model)
    with pytest.raises(UserError, match=r"lacks head\.bias; the model has no module\.head\.bias$"):
        port.from_torch(
            {
                **{n: x for n, x in state_dict.items() if n != "head.bias"},
                "module.head.bias": 0.0 * expected["params"]["head"]["bias"],
            },
            model,
        )


def test_kinds_of_arrays():
    model = tiny()
    state_dict = port.to_torch(random_variables(model), model)
    expected = port.from_torch(state_dict, model)
    identical(expected, port.from_torch(jax.tree.map(jnp.asarray, state_dict), model))
    swapped = {name: array.astype(array.dtype.newbyteorder()) for name, array in state_dict.items()}
    identical(expected, port.from_torch(swapped, model))
    views = {name: np.asfortranarray(array) for name, array in state_dict.items()}
    identical(expected, port.from_torch(views, model))
    own = expected["params"]["head"]["bias"][0]
    state_dict["head.bias"][0] += 1
    assert expected["params"]["head"]["bias"][0] == own
    state_dict["head.bias"][0] = own
    on_device = jax.tree.map(jnp.asarray, expected)
    identical(state_dict, port.to_torch(on_device, model))


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype):
    torch = pytest.importorskip("torch")
    model = tiny(pe="sincos_1d+relative")
    state_dict = port.to_torch(random_variables(model, jnp.dtype(dtype)), model)
    tensors = {
        name: torch.tensor(array.astype(np.float64)).to(getattr(torch, dtype)) if "index" not in name else array
        for name, array in state_dict.items()
    }
    tensors["head.weight"] = torch.nn.Parameter(tensors["head.weight"])
    identical(port.from_torch(state_dict, model), port.from_torch(tensors, model))
