"""Swin: its published sizes, parity with tests/reference/torch_swin.py and timm in float64, and how it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.port import swin
from tests import peers, quick
from tests.models import families
from tests.models.compare import assert_close
from tests.quick import jit
from tests.reference.swin_cases import CASES

TINY = {"image_size": 24, "patch_size": 2, "width": 8, "depths": (2, 1), "heads": (2, 4), "window_size": 3}
FIRST = ("lape-learnable+relative-layernorm",)
each_case = quick.cases(CASES, FIRST)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "pe", "published", "lape"),
    quick.first(
        2,
        [
            ("swin_t", "learnable+relative", 28_589_410, 8_832),
            ("swin_s", "relative", 49_606_258, 0),
            ("swin_t", "relative", 28_288_354, 0),
            ("swin_t", "learnable", 28_566_088, 8_832),
            ("swin_s", "learnable+relative", 49_907_314, 18_048),
            ("swin_s", "learnable", 49_859_656, 18_048),
        ],
    ),
)
def test_published_parameter_counts(name, pe, published, lape):
    assert count(models.create(name, pe=pe, join="default").param_shapes()) == published
    if lape:  # a scale and a bias in each block, of its stage's width
        assert count(models.create(name, pe=pe).param_shapes()) == published + lape


@pytest.mark.slow
def test_other_joinings_have_the_parameters_that_they_should():
    sizes = {join: count(models.create("swin_t", join=join).param_shapes()) for join in ("shared", "lape_sharing")}
    assert sizes == {"shared": 28_589_410, "lape_sharing": 28_598_242}
    tables = 2 * 56 * 56 * 96 + 2 * 28 * 28 * 192 + 6 * 14 * 14 * 384 + 2 * 7 * 7 * 768
    assert count(models.create("swin_t", join="unshared").param_shapes()) == 28_288_354 + tables


@pytest.mark.slow
def test_initial_values():
    model = models.create("swin_t", depths=(1, 1), heads=(3, 6), image_size=56)
    params = jit(model.init)(jax.random.key(0), jnp.zeros((1, 56, 56, 3)))["params"]
    attention, merging = params["layers_0"]["blocks"]["attn"], params["downsample_0"]
    for leaf in (attention["relative_position_bias_table"], attention["qkv"]["kernel"], merging["reduction"]["kernel"]):
        np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.1)
    np.testing.assert_allclose(params["pos_embed"].std(), 0.02, rtol=0.03)
    assert "bias" not in merging["reduction"]
    for leaf in ("kernel", "bias"):  # PyTorch's default: uniform in +-1/sqrt(48)
        assert 0.9 < np.abs(params["patch_embed"]["proj"][leaf]).max() * 48**0.5 <= 1


# ---- Parity ----------------------------------------------------------------------------------------------------------


def outputs(out):
    stages = {f"tokens{stage}": tokens for stage, tokens in enumerate(out["tokens"])}
    return stages | {f"pe{stage}": pe for stage, pe in enumerate(out["pe"] or ())}


def compiled(function, *arguments):
    return jit(function)(*arguments)


@functools.cache
def answer(case):
    with jax.enable_x64(True):
        model = families.swin(case)
        assert model.grid == case.grid
        return families.answer(model, case, families.weights(model, swin), outputs, compiled)


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("swin")) == {case.name for case in CASES}


@each_case
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("swin")[case.name])


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import torch_swin

    theirs = torch_swin.answer(case, families.weights(families.swin(case, "float32"), swin))
    families.assert_same(answer(case), theirs)


@pytest.mark.peer
def test_matches_timm():
    """In timm's own names, at 56 x 56 pixels: grids of 14, with shifts, and 7."""
    torch, timm = pytest.importorskip("torch"), peers.timm()
    sizes = {"depths": (2, 2), "num_classes": 5}
    theirs = timm.models.SwinTransformer(img_size=56, embed_dim=8, num_heads=(1, 2), **sizes).double().eval()
    rng = np.random.default_rng(0)
    state = {name: rng.uniform(-0.5, 0.5, tensor.shape) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    images = rng.standard_normal((2, 56, 56, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    with jax.enable_x64(True):
        model = models.create("swin_t", image_size=56, width=8, heads=(1, 2), pe="relative", dtype="float64", **sizes)
        logits, _ = jit(model.apply)(port.from_torch(state, model), jnp.asarray(images))
    assert_close("logits", logits, expected, 1e-9)


# ---- How it runs -----------------------------------------------------------------------------------------------------


@functools.cache
def tiny(**settings):
    """A model, random variables and images."""
    model = models.create("swin_t", num_classes=3, **{**TINY, **settings})
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype("f"), model.variable_shapes())
    return model, variables, jnp.asarray(rng.standard_normal((2, *model.input_shape)), "float32")


@functools.cache
def plain_logits():
    model, variables, images = tiny()
    return jax.device_get(jit(model.apply)(variables, images)[0])


def gradient(model, variables, images, **knobs):
    def loss(variables):
        logits, _ = model.clone(**knobs).apply(variables, images)
        return jnp.sum(jnp.sin(logits))

    return jax.device_get(jit(jax.grad(loss))(variables))


@functools.cache
def plain_gradient():
    return gradient(*tiny())


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{"unroll": 2}, {"remat": "attention"}], ids=str)
def test_knobs_change_nothing(knobs):
    expected, found = plain_gradient(), gradient(*tiny(), **knobs)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), found, expected)


@pytest.mark.slow
def test_out():
    model, variables, images = tiny()
    logits, out = jax.eval_shape(model.apply, variables, images)
    shapes = jax.tree.map(lambda leaf: leaf.shape, out)
    assert logits.shape == (2, 3)
    assert shapes == {
        "pos_embed": (144, 8),
        "stem": (2, 144, 8),
        "tokens": ((2, 2, 144, 8), (1, 2, 36, 16)),
        "pe": ((2, 144, 8), (1, 36, 16)),
        "encoded": (2, 36, 16),
        "pre_logits": (2, 16),
    }
    default = model.clone(join="default", pe="relative")
    _, out = jax.eval_shape(default.apply, default.variable_shapes(), images)
    assert (out["pe"], out["pos_embed"]) == (None, None)
    unshared = model.clone(join="unshared")
    _, out = jax.eval_shape(unshared.apply, unshared.variable_shapes(), images)
    assert [table.shape for table in out["pos_embed"]] == [(2, 144, 8), (1, 36, 16)]


@pytest.mark.slow
def test_stochastic_depth_rises_over_all_stages():
    encoders = models.create("swin_t", drop_path=0.2)._encoders()
    rates = [rate for encoder in encoders for rate in encoder.rates]
    np.testing.assert_allclose(rates, np.linspace(0, 0.2, 12))
    model, variables, images = tiny()
    apply = jit(functools.partial(model.clone(drop_path=0.9).apply, train=True))
    logits = [apply(variables, images, rngs={"dropout": jax.random.key(key)})[0] for key in (0, 1)]
    assert min(np.abs(logits[0] - other).max() for other in (logits[1], plain_logits())) > 1e-3


@pytest.mark.slow
def test_bfloat16():
    model, variables, images = tiny()
    logits = plain_logits()
    rounded, out = jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
    assert {leaf.dtype for leaf in (out["stem"], *out["tokens"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in (rounded, out["pos_embed"], *out["pe"])} == {jnp.dtype("float32")}
    assert 0 < np.abs(rounded - logits).max() < 0.05 * np.abs(logits).max()


def test_windows_are_no_larger_than_the_grid():
    assert [window[1:] for window in models.create("swin_t").windows] == [(7, 3), (7, 3), (7, 3), (7, 0)]
    small = models.create("swin_t", image_size=32, window_size=4)
    assert small.windows == [((8, 8), 4, 2), ((4, 4), 4, 0), ((2, 2), 2, 0), ((1, 1), 1, 0)]
    assert models.create("swin_t", image_size=(224, 448)).windows[3] == ((7, 14), 7, 0)


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 256}, r"image_size=256: a grid of 64 x 64 tokens cannot be cut into windows of 7 x 7 \(window"),
        ({"image_size": 256}, "multiples of 224 x 224 pixels always can"),
        (
            {"image_size": (224, 240)},
            r"image_size=\(224, 240\): 56 x 60 patches cannot be halved 3 times; multiples of",
        ),
        ({"image_size": 222}, "image_size=222 is not divisible by patch_size=4"),
        ({"window_size": 0}, "window_size=0 is not positive"),
        ({"depths": (2, 2)}, r"depths=\(2, 2\) and heads=\(3, 6, 12, 24\) are not of as many stages"),
        ({"depths": (2, 2, 0, 2)}, r"depths=\(2, 2, 0, 2\) is not positive"),
        ({"depths": 12}, "depths=12 is not a list of whole numbers"),
        ({"depths": ()}, r"depths=\(\) is not a list of whole numbers"),
        ({"heads": (3, 6, 12, 23)}, "width=768 of stage 3 is not divisible by its heads=23"),
        (
            {"unroll": 7},
            r"unroll=7 is neither 'auto' nor between 1 and the depth of the deepest stage in \(2, 2, 6, 2\)",
        ),
        ({"remat": "ful"}, r"remat='ful' is not one of .* \(did you mean 'full'\?\)"),
        ({"attention": "cuddn"}, "attention='cuddn' is not one of auto, xla"),
        ({"pe": "peg"}, "pe='peg' is not one of learnable, .*relative"),
        ({"pe": "relative", "join": "lape"}, "delivers an absolute position table, and pe='relative' has none"),
        ({"drop_path": 1}, r"drop_path=1.0 is not a rate in \[0, 1\)"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("swin_t", **overrides)


def test_images_of_another_shape_are_user_errors():
    model, variables, _ = tiny()
    with pytest.raises(UserError, match=r"the model takes images of shape \(24, 24, 3\), not \(12, 24, 3\)"):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, 12, 24, 3)))


def test_lists_and_literals_become_tuples():
    model = models.create("swin_t", depths=[2, 2, 18, 2], window_size=7)
    assert (model.depths, model.depth, model.joining) == ((2, 2, 18, 2), 24, "lape")
