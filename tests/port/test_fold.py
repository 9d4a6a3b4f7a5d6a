"""Folded models: the same logits, in no more operations than the default joining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port.params import flatten
from tests import quick
from tests.port.tiny import TINY, random_variables, tiny


def logits(model, variables):
    images = np.random.default_rng(5).normal(size=(3, *model.input_shape)).astype(model.dtype)
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x)[0])(variables, images))


@pytest.mark.parametrize(
    "settings",
    quick.first(
        1,
        [
            {"pe_norm": "scalar_norm", "pe": "learnable+relative+peg"},
            {"pe": "sincos_2d+relative", "distilled": True},
            {"family": "vit_ti_16", "pool": "tok"},
            {},
            {"join": "lape_sharing", "pe": "sincos_1d"},
            {"pe_norm": "identity", "pool": "gap"},
            {"family": "vit_ti_16", "pool": "map", "pe": "sincos_2d_moco"},
            {"family": "cct_7_3x1"},
            {"family": "t2t_vit_7", "image_size": 32, "token_dim": 8},
            {"family": "ceit_ti", "image_size": 32},
        ],
    ),
    ids=str,
)
def test_same_logits(settings):
    settings = {"join": "lape", "dtype": jnp.float64, **settings}
    family = settings.pop("family", "deit_ti")
    with jax.enable_x64(True):
        if family in ("cct_7_3x1", "t2t_vit_7", "ceit_ti"):
            model = models.create(family, **{"width": 32, "depth": 2, "heads": 2, "image_size": 16, **settings})
        else:
            model = models.create(family, **{**TINY, **settings})
        variables = random_variables(model, np.float64)
        if "batch_stats" in variables:  # variances
            variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
        folded, constants = port.fold(variables, model)
        before, after = logits(model, variables), logits(folded, constants)
    assert folded.joining == "folded"
    assert not any("pe_norm" in path for path in flatten(constants))
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.abs(before).max())


def test_same_logits_in_float32():
    model = tiny(join="lape")
    variables = jax.tree.map(lambda leaf: 0.3 * leaf, random_variables(model))
    before = logits(model, variables)
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(logits(*port.fold(variables, model)), before, rtol=0, atol=1e-6 * np.abs(before).max())


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_weights_of_16_bits_have_full_constants(dtype):
    model = tiny(join="lape")
    _, constants = port.fold(random_variables(model, dtype), model)
    assert constants["params"]["pos_embed"].dtype == np.float32


def test_the_constant_is_the_bias_and_the_pe_of_each_layer():
    model = tiny(join="lape")
    variables = random_variables(model)
    _, out = quick.jit(model.apply)(variables, jnp.zeros((1, *model.input_shape)))
    _, constants = port.fold(variables, model)
    expected = out["pe"] + variables["params"]["blocks"]["norm1"]["bias"][:, None]
    np.testing.assert_allclose(constants["params"]["pos_embed"], expected, rtol=1e-6, atol=1e-6)


def test_a_folded_deit_needs_the_operations_of_the_default():
    """Counted by XLA for the whole model at full size; nothing runs."""

    def flops(model):
        images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
        lowered = jax.jit(lambda v, x: model.apply(v, x)[0]).lower({"params": model.param_shapes()}, images)
        return lowered.cost_analysis()["flops"]

    sizes = {"depth": 2}
    default = flops(models.create("deit_ti", join="default", **sizes))
    assert flops(models.create("deit_ti", join="folded", **sizes)) == pytest.approx(default, rel=1e-3)


@pytest.mark.parametrize("join", ["default", "shared", "folded"])
def test_what_cannot_be_folded(join):
    model = tiny(join=join)
    with pytest.raises(UserError, match=f"join='{join}' has no PE norms to fold"):
        port.fold(random_variables(model), model)


def test_a_convolutional_network_cannot_be_folded():
    with pytest.raises(UserError, match="a RegNet cannot be folded"):
        port.fold({}, models.create("regnety_160"))


def test_a_folded_model_is_not_for_pytorch():
    model, variables = port.fold(random_variables(tiny(join="lape")), tiny(join="lape"))
    with pytest.raises(UserError, match="join='folded' has no counterpart in PyTorch"):
        port.to_torch(variables, model)
