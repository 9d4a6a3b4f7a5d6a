"""How far float32 and bfloat16 are from float64, the epsilon of the norms, and the PE row that has no variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from tests import quick
from tests.models.compare import assert_close, create, goldens
from tests.reference import cases


def logits_at_a_realistic_size(case: cases.Case, dtype) -> np.ndarray:
    """Logits of 8 images, DeiT-Ti's width and depth, with float32 parameters and `dtype` computation."""
    model = create(case, dtype)
    to_float32 = lambda leaf: jnp.asarray(leaf, jnp.float32)  # noqa: E731
    variables = jax.tree.map(to_float32, port.from_torch(cases.weights(case), model))
    return np.asarray(jax.jit(model.apply)(variables, to_float32(cases.images(case)))[0], np.float64)


@pytest.mark.parametrize("case", quick.first(1, cases.realistic()), ids=lambda case: case.name)
def test_float32_is_within_1e_5_of_float64(case):
    assert_close("logits", logits_at_a_realistic_size(case, jnp.float32), goldens()[case.name], 1e-5)


@pytest.mark.parametrize("case", quick.first(1, cases.realistic()), ids=lambda case: case.name)
def test_bfloat16_is_within_a_fortieth_of_float64(case):
    """No logit is wrong by more than 2.5 % of the largest one.

    bfloat16 rounds by up to 2^-9 = 0.2 %, and twelve blocks round again and again: over six sets of random weights the
    largest error was 0.7 to 1.4 %, with either joining; the bound leaves a factor of about two. So bfloat16 reorders
    only classes whose logits are closer than that. (float32 there: 4e-7 to 1e-6.)
    """
    assert_close("logits", logits_at_a_realistic_size(case, jnp.bfloat16), goldens()[case.name], 0.025)


def test_epsilon_of_every_norm():
    """The norms divide by sqrt(var + 1e-6): for rows of +-0.001, whose variance is 1e-6, this is no detail."""
    assert models.create("deit_ti").ln_eps == 1e-6
    with jax.enable_x64(True):
        model = create(cases.Case())
        weights = cases.weights(cases.Case())
        rows = weights["pos_embed"].shape
        weights["pos_embed"] = np.where(np.arange(rows[-1]) % 2, -1e-3, 1e-3) * np.ones(rows)
        for layer in range(3):
            weights[f"blocks.{layer}.pe_norm.weight"][:] = 1.0
            weights[f"blocks.{layer}.pe_norm.bias"][:] = 0.0
        images = jnp.asarray(cases.images(cases.Case()))
        _, out = quick.jit(model.apply)(port.from_torch(weights, model), images)
    first = 1e-3 / np.sqrt(1e-6 + 1e-6)  # 0.70711
    second = first / np.sqrt(first**2 + 1e-6)
    third = second / np.sqrt(second**2 + 1e-6)
    expected = np.array([first, second, third])[:, None]
    np.testing.assert_allclose(np.abs(out["pe"][:, :, 0]), np.broadcast_to(expected, (3, rows[1])), rtol=1e-12)
    # All other norms: the two goldens `small` differ in nothing but epsilon, 1e-6 and 1e-5, which the logits must show.
    for name in ("default-learnable", "lape-learnable-layernorm"):
        small, wider = (goldens()[f"{name}-{label}"][:10] for label in ("small", "small_eps5"))
        assert np.abs(small - wider).max() > 0.05 * np.abs(small).max()


FLAT = cases.Case(pe="sincos_2d", join="lape")  # its class row is all zeros: it leaves the first norm as b_0 exactly


def flat_row(bias: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    """The class row of the PE at the three layers, and the logits, when b_0 = `bias` (in float32, to be fair to it)."""
    with jax.enable_x64(dtype == jnp.float64):
        weights = cases.weights(FLAT)
        weights["blocks.0.pe_norm.bias"] = bias
        model = create(FLAT, dtype)
        variables = port.from_torch({name: np.float32(value) for name, value in weights.items()}, model)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
        images = jnp.asarray(np.float32(cases.images(FLAT)), dtype)
        logits, out = quick.jit(model.apply)(variables, images)
        return np.asarray(out["pe"][:, 0], np.float64), np.asarray(logits, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("size", quick.first(1, [1e-3, 1e-8, 1e-5, 1.0]))
def test_flat_row_in_float32(size):
    """b_0 is normalised by the second norm, with a gain of up to 1/sqrt(eps) = 1000."""
    bias = np.float32(size * cases.uniform("b_0", (FLAT.width,)))
    pe, logits = flat_row(bias, jnp.float64)
    weights = {name: np.float64(np.float32(value)) for name, value in cases.weights(FLAT).items()}
    np.testing.assert_allclose(pe[0], bias, rtol=1e-15)
    normalised = (pe[0] - pe[0].mean()) / np.sqrt(pe[0].var() + 1e-6)
    second = weights["blocks.1.pe_norm.weight"] * normalised + weights["blocks.1.pe_norm.bias"]
    np.testing.assert_allclose(pe[1], second, rtol=1e-9, atol=1e-12)
    pe_32, logits_32 = flat_row(bias, jnp.float32)
    assert_close("pe", pe_32, pe, 1e-5)
    assert_close("logits", logits_32, logits, 1e-5)


@pytest.mark.slow
def test_flat_row_on_an_offset_in_float32():
    """b_0 = 1 +- 0.001: E[x^2] - E[x]^2 in float32 is a fifth off the variance, which makes the row wrong by 4 %."""
    bias = np.float32(1 + 1e-3 * cases.uniform("b_0", (FLAT.width,)))
    assert_close("pe", flat_row(bias, jnp.float32)[0], flat_row(bias, jnp.float64)[0], 2e-4)


@pytest.mark.slow
def test_gradients_are_finite_at_initialisation():
    """Twelve blocks in float32. The flat row has no variance at any layer then, so that its gradient grows by 1000 with
    every norm that it passes on its way back: to about 1e30 for b_0, whose square float32 cannot hold."""
    case = cases.Case(pe="sincos_2d", depth=12)
    model = create(case, jnp.float32)
    images = jnp.asarray(cases.images(case), jnp.float32)
    params = quick.jit(model.init)(jax.random.key(0), images)["params"]

    def loss(params):
        logits, out = model.apply({"params": params}, images)
        return jnp.sum(logits * cases.cotangent(case).astype(np.float32)), out["pe"]

    gradients, delivered = quick.jit(jax.grad(loss, has_aux=True))(params)
    assert not delivered[:, 0].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
