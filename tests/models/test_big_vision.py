"""big_vision's ViT: sizes by hand, and parity with tests/reference/torch_big_vision.py in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from tests import quick
from tests.models import families, stepwise
from tests.quick import jit
from tests.reference import big_vision_cases
from tests.reference.big_vision_cases import CASES, BigVisionCase

FIRST = ("gap-learn-lape",)
each_case = quick.cases(CASES, FIRST)


def create(case: BigVisionCase, scan=True, dtype="float64"):
    """The model of ours that a case describes."""
    return models.create(
        "vit_ti_16",
        num_classes=case.classes,
        image_size=case.image,
        patch_size=case.patch,
        width=case.width,
        depth=case.depth,
        heads=case.heads,
        mlp_ratio=case.hidden / case.width,
        pe={"learn": "learnable", "sincos2d": "sincos_2d_moco"}[case.posemb],
        join=case.join,
        pe_norm=case.pe_norm,
        pool=case.pool,
        cls_pe=case.cls_pe,
        rep_size=case.rep_size,
        scan=scan,
        dtype=dtype,
    )


def answer(case: BigVisionCase, scan: bool = True) -> dict[str, np.ndarray]:
    """The same tensors under the same names as `torch_big_vision.answer`.

    Run operation by operation, which all cases share, but for the first, which are few: they are compiled whole.
    """
    with jax.enable_x64(True):
        model = create(case, scan)
        variables = port.from_big_vision(big_vision_cases.weights(case), model)
        images = jnp.asarray(big_vision_cases.images(case))

        def loss(params):
            logits, out = model.apply({"params": params}, images)
            names = ["tokens", "pe", "pre_logits_2d", *(["pre_logits", "logits_2d"] if case.classes else [])]
            found = {"logits": logits, **{name: out[name] for name in names if out[name] is not None}}
            return jnp.sum(logits * big_vision_cases.cotangent(logits.shape)), found

        step = jax.grad(loss, has_aux=True)
        compiled = case.name in FIRST and scan
        gradients, found = (jit(step) if compiled else functools.partial(stepwise.run, step))(variables["params"])
        by_name = port.to_big_vision({"params": gradients}, model, scan=False)
        found = {name: np.asarray(value) for name, value in found.items()}
        return found | {f"grad {name}": value for name, value in by_name.items()}


@each_case
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("big_vision")[case.name])


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[4], CASES[12]], ids=lambda case: case.name)
def test_blocks_with_parameters_of_their_own(case):
    families.assert_golden(answer(case, scan=False), families.goldens("big_vision")[case.name])


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("big_vision")) == {case.name for case in CASES}


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import torch_big_vision

    weights, images = big_vision_cases.weights(case), big_vision_cases.images(case)
    families.assert_same(answer(case), torch_big_vision.answer(case, weights, images))


# ---- Sizes -----------------------------------------------------------------------------------------------------------


def count(name, **overrides):
    return sum(leaf.size for leaf in jax.tree.leaves(models.create(name, **overrides).param_shapes()))


def by_hand(width, depth, hidden, classes=1000):
    """Mean over 196 patches of 16 x 16 x 3, default joining."""
    attention = 4 * (width * width + width)
    mlp = width * hidden + hidden + hidden * width + width
    block = 2 * 2 * width + attention + mlp
    return (768 * width + width) + 196 * width + depth * block + 2 * width + (width * classes + classes)


@pytest.mark.parametrize(
    ("name", "sizes", "total"),
    [
        ("vit_ti_16", (192, 12, 768), 5_717_032),
        ("vit_s_16", (384, 12, 1536), 22_049_896),
        ("vit_b_16", (768, 12, 3072), 86_566_120),
        ("vit_l_16", (1024, 24, 4096), 304_324_584),
    ],
)
def test_parameter_counts(name, sizes, total):
    assert by_hand(*sizes) == total
    assert count(name, join="default") == total
    assert count(name) == total + sizes[1] * 2 * sizes[0]


@pytest.mark.parametrize(
    ("overrides", "extra"),
    [
        ({"scan": False}, 0),
        ({"pool": "tok"}, 192),
        ({"pool": "tok", "cls_pe": True}, 2 * 192),
        # probe, attention, LayerNorm, MLP
        ({"pool": "map"}, 192 + 4 * (192 * 192 + 192) + 2 * 192 + 2 * 192 * 768 + 768 + 192),
        ({"pe": "sincos_2d_moco"}, -196 * 192),
        ({"rep_size": True}, 192 * 192 + 192),
        ({"rep_size": 100}, 192 * 100 + 100 - 92 * 1000),
        ({"num_classes": None}, -193_000),
        ({"pool": "0"}, 0),
    ],
)
def test_parameter_counts_of_options(overrides, extra):
    assert count("vit_ti_16", **overrides) == 5_717_032 + 4_608 + extra


def test_hidden_channels_that_are_no_multiple_of_the_width():
    shapes = models.create("vit_ti_16", width=1152, heads=16, depth=1, mlp_ratio=4304 / 1152).param_shapes()
    assert shapes["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"].shape == (1, 1152, 4304)


# ---- Initial values and the rest -------------------------------------------------------------------------------------

TINY = {"num_classes": 3, "image_size": 8, "patch_size": 4, "width": 64, "depth": 2, "heads": 2}


@pytest.mark.slow
def test_initial_values():
    model = models.create("vit_ti_16", **TINY, pool="tok")
    params = jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))["params"]
    blocks = params["Transformer"]["encoderblock"]
    assert not params["cls"].any()
    assert not params["head"]["kernel"].any()
    np.testing.assert_allclose(params["pos_embedding"].std(), 1 / 8, rtol=0.15)
    np.testing.assert_allclose(params["embedding"]["kernel"].std(), 1 / math.sqrt(48), rtol=0.1)
    attention, mlp = blocks["MultiHeadDotProductAttention_0"], blocks["MlpBlock_0"]
    for name in ("query", "key", "value", "out"):  # uniform in +-sqrt(6 / (inputs + outputs))
        bound = math.sqrt(6 / (64 + 64))
        assert 0.95 * bound < jnp.abs(attention[name]["kernel"]).max() <= bound
        assert not attention[name]["bias"].any()
    assert 0.95 * math.sqrt(6 / 320) < jnp.abs(mlp["Dense_0"]["kernel"]).max() <= math.sqrt(6 / 320)
    assert 0.5e-6 < mlp["Dense_0"]["bias"].std() < 2e-6
    np.testing.assert_array_equal(blocks["pe_norm"]["scale"], 1)
    np.testing.assert_array_equal(blocks["pe_norm"]["bias"], 0)


def test_the_class_token_has_no_pe():
    """Nor has it a bias of LaPE's norms, or a gradient through them; with `cls_pe` it has all that."""
    rng = np.random.default_rng(0)

    def forward(cls_pe):
        model = models.create("vit_ti_16", **TINY, pool="tok", cls_pe=cls_pe)
        params = jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32), model.param_shapes())
        images = jnp.asarray(rng.uniform(-1, 1, (1, 8, 8, 3)), jnp.float32)
        return jit(lambda params: model.apply({"params": params}, images)[1]["pe"])(params)

    without = forward(cls_pe=False)
    assert not without[:, 0].any()
    assert without[:, 1:].all()
    assert forward(cls_pe=True).all()


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    case = BigVisionCase()
    model = create(case, scan=False, dtype="float32").clone(dropout=0.5, drop_path=0.2)
    params = port.from_big_vision(big_vision_cases.weights(case), model)
    images = jnp.ones((2, 8, 12, 3))

    def forward(params):
        return [
            model.apply(params, images, train, rngs={"dropout": jax.random.key(draw)})[0]
            for train, draw in ((False, 0), (False, 1), (True, 0), (True, 1))
        ]

    still, again, one, other = jit(forward)(jax.tree.map(np.float32, params))
    np.testing.assert_array_equal(still, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "token"}, r"pool='token' is not one of gap, map, tok, 0, none \(did you mean 'tok'\?\)"),
        ({"distilled": True}, "distilled=True: a ViT of big_vision has no distillation token"),
        ({"cls_pe": True}, "cls_pe=True is for a class token and a learned table: it needs pool='tok'"),
        ({"cls_pe": True, "pool": "tok", "pe": "sincos_2d_moco"}, "and pe='learnable', not pool='tok' and pe='sincos"),
        ({"rep_size": -1}, "rep_size=-1 is not positive"),
        ({"num_classes": 0}, "num_classes=0 is not positive"),
        ({"pe": "sincos_2d_moco", "width": 4, "heads": 1}, "needs a width of at least 8 that is divisible by 4, not 4"),
        ({"gelu": "relu"}, "gelu='relu' is not one of erf, tanh"),
        ({"patch_size": 15}, "image_size=224 is not divisible by patch_size=15"),
    ],
)
def test_wrong_settings_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message):
        models.create("vit_ti_16", **settings)
