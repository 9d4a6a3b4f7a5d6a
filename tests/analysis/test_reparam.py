"""Equation 7."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.analysis import energy, reparam


def test_by_hand():
    """Spreads of 3 and 4 that know nothing of each other make one of 5."""
    tokens, pe = 3 * np.array([1.0, 1, -1, -1]) + 7, 4 * np.array([1.0, -1, 1, -1]) - 2
    found = reparam.lambdas(jnp.asarray((tokens + pe)[None]), jnp.asarray(pe[None]))
    np.testing.assert_allclose(np.stack(found)[:, 0], [0.6, 0.8, -0.4], rtol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_the_identity(eps):
    """LN(x~ + w) = l1 LN(x~) + l2 LN(w) + l3 b, with the same eps in all of them."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(1, 2, (3, 5, 8)), rng.normal(-1, 0.5, (5, 8))
    g, b = rng.normal(size=(2, 8))

    def norm(z):
        return g * (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + eps) + b

    with jax.enable_x64(True):
        found = reparam.lambdas(jnp.asarray(x + w), jnp.asarray(w), eps)
        parts = energy.parts(jnp.asarray(x + w), jnp.asarray(w), jnp.asarray(g), jnp.asarray(b), eps)
    l1, l2, l3 = (np.asarray(factor)[..., None] for factor in found)
    assert l1.dtype == np.float64
    np.testing.assert_allclose(l1 * norm(x) + l2 * norm(w) + l3 * b, norm(x + w), rtol=0, atol=1e-13)
    np.testing.assert_allclose(l1 + l2 + l3, 1, rtol=1e-13)
    np.testing.assert_allclose(parts[0], l1 * norm(x), rtol=0, atol=1e-13)
    np.testing.assert_allclose(parts[1], l2 * norm(w), rtol=0, atol=1e-13)


def test_a_position_without_spread_has_no_weight():
    found = reparam.lambdas(jnp.arange(4.0)[None], jnp.zeros((1, 4)))
    np.testing.assert_array_equal(np.stack(found)[:, 0], [1, 0, 0])


def test_rms():
    assert energy.rms(np.array([[3.0, 4.0], [0.0, 0.0]])) == 2.5
