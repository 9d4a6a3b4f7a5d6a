"""State dicts of ViT-Adapter and UperNet by official names, and what they start from."""

import jax
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port import params, upernet, vit_adapter
from lape_jax.port.params import flatten
from lape_jax.port.transfer import warm_start
from tests import quick
from tests.port.tiny import random_variables
from tests.reference import vit_adapter_states as states

SIZES = {"width": 12, "depth": 4, "heads": 2, "mlp_ratio": 2.0}
TINY = {**SIZES, "deform_heads": 2, "deform_points": 2, "spatial_width": 4}
HEADS = {"num_classes": 5, "channels": 6, "aux_channels": 6, "image_size": 64, "table_size": 32}


def tiny(name="upernet_vit_adapter_ti", **settings):
    sizes = {**TINY, **HEADS} if "upernet" in name else {**TINY, "image_size": 32}
    return models.create(name, **{**sizes, **settings})


@pytest.mark.parametrize("join", quick.first(1, ["lape", "default"]))
@pytest.mark.parametrize(
    ("name", "table", "expected"),
    quick.first(
        1,
        [
            ("upernet_vit_adapter_ti", upernet, states.upernet_shapes),
            ("vit_adapter_ti", vit_adapter, states.vit_adapter_shapes),
        ],
    ),
)
def test_names_and_shapes_are_the_official_ones(name, table, expected, join):
    model = models.create(name, join=join)
    ours = {entry.names[0]: entry.shape for entry in table.entries(params.shapes(model))}
    ours |= {name: array.shape for name, array in table.constants(model).items()}
    assert ours == expected(states.Sizes(join=join))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", quick.first(1, [{}, {"join": "unshared"}, {"pe": "sincos_1d+relative+peg"}]), ids=str
)
@pytest.mark.parametrize("name", quick.first(1, ["upernet_vit_adapter_ti", "vit_adapter_ti"]))
@pytest.mark.parametrize("suffix", quick.first(1, [".safetensors", ".npz"]))
def test_there_and_back_bit_by_bit(name, suffix, settings, tmp_path):
    model = tiny(name, **settings)
    variables = random_variables(model)
    port.save(tmp_path / f"w{suffix}", variables, model)
    found = port.load(tmp_path / f"w{suffix}", model)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_the_whole_state_dict_of_a_training_script():
    model = tiny(join="default")
    sizes = states.Sizes(12, 4, "default", (2, 2), 2.0, 4, 2, 2, classes=5, head_width=6, aux_width=6)
    # Its ConvFFN has a quarter of 12 channels, as ours has.
    state = states.random_state(states.upernet_shapes(sizes), (4, 4), deform_heads=2)
    variables = port.from_torch({"state_dict": {f"module.{name}": value for name, value in state.items()}}, model)
    found = port.to_torch(variables, model)
    assert found.keys() == state.keys()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_is_missing_is_named():
    model = tiny()
    state = port.to_torch(random_variables(model), model)
    del state["backbone.interactions.3.extra_extractors.1.ffn.dwconv.dwconv.weight"]
    state["decode_head.psp_modules.2.1.conv.weight"] = state["decode_head.psp_modules.2.1.conv.weight"][:3]
    with pytest.raises(UserError, match=r"lacks backbone\.interactions\.3.*psp_modules\.2\.1\.conv\.weight is \(3, 12"):
        port.from_torch(state, model)


# ---- Warm starts -----------------------------------------------------------------------------------------------------


def started(path, model, **options):
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), model.variable_shapes())
    variables, moved = warm_start(path, model, initial, **options)
    return flatten(variables), moved


@pytest.mark.parametrize("join", quick.first(1, ["lape", "default"]))
@pytest.mark.parametrize("distilled", quick.first(1, [False, True]))
@pytest.mark.parametrize("name", quick.first(1, ["upernet_vit_adapter_ti", "vit_adapter_ti"]))
def test_from_a_classifier(name, join, distilled, tmp_path):
    deit = models.create("deit_ti", **SIZES, num_classes=7, image_size=48, join=join, distilled=distilled)
    theirs = random_variables(deit)
    port.save(tmp_path / "deit.npz", theirs, deit)
    theirs = flatten(theirs)
    ours, moved = started(tmp_path / "deit.npz", tiny(name))
    heads = {f"{head}/{leaf}" for head in ("head", *["head_dist"][:distilled]) for leaf in ("kernel", "bias")}
    dropped = heads | {"cls_token", "norm/scale", "norm/bias", *["dist_token"][:distilled]}
    assert set(moved.dropped) == dropped
    assert moved.resized == ("pos_embed",)
    assert set(moved.loaded) == theirs.keys() - dropped - {"pos_embed"}
    started_at = {
        "level_embed",
        "blocks/ls1/gamma",
        "spm/fc1/bias",
        "up/kernel",
        "norm4/scale",
        "batch_stats/norm4/mean",
    }
    assert started_at < set(moved.initialised)
    assert ("blocks/pe_norm/scale" in moved.loaded) == (join == "lape")
    for path in moved.loaded:
        np.testing.assert_array_equal(ours[path], theirs[path])
    np.testing.assert_array_equal(ours["pos_embed"][0], theirs["pos_embed"][0])  # a row that is not used


@pytest.mark.slow
def test_layer_scales_come_along(tmp_path):
    deit = models.create("deit_ti", **SIZES, num_classes=7, image_size=32, layer_scale=0.1)
    port.save(tmp_path / "deit.npz", random_variables(deit), deit)
    _, moved = started(tmp_path / "deit.npz", tiny("vit_adapter_ti"))
    assert {"blocks/ls1/gamma", "blocks/ls2/gamma", "pos_embed"} < set(moved.loaded)


@pytest.mark.slow
def test_from_a_upernet_of_other_classes_and_joining(tmp_path):
    source = tiny(num_classes=9, join="default")
    port.save(tmp_path / "a.npz", random_variables(source), source)
    _, moved = started(tmp_path / "a.npz", tiny(), pe_norm="norm1")
    assert {"pos_embed", "decode_head/bottleneck/conv/kernel", "batch_stats/norm1/mean"} < set(moved.loaded)
    heads = {f"{head}/conv_seg/{leaf}" for head in ("decode_head", "auxiliary_head") for leaf in ("kernel", "bias")}
    assert set(moved.dropped) == heads
    assert set(moved.initialised) == heads | {"blocks/pe_norm/scale", "blocks/pe_norm/bias"}
    _, moved = started(tmp_path / "a.npz", tiny(num_classes=9, table_size=64))
    assert moved.resized == ("pos_embed",)


@pytest.mark.slow
def test_another_size_is_named(tmp_path):
    deit = models.create("deit_ti", **{**SIZES, "depth": 8}, num_classes=7, image_size=32)
    port.save(tmp_path / "deit.npz", random_variables(deit), deit)
    with pytest.raises(UserError, match=r"the model has no blocks\.4"):
        started(tmp_path / "deit.npz", tiny())
    source = tiny(channels=4)
    port.save(tmp_path / "a.npz", random_variables(source), source)
    with pytest.raises(UserError, match=r"decode_head\.bottleneck\.bn\.bias is \(4,\) and should be \(6,\)"):
        started(tmp_path / "a.npz", tiny())
