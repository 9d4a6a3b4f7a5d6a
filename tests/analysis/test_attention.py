"""Attention of real models, recomputed from what enters each layer; what makes its logits; rollout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.analysis import attention, attention_figures, features
from lape_jax.errors import UserError
from lape_jax.nn import attention as layers
from tests import quick

TINY = {"width": 16, "depth": 2, "heads": 2, "image_size": 12, "patch_size": 4, "num_classes": 3, "in_channels": 1}


def made(name="deit_ti", scale=1.0, **settings):
    model = models.create(name, **{**TINY, **settings})
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: scale * rng.standard_normal(leaf.shape).astype(np.float32), model.variable_shapes()
    )
    return model, variables, jnp.asarray(rng.standard_normal((2, *model.input_shape)), jnp.float32)


@pytest.mark.parametrize(
    ("name", "settings"),
    quick.first(
        0,
        [
            ("deit_ti", {"pe": "learnable+relative+rope_mixed"}),
            ("deit_ti", {"pe": "learnable+rope_axial", "join": "default", "distilled": True}),
            ("deit_ti", {"join": "unshared", "pe": "learnable+peg"}),
            ("deit_ti", {"pe": "relative+rope_dinov3", "pool": "gap"}),
            ("vit_lite_7_4", {"join": "shared"}),
            ("vit_ti_16", {"pool": "tok"}),
            ("deit_ti", {"join": "pvg", "pool": "gap"}),
            ("deit_ti", {"join": "mpvg", "pool": "gap", "registers": 2}),
        ],
    ),
)
def test_weights_are_those_of_the_model(name, settings, monkeypatch):
    """Those that its attention makes of the queries and keys that it is given."""
    model, variables, images = made(name, 0.5, **settings)
    seen, attend = [], layers.attend_plainly

    def spy(q, k, v, bias, dropout):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), layers.attention_weights(q, k, bias), ordered=True)
        return attend(q, k, v, bias, dropout)

    monkeypatch.setattr(layers, "attend_plainly", spy)
    jax.block_until_ready(model.clone(attention="xla").apply(variables, images[:1]))
    jax.effects_barrier()
    (weights,) = attention.attention(model, variables, images[:1])
    assert weights.shape == (2, 2, *2 * (model.num_prefix_tokens + 9,))
    np.testing.assert_allclose(weights, np.concatenate(seen[:2]), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    quick.first(
        1,
        [
            ({"join": "lape"}, None),
            ({"pe": "rope_axial"}, (1, 0, 0)),  # there is no position to be added
            ({"join": "default"}, None),
        ],
    ),
    ids=str,
)
def test_shares_make_one(settings, expected):
    model, variables, images = made(**settings)
    found = attention.shares(model, variables, [images])
    for layer in found:
        assert sum(layer) == pytest.approx(1, abs=1e-5)
        assert not expected or layer == pytest.approx(expected, abs=1e-6)
    assert expected or found[0].positions > 1e-3


@pytest.mark.slow
def test_shares_by_hand():
    """Tokens that are all alike have no say: what is left of LaPE's logits is made of positions alone."""
    model, variables, images = made(join="lape", pool="gap")
    variables["params"]["patch_embed"]["proj"]["kernel"] *= 0
    variables["params"]["blocks"]["attn"]["proj"] = jax.tree.map(
        np.zeros_like, variables["params"]["blocks"]["attn"]["proj"]
    )
    for layer in attention.shares(model, variables, [images]):
        assert layer.tokens == pytest.approx(0, abs=1e-5)


def test_rollout_by_hand():
    first, second = np.array([[[1.0, 0], [0.5, 0.5]]]), np.array([[[0.0, 1], [1, 0]]])
    halves = [np.array([[1, 0], [0.25, 0.75]]), np.array([[0.5, 0.5], [0.5, 0.5]])]
    np.testing.assert_allclose(attention.rollout(np.stack([first, second])), halves[1] @ halves[0])


def test_which_token_looks():
    model, gap = made()[0], made(pool="gap")[0]
    assert [attention.row_of(model, query) for query in ("auto", "class", "centre", "8")] == [0, 0, 5, 9]
    assert attention.row_of(gap, "auto") == 4
    for one, query, message in (
        (gap, "class", "the model has no class token"),
        (model, "9", "it must be class, centre, or a patch from 0 to 8"),
        (model, "middle", "it must be class, centre"),
    ):
        with pytest.raises(UserError, match=message):
            attention.row_of(one, query)


def test_windows_are_user_errors():
    with pytest.raises(UserError, match="a Swin attends in windows"):
        attention.check(models.create("swin_t"))


@pytest.mark.slow
def test_files():
    model, variables, images = made()
    contents = attention_figures.maps(
        {"one": attention_figures.Looking(model, variables, np.asarray(images))}, "centre", [2]
    )
    assert set(contents) == {f"attention_0_{i}.{form}" for i in (0, 1) for form in ("png", "pdf")} | {"attention.npz"}
    found = attention_figures.shares({"one": attention.shares(model, variables, [images])})
    assert found["shares.csv"].decode().splitlines()[0] == "model,layer,tokens,both,positions"


def test_the_class_token_is_behind_the_registers():
    model, variables, images = made(registers=2)
    tokens = quick.jit(model.apply)(variables, images)[1]["tokens"]
    found = quick.jit(lambda v, x: features.of_images(model, v, x))(variables, images)
    np.testing.assert_allclose(found["2 class token"], tokens[1][:, 2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["2 mean of patches"], tokens[1][:, 3:].mean(1), rtol=1e-5, atol=1e-5)
    assert attention.row_of(model, "class") == attention.row_of(model, "auto") == 2


def test_registers_are_no_class_token():
    model, variables, images = made(registers=2, pool="gap")
    found = jax.eval_shape(lambda v, x: features.of_images(model, v, x), variables, images)
    assert {*found} == {"1 mean of patches", "2 mean of patches", "head"}
    assert attention.row_of(model, "auto") == 2 + 4
    with pytest.raises(UserError, match="--attention=class: the model has no class token"):
        attention.row_of(model, "class")
