"""Compact Transformers: their published sizes, and parity with tests/reference/torch_compact.py in float64."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.models.compact import ConvTokenizer
from lape_jax.port import compact
from tests import quick
from tests.models import families
from tests.reference.compact_cases import CASES

FIRST = (
    "cvt-default-sincos_1d",
    "cct_3x2-lape_sharing-sincos_1d-scalar_norm",
)
each_case = quick.cases(CASES, FIRST)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "tokens", "cifar10", "cifar100"),
    [
        ("vit_lite_6_4", 64, 3_190_538, 3_213_668),
        ("vit_lite_7_4", 64, 3_716_874, 3_740_004),
        ("cvt_6_4", 64, 3_190_283, None),
        ("cvt_7_4", 64, 3_716_619, 3_739_749),
        ("cct_6_3x1", 256, 3_233_803, None),
        ("cct_7_3x1", 256, 3_760_139, 3_783_269),
        ("cct_6_3x2", 64, 3_326_923, None),
        ("cct_7_3x2", 64, 3_853_259, 3_876_389),
    ],
)
def test_published_parameter_counts(name, tokens, cifar10, cifar100):
    model = models.create(name, num_classes=10)
    assert model.input_shape == (32, 32, 3)
    assert math.prod(model.grid) == tokens
    shapes = model.param_shapes()
    extra = count(shapes["blocks"]["pe_norm"])
    assert extra == model.depth * 2 * 256
    assert count(shapes) - extra == cifar10
    if cifar100 is not None:
        assert count(models.create(name, num_classes=100, join="default").param_shapes()) == cifar100
        assert extra == (3_584 if model.depth == 7 else 3_072)


def test_cct_for_imagenet():
    model = models.create("cct_14_7x2", join="default")
    assert (model.input_shape, model.grid) == ((224, 224, 3), (14, 14))
    assert count(model.param_shapes()) == 22_367_273


@pytest.mark.slow
def test_initial_values_and_rates():
    model = models.create("vit_lite_7_4", num_classes=10)
    assert (model.attn_dropout, model.drop_path, model.dropout, model.ln_eps) == (0.1, 0.1, 0.0, 1e-5)
    cct = models.create("cct_7_3x1")
    assert (cct.attn_dropout, cct.drop_path, cct.dropout, cct.ln_eps) == (0.1, 0.1, 0.0, 1e-5)
    params = quick.jit(models.create("vit_lite_7_4", depth=1).init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[
        "params"
    ]
    assert not params["cls_token"].any()
    np.testing.assert_allclose(params["pos_embed"].std(), 0.2, rtol=0.03)
    np.testing.assert_allclose(params["patch_embed"]["proj"]["kernel"].std(), math.sqrt(2 / 48), rtol=0.03)
    bound = 1 / math.sqrt(48)
    assert 0.9 * bound < jnp.abs(params["patch_embed"]["proj"]["bias"]).max() <= bound
    assert "bias" not in params["blocks"]["attn"]["qkv"]


@pytest.mark.slow
def test_initial_values_of_cct():
    model = models.create("cct_7_3x2", depth=1)
    params = quick.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    shapes = {name: layer["kernel"].shape for name, layer in params["patch_embed"].items()}
    assert shapes == {"conv0": (3, 3, 3, 64), "conv1": (3, 3, 64, 256)}
    assert not any("bias" in layer for layer in params["patch_embed"].values())
    for name, fan_in in (("conv0", 27), ("conv1", 576)):
        np.testing.assert_allclose(params["patch_embed"][name]["kernel"].std(), math.sqrt(2 / fan_in), rtol=0.05)
    np.testing.assert_allclose(params["attention_pool"]["kernel"].std(), 0.02, rtol=0.15)
    np.testing.assert_allclose(params["pos_embed"].std(), 0.2, rtol=0.03)
    assert "cls_token" not in params


# ---- Parity ----------------------------------------------------------------------------------------------------------


@functools.cache
def answer(case):
    with jax.enable_x64(True):
        model = families.compact(case)
        assert model.grid == case.grid
        return families.answer(model, case, families.weights(model, compact), run=lambda f, x: quick.jit(f)(x))


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("compact")) == {case.name for case in CASES}


@each_case
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("compact")[case.name])


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import torch_compact

    theirs = torch_compact.answer(case, families.weights(families.compact(case, "float32"), compact))
    families.assert_same(answer(case), theirs)


def test_the_sinusoid_starts_at_position_0_with_the_class_token_or_the_first_patch():
    for name, rows in (("vit_lite_7_4", 65), ("cvt_7_4", 64), ("cct_7_3x1", 256)):
        model = models.create(name, pe="sincos_1d", depth=1)
        _, out = jax.eval_shape(model.apply, model.variable_shapes(), jnp.zeros((1, 32, 32, 3)))
        assert out["pos_embed"].shape == (rows, 256)
        assert "pos_embed" not in model.param_shapes()


# ---- The tokenizer by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "layers", "image", "grid"),
    [
        (3, 1, 32, (16, 16)),
        (3, 1, (31, 1), (16, 1)),
        (3, 2, 28, (7, 7)),
        (7, 2, 224, (14, 14)),
        (7, 2, (384, 225), (24, 15)),
        (4, 1, 8, (5, 5)),  # an even kernel makes the image larger by one
        (1, 1, 8, (5, 5)),  # and so does padding for a kernel of one pixel
    ],
)
def test_grids(kernel, layers, image, grid):
    model = models.create("cct_7_3x1", kernel_size=kernel, conv_layers=layers, image_size=image)
    assert model.grid == grid
    tokenizer = ConvTokenizer((4,) * layers, kernel, jnp.float32, nn.initializers.ones)
    shape = jax.eval_shape(tokenizer.init_with_output, jax.random.key(0), jnp.zeros((1, *model.input_shape)))[0].shape
    assert shape == (1, math.prod(grid), 4)


def test_paddings_are_symmetric():
    """A 7 x 7 kernel of ones on a single pixel, stride 2, padding 3, and then 3 x 3 windows, stride 2, padding 1."""
    tokenizer = ConvTokenizer((1,), 7, jnp.float32, nn.initializers.ones)
    image = np.zeros((1, 16, 16, 1), np.float32)
    image[0, 8, 11] = 1.0
    tokens, _ = tokenizer.init_with_output(jax.random.key(0), jnp.asarray(image))
    # Outputs 3 to 5 of 8 see row 8 (2 i - 3 <= 8 <= 2 i + 3), 4 to 7 column 11; maxima over 2 j - 1 .. 2 j + 1 of them.
    rows, columns = np.array([0, 1, 1, 1.0]), np.array([0, 0, 1, 1.0])
    rows[1], rows[3] = 1, 1
    np.testing.assert_array_equal(tokens.reshape(4, 4), np.outer(rows, columns))


def test_pooling_pads_with_nothing():
    """Negative values at the border are cut off by the ReLU, and not by a padding of zeros alone: -inf never wins."""
    tokenizer = ConvTokenizer((1,), 3, jnp.float32, nn.initializers.ones)
    tokens, _ = tokenizer.init_with_output(jax.random.key(0), -jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(tokens, np.zeros((1, 4, 1)))


def test_sequence_pooling_by_hand():
    """Two tokens whose scores differ by log 3 count a quarter and three quarters."""
    model = models.create("cvt_7_4", image_size=(4, 8), width=4, depth=1, heads=1, num_classes=2, pe="none")
    rows = jnp.float32([[[1, 0, 2, 0], [5, math.log(3), -2, 0]]])
    pooled = model.apply(
        {"params": pooling_params(model)}, rows, method=lambda module, x: module._pool(x)
    )  # the score is channel 1
    np.testing.assert_allclose(pooled, [[0.25 * 1 + 0.75 * 5, 0.75 * math.log(3), 0.25 * 2 - 0.75 * 2, 0]], rtol=1e-6)


def pooling_params(model):
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.param_shapes())
    params["attention_pool"]["kernel"][1] = 1.0
    params["attention_pool"]["bias"][:] = 7.0  # changes nothing
    return params


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("cct_7_3x1", {"patch_size": 4}, "patch_size=4: a CCT has no patches, its tokens are made by conv_layers of"),
        ("cct_7_3x1", {"kernel_size": 0}, "kernel_size=0 is not positive"),
        ("cct_7_3x1", {"conv_layers": 0}, "conv_layers=0 is not positive"),
        ("cct_7_3x1", {"conv_width": -1}, "conv_width=-1 is not positive"),
        ("cct_7_3x1", {"image_size": 0}, "image_size=0 is not positive"),
        ("cct_7_3x1", {"distilled": True}, "it needs pool='token'"),
        ("cvt_7_4", {"image_size": 30}, "image_size=30 is not divisible by patch_size=4"),
        ("cvt_7_4", {"kernel_size": 3}, "setting 'kernel_size' is not one of"),
        ("cvt_7_4", {"distilled": True}, "it needs pool='token'"),
        ("cvt_7_4", {"attention": "cudnn"}, "attention='cudnn' has no attention dropout"),
        ("cct_7_3x1", {"pe": "relative", "join": "lape"}, "delivers an absolute position table, and pe='relative'"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(name, overrides, message):
    with pytest.raises(UserError, match=message):
        models.create(name, **overrides)
