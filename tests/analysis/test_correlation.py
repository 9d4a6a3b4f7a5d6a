"""Equation 12, and the tables that it is applied to, for every joining and family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.analysis import correlation, effective_pe
from lape_jax.errors import UserError
from tests import quick
from tests.analysis.models import create, norm, tiny, variables_of
from tests.quick import jit


def test_cosines_by_hand():
    found = correlation.cosine(np.array([[3.0, 4.0], [0.0, 2.0], [-6.0, -8.0], [0.0, 0.0], [3e-9, 4e-9]]))
    # Of the last row, which is shorter than 1e-8, half its norm is missing.
    expected = [
        [1, 0.8, -1, 0, 0.5],
        [0.8, 1, -0.8, 0, 0.4],
        [-1, -0.8, 1, 0, -0.5],
        [0] * 5,
        [0.5, 0.4, -0.5, 0, 0.25],
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def params_of(variables):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])


def test_lape_is_the_serial_chain_of_the_script():
    """PE_{l+1} = gp_l LN0(PE_l) + bp_l without the class row, with the script's eps of 1e-5."""
    model = tiny(join="lape")
    variables = variables_of(model)
    params = params_of(variables)
    pe = params["pos_embed"]
    found = correlation.maps(model, variables)
    assert len(found) == 2
    for layer in range(2):
        pe_norm = params["blocks"]["pe_norm"]
        pe = norm(pe, pe_norm["scale"][layer], pe_norm["bias"][layer], 1e-5)
        np.testing.assert_allclose(found[layer].values, correlation.cosine(pe[1:]), rtol=0, atol=1e-5)
        assert found[layer].grid == (2, 2)
    (table,) = correlation.table_maps(model, variables)
    np.testing.assert_allclose(table.values, correlation.cosine(params["pos_embed"][1:]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("join", ["default", "shared"])
def test_the_first_norm_of_each_layer_on_the_same_table(join):
    model = tiny(join=join, distilled=True, pe="sincos_1d+relative")
    variables = variables_of(model)
    norm1 = params_of(variables)["blocks"]["norm1"]
    table = np.asarray(model.apply(variables, method=lambda module: module.position_table), np.float64)[2:]
    for layer, found in enumerate(effective_pe.seen(model, variables)):
        expected = norm(table, norm1["scale"][layer], norm1["bias"][layer], 1e-5)
        np.testing.assert_allclose(found.table, expected, rtol=0, atol=1e-6)


def test_unshared_tables_add_up():
    model = tiny(join="unshared")
    variables = variables_of(model)
    params = params_of(variables)
    first, second = params["pos_embed"][:, 1:]
    found = effective_pe.seen(model, variables, eps=0.0)
    for layer, table in enumerate((first, first + second)):
        norm1 = params["blocks"]["norm1"]
        expected = norm(table, norm1["scale"][layer], norm1["bias"][layer], 0)
        np.testing.assert_allclose(found[layer].table, expected, rtol=0, atol=1e-5)
    tables = effective_pe.tables(model, variables)
    np.testing.assert_allclose([one.table for one in tables], [first, second], rtol=1e-6)


FAMILIES = {
    "non-serial": ("deit_ti", {"join": "lape_sharing", "pe": "sincos_2d", "distilled": True}),
    "scalar": ("deit_ti", {"pe_norm": "scalar_norm", "pool": "gap"}),
    "no class row": ("vit_ti_16", {"pool": "tok", "patch_size": 8}),
    "blocks apart": ("vit_ti_16", {"pool": "tok", "patch_size": 8, "scan": False, "cls_pe": True}),
    "cct": ("cct_7_3x1", {}),
    "ceit": ("ceit_ti", {"patch_size": 8}),
    "stages": ("swin_t", {}),
    "stages, non-serial": ("swin_t", {"join": "lape_sharing"}),
}


@pytest.mark.parametrize("case", quick.first(3, FAMILIES))
def test_what_the_model_itself_delivers(case):
    """With the model's own eps."""
    family, settings = FAMILIES[case]
    model = create(family, **{"join": "lape", **settings})
    variables = variables_of(model)
    images = jnp.zeros((1, *model.input_shape))
    delivered = jit(lambda v: model.apply(v, images)[1]["pe"])(variables)
    stages = delivered if family == "swin_t" else (delivered,)
    expected = [table[model.num_prefix_tokens :] for stage in stages for table in stage]
    found = effective_pe.seen(model, variables, eps=model.ln_eps)
    assert len(found) == len(expected) == model.depth
    for one, table in zip(found, expected, strict=True):
        assert one.grid[0] * one.grid[1] == len(table)
        np.testing.assert_allclose(one.table, table, rtol=0, atol=1e-5 * np.abs(table).max())


def test_folding_adds_the_bias():
    model = tiny(join="lape")
    variables = variables_of(model)
    folded, constants = port.fold(variables, model)
    bias = variables["params"]["blocks"]["norm1"]["bias"]
    for layer, one in enumerate(effective_pe.seen(folded, constants)):
        before = effective_pe.seen(model, variables, eps=model.ln_eps)[layer].table
        np.testing.assert_allclose(one.table, before + bias[layer], rtol=0, atol=1e-5)


def test_a_default_table_goes_through_the_merging_of_a_swin():
    model = create("swin_t", join="default")
    variables = variables_of(model)
    params = params_of(variables)
    table = params["pos_embed"].reshape(6, 2, 6, 2, 8)
    squares = np.concatenate([table[:, 0, :, 0], table[:, 1, :, 0], table[:, 0, :, 1], table[:, 1, :, 1]], axis=-1)
    merging = params["downsample_0"]
    merged = norm(squares.reshape(36, 32), merging["norm"]["scale"], merging["norm"]["bias"], model.ln_eps)
    norm1 = params["layers_1"]["blocks"]["norm1"]
    expected = norm(merged @ merging["reduction"]["kernel"], norm1["scale"][0], norm1["bias"][0], 1e-5)
    *_, last = effective_pe.seen(model, variables)
    assert last.grid == (6, 6)
    np.testing.assert_allclose(last.table, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("join", quick.first(1, ["shared", "unshared"]))
def test_other_joinings_of_a_swin(join):
    model = create("swin_t", join=join, pe="learnable")
    found = effective_pe.seen(model, variables_of(model))
    assert [(one.grid, one.table.shape) for one in found] == 2 * [((12, 12), (144, 8))] + [((6, 6), (36, 16))]


def test_a_relative_bias_by_hand():
    """A 1 x 2 grid has displacements -1, 0 and 1; of two keys, less its mean, a row is (x, -x)."""
    model = tiny(pe="relative", join="default", image_size=(8, 16), depth=1, distilled=True)
    variables = variables_of(model)
    table = np.array([[1.0, 5], [3, 5], [7, 5]], np.float32)  # displacement of query less key; second head: no matter
    variables["params"]["blocks"]["attn"]["relative_position_bias_table"] = table[None]
    (bias,) = correlation.relative_biases(model, variables)
    assert bias[0].tolist() == [[3, 1], [7, 3]]
    (heads,) = correlation.relative_maps(model, variables)
    np.testing.assert_allclose(heads.values, [np.ones((2, 2)), np.zeros((2, 2))])  # (1, -1) and (2, -2); nothing
    (found,) = correlation.maps(model, variables)
    np.testing.assert_allclose(found.values, np.full((2, 2), 0.5))
    assert found.grid == (1, 2)


def test_a_relative_bias_of_windows():
    model = create("swin_t", pe="relative", join="default")
    found = correlation.maps(model, variables_of(model))
    assert [(one.grid, one.values.shape) for one in found] == 3 * [((3, 3), (9, 9))]
    np.testing.assert_allclose([np.diag(one.values) for one in found], 1)


def test_tokens():
    assert correlation.centre((14, 14)) == 90
    assert [correlation.centre(grid) for grid in ((4, 4), (5, 3), (1, 1))] == [5, 3, 0]
    found = correlation.Map((2, 3), np.arange(36.0).reshape(6, 6))
    assert correlation.token_map(found, 4).tolist() == [[24, 25, 26], [27, 28, 29]]
    for token in (6, -1):
        with pytest.raises(UserError, match=f"token={token} is not one of the 6 patches, 0 to 5"):
            correlation.token_map(found, token)


@pytest.mark.parametrize(
    ("call", "settings", "message"),
    [
        (correlation.maps, {"pe": "peg"}, "pe='peg' has no map: tables have .learnable"),
        (correlation.maps, {"pe": "none"}, "pe='none' has no map"),
        (correlation.table_maps, {"pe": "relative"}, "pe='relative' has no position table: learnable"),
        (correlation.relative_maps, {"join": "lape"}, "pe='learnable' has no relative position bias"),
    ],
)
def test_what_there_is_no_map_of(call, settings, message):
    model = tiny(**settings)
    with pytest.raises(UserError, match=message):
        call(model, {})


def test_a_convolutional_network_has_none():
    with pytest.raises(UserError, match="a RegNet has no position embedding"):
        correlation.maps(models.create("regnety_160"), {})


def test_other_models_variables():
    with pytest.raises(UserError, match="does not fit the model"):
        correlation.maps(tiny(join="lape"), variables_of(tiny(join="default")))
