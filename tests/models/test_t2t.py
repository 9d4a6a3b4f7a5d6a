"""T2T-ViT: its published sizes, and parity with tests/reference/torch_t2t.py in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.port import t2t
from tests import quick
from tests.models import families
from tests.reference.t2t_cases import CASES

TINY = {"image_size": 32, "width": 16, "depth": 2, "heads": 2, "num_classes": 3, "token_dim": 8}
FIRST = ("performer-lape-sincos_1d-layernorm",)
each_case = quick.cases(CASES, FIRST)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "published", "trainable"),
    [
        ("t2t_vit_7", 4_310_222, 4_255_694),
        ("t2t_vit_10", 5_889_230, None),
        ("t2t_vit_12", 6_941_902, None),
        ("t2t_vit_14", 21_545_550, None),
        ("t2t_vit_t_14", 21_541_070, None),
    ],
)
def test_published_parameter_counts(name, published, trainable):
    """The published totals have in them what is never learned: the sinusoid, and the features of two Performers."""
    model = models.create(name)
    shapes = model.variable_shapes()
    extra = count(shapes["params"]["blocks"]["pe_norm"])
    assert extra == model.depth * 2 * model.width
    table = (1 + 14 * 14) * model.width
    features = count(shapes.get("constants", {}))
    assert features == (0 if name == "t2t_vit_t_14" else 2 * 32 * 64)
    assert count(shapes["params"]) - extra + table + features == published
    if trainable is not None:
        assert count(shapes["params"]) - extra == trainable
        assert count(models.create(name, join="default").param_shapes()) == trainable


def test_lape_acts_in_the_blocks_alone():
    with_lape, without = (models.create("t2t_vit_7", join=join).param_shapes() for join in ("lape", "default"))
    assert count(with_lape) - count(without) == 7 * 2 * 256
    assert with_lape["patch_embed"] == without["patch_embed"]


# ---- Parity ----------------------------------------------------------------------------------------------------------


@functools.cache
def answer(case):
    with jax.enable_x64(True):
        model = families.t2t(case)
        assert model.grid == case.grid
        # Compiled whole: unfolding has too many operations of its own for them to be compiled one by one.
        return families.answer(model, case, families.weights(model, t2t), run=lambda f, x: quick.jit(f)(x))


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("t2t")) == {case.name for case in CASES}


@each_case
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("t2t")[case.name])


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import torch_t2t

    theirs = torch_t2t.answer(case, families.weights(families.t2t(case, "float32"), t2t))
    families.assert_same(answer(case), theirs)


# ---- Training --------------------------------------------------------------------------------------------------------


@functools.cache
def tiny(**settings):
    """A model, its variables and images."""
    model = models.create("t2t_vit_7", **{**TINY, **settings})
    images = jax.random.normal(jax.random.key(1), (2, *model.input_shape))
    return model, quick.jit(model.init)(jax.random.key(0), images), images


@pytest.mark.slow
def test_random_features_are_orthogonal_and_differ():
    _, variables, _ = tiny()
    features = variables["constants"]["patch_embed"]
    first, second = (features[f"attention{number}"]["w"] for number in (1, 2))
    assert set(features) == {"attention1", "attention2"}
    for w in (first, second):
        assert w.shape == (4, 8)
        np.testing.assert_allclose(w @ w.T, 4 * np.eye(4), atol=1e-5)  # rows of length sqrt(m)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.slow
def test_the_tokens_drop_out_in_training_alone():
    model, variables, images = tiny()
    assert models.create("t2t_vit_7").token_dropout == 0.1
    assert models.create("t2t_vit_t_14").token_dropout == 0.0

    @quick.jit
    def stems(variables, images):
        rngs = {"dropout": jax.random.key(3)}
        apply = lambda m, train: m.apply(variables, images, train, method=lambda m, *a: m.patch_embed(*a), rngs=rngs)  # noqa: E731
        return apply(model, False), apply(model, True), apply(model.clone(token_dropout=0.0), True)

    plain, dropped, silent = stems(variables, images)
    np.testing.assert_array_equal(silent, plain)
    assert np.abs(dropped - plain).max() > 1e-2 * np.abs(plain).max()


@pytest.mark.parametrize("size", [16, (16, 48), 64])
def test_image_sizes(size):
    model = models.create("t2t_vit_7", **{**TINY, "image_size": size})
    logits, out = jax.eval_shape(model.apply, model.variable_shapes(), jnp.zeros((1, *model.input_shape)))
    rows = 1 + model.input_shape[0] * model.input_shape[1] // 16**2
    assert logits.shape == (1, 3)
    assert out["tokens"].shape == (2, 1, rows, 16)
    assert out["pos_embed"].shape == (rows, 16)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    model, variables, images = tiny()
    logits, _ = quick.jit(model.apply)(variables, images)
    rounded, out = quick.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
    assert (out["stem"].dtype, rounded.dtype) == (jnp.bfloat16, jnp.float32)
    assert 0 < np.abs(rounded - logits).max() < 0.05 * np.abs(logits).max()


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_size": 8}, "patch_size=8: the strides of a T2T-ViT make it 16: leave it out"),
        ({"patch_size": (16, 8)}, r"patch_size=\(16, 8\): the strides"),
        ({"image_size": 40}, "image_size=40 is not divisible by patch_size=16"),
        ({"token_attention": "performers"}, r"token_attention='performers' .* \(did you mean 'performer'\?\)"),
        ({"token_dim": 1}, "token_dim=1 is not at least 2"),
        ({"token_dropout": 1.0}, r"token_dropout=1.0 is not a rate in \[0, 1\)"),
        ({"pe": "relative", "join": "lape"}, "delivers an absolute position table, and pe='relative'"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("t2t_vit_7", **overrides)
