"""CeiT: its published sizes, and parity with tests/reference/torch_ceit.py in float64, also in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.models.ceit import ImageToTokens, LeFF
from lape_jax.port import ceit
from tests import quick
from tests.models import families, stepwise
from tests.reference import cases
from tests.reference.ceit_cases import CASES

TINY = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "num_classes": 3, "stem_width": 8}
each_case = quick.cases(CASES, ())


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "default", "lape"), [("ceit_ti", 6_356_904, 4_608), ("ceit_s", 24_204_840, 9_216)])
def test_published_parameter_counts(name, default, lape):
    assert count(models.create(name, join="default").param_shapes()) == default
    model = models.create(name)
    assert (model.joining, model.grid) == ("lape", (14, 14))
    shapes = model.variable_shapes()
    assert count(shapes["params"]) == default + lape
    assert count(shapes["params"]["blocks"]["pe_norm"]) == lape  # and none in lca
    hidden = 4 * model.width
    assert count(shapes["batch_stats"]) == 2 * (64 + 12 * (hidden + hidden + model.width))


@pytest.mark.slow
def test_rates_and_initial_values():
    model = models.create("ceit_ti", depth=1, image_size=32)
    assert (model.ln_eps, model.dropout, model.attn_dropout) == (1e-6, 0, 0)
    params = quick.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    mlp = params["blocks"]["mlp"]
    for layer, fan_in in (("fc1", 192), ("conv", 9), ("fc2", 768)):  # as PyTorch starts its convolutions
        for leaf in mlp[layer].values():
            assert 0.9 / fan_in**0.5 < jnp.abs(leaf).max() <= 1 / fan_in**0.5
    assert 0.9 / 147**0.5 < jnp.abs(params["patch_embed"]["conv"]["kernel"]).max() <= 1 / 147**0.5
    np.testing.assert_allclose(params["lca"]["mlp"]["fc1"]["kernel"].std(), 0.02, rtol=0.05)
    assert not params["pos_layer_embed"].any()
    np.testing.assert_allclose(params["pos_embed"].std(), 0.02, rtol=0.1)


# ---- Parity ----------------------------------------------------------------------------------------------------------


@functools.cache
def answer(case):
    """What `torch_ceit.answer` gives, by our model."""
    with jax.enable_x64(True):
        model = families.ceit(case)
        assert model.grid == case.grid
        variables = port.from_torch(families.weights(model, ceit), model)
        images, cotangent = jnp.asarray(cases.images(case)), cases.cotangent(case)

        def loss(params, stats):
            variables = {"params": params, "batch_stats": stats}
            (logits, _), moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return jnp.sum(logits * cotangent), (logits, moved["batch_stats"], model.apply(variables, images)[0])

        found = stepwise.run(jax.grad(loss, has_aux=True), variables["params"], variables["batch_stats"])
        gradients, (train_logits, moved, logits) = jax.tree.map(np.asarray, found)
        assert logits.dtype == np.float64
        named = port.to_torch({"params": gradients, "batch_stats": moved}, model)
    frozen = ceit.constants(model)
    stats = {f"moved {name}": array for name, array in named.items() if "running_" in name}
    named = {f"grad {name}": x for name, x in named.items() if "running_" not in name and name not in frozen}
    return {"logits": logits, "train logits": train_logits, **named, **stats}


def test_goldens_are_those_of_the_cases():
    assert set(families.goldens("ceit")) == {case.name for case in CASES}


@each_case
def test_matches_goldens(case):
    families.assert_golden(answer(case), families.goldens("ceit")[case.name])


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.reference import torch_ceit

    theirs = torch_ceit.answer(case, families.weights(families.ceit(case, "float32"), ceit))
    families.assert_same(answer(case), theirs)


# ---- The parts by hand -----------------------------------------------------------------------------------------------


def stem(image, gain):
    """The map that patches are cut from, one pixel each: a convolution of ones, and BatchNorm times `gain`."""
    tokens = ImageToTokens(1, (1, 1), stem_width=1)
    variables = quick.jit(tokens.init)(jax.random.key(0), image)
    params = variables["params"]
    params["conv"]["kernel"] = jnp.ones((7, 7, 1, 1))
    params["bn"]["scale"] = jnp.full(1, gain * (1 + 1e-5) ** 0.5)
    params["proj"] = {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}
    return np.asarray(quick.jit(tokens.apply)(variables, image)).reshape(image.shape[1] // 4, -1)


def test_the_paddings_of_the_stem_are_symmetric():
    """Outputs 3 to 5 of 8 see row 8 (2 i - 3 <= 8 <= 2 i + 3), 4 to 7 column 11; maxima over 2 j - 1 .. 2 j + 1."""
    image = jnp.zeros((1, 16, 16, 1)).at[0, 8, 11].set(1)
    found = stem(image, 1.0)
    np.testing.assert_allclose(found, np.outer([0, 1, 1, 1], [0, 0, 1, 1]), atol=1e-6)


def test_the_stem_has_no_activation_and_pools_over_nothing_but_the_map():
    """Of negative values the largest is that with the fewest pixels under the kernel: 4 x 4 of 7 x 7 in a corner."""
    found = stem(jnp.ones((1, 16, 16, 1)), -1.0)
    assert (found[0, 0], found[0, -1]) == pytest.approx((-16, -20))
    assert found.max() < 0


def test_the_class_token_goes_round_the_feed_forward():
    leff, x = LeFF(hidden=3, grid=(2, 2)), np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    init = quick.jit(lambda x: leff.init_with_output(jax.random.key(0), x, train=False)[1])
    run = quick.jit(lambda variables, x: leff.apply(variables, x, train=True, mutable=["batch_stats"]))
    y, moved = run(init(x), x)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    assert np.abs(y[:, 1:] - x[:, 1:]).min() > 1e-4
    other = x.copy()
    other[:, 0] = 1e3
    _, moved_too = run(init(x), other)
    jax.tree.map(np.testing.assert_array_equal, moved, moved_too)  # nor does it count in the statistics


@functools.cache
def tiny(**settings):
    """A model, its variables, none of them at their start, and images."""
    model = models.create("ceit_ti", **{**TINY, **settings})
    images = jax.random.normal(jax.random.key(1), (2, *model.input_shape))
    rng = np.random.default_rng(0)
    variables = quick.jit(model.init)(jax.random.key(0), images)
    return model, jax.tree.map(lambda x: x + rng.uniform(0, 0.25, x.shape).astype(np.float32), variables), images


def trained(model, variables, images):
    """Logits and statistics of one call in training."""
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(2)}}
    (logits, out), moved = quick.jit(lambda v, x: model.apply(v, x, **options))(variables, images)
    return {"logits": logits, "tokens": out["tokens"], **moved}


@pytest.mark.slow
def test_what_the_head_reads():
    model, variables, images = tiny()
    logits, out = quick.jit(model.apply)(variables, images)
    assert out["tokens"].shape == (2, 2, 5, 16)  # layers, images, rows, channels
    np.testing.assert_array_equal(out["class_tokens"], out["tokens"][:, :, 0])
    assert (out["encoded"].shape, out["pre_logits"].shape, logits.shape) == ((2, 2, 16), (2, 16), (2, 3))
    np.testing.assert_array_equal(out["pre_logits"], out["encoded"][:, -1])
    assert set(variables["params"]["lca"]) == {"norm1", "attn", "norm2", "mlp"}


@pytest.mark.slow
def test_remat_changes_neither_results_nor_statistics():
    model, variables, images = tiny()
    expected = trained(model, variables, images)
    found = trained(model.clone(remat="attention", unroll=2), variables, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.slow
def test_segments_equal_one_run_in_training_too():
    """With a PEG that adds nothing between them."""
    model, variables, images = tiny()
    peg = {"proj": {"kernel": jnp.zeros((3, 3, 1, 16)), "bias": jnp.zeros(16)}}
    with_peg = {**variables, "params": {**variables["params"], "peg_0": peg}}
    found = trained(model.clone(pe="learnable+peg"), with_peg, images)
    expected = trained(model, variables, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.slow
def test_stochastic_depth_acts_in_training_alone():
    model, variables, images = tiny()
    deep = model.clone(drop_path=0.9)
    assert np.abs(trained(deep, variables, images)["tokens"] - trained(model, variables, images)["tokens"]).max() > 0.1
    np.testing.assert_array_equal(*(quick.jit(m.apply)(variables, images)[0] for m in (model, deep)))


@pytest.mark.slow
def test_bfloat16_is_near_float32_and_keeps_float32_statistics():
    model, variables, images = tiny()
    found, expected = (trained(m, variables, images) for m in (model.clone(dtype=jnp.bfloat16), model))
    assert (found["tokens"].dtype, found["logits"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found["batch_stats"])} == {"float32"}
    assert 0 < np.abs(found["logits"] - expected["logits"]).max() < 0.1 * np.abs(expected["logits"]).max()


@pytest.mark.slow
def test_folded_it_gives_the_same_logits():
    model, rng = models.create("ceit_ti", **TINY), np.random.default_rng(0)
    images = rng.standard_normal((2, *model.input_shape)).astype(np.float32)
    variables = jax.tree.map(lambda x: rng.uniform(0.05, 0.3, x.shape).astype(np.float32), model.variable_shapes())
    folded, constants = port.fold(variables, model)
    assert "pe_norm" not in constants["params"]["blocks"]
    logits = (quick.jit(m.apply)(v, images)[0] for m, v in ((folded, constants), (model, variables)))
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


# ---- What cannot be built --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_size": 2}, "patch_size=2 is not divisible by 4, the stride of the stem"),
        ({"patch_size": (8, 2)}, r"patch_size=\(8, 2\) is not divisible by 4"),
        ({"image_size": 20}, "image_size=20 is not divisible by patch_size=16"),
        ({"stem_width": 0}, "stem_width=0 is not positive"),
        ({"pool": "gap"}, "pool='gap' is not one of token"),
        ({"distilled": True}, "distilled=True: a CeiT reads the class tokens of all layers"),
        ({"pe": "relative", "join": "lape"}, "delivers an absolute position table, and pe='relative'"),
    ],
    ids=str,
)
def test_wrong_settings_are_user_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        models.create("ceit_ti", **overrides)
