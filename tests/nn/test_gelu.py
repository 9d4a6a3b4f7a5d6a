"""The exact GELU against the standard library's erfc in float64, everywhere; its gradient; and its other types."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.gelu import gelu
from tests.quick import jit

# Both signs of 1e-20 to 12.5, beyond which factors of the results fall below the normal numbers of float32.
SIZES = np.concatenate([np.logspace(-20, -3, 500), np.linspace(0.001, 12.5, 6000)]).astype(np.float32)
X = np.concatenate([-SIZES[::-1], [0], SIZES]).astype(np.float32)
value_and_slope = jit(lambda x: jax.jvp(gelu, (x,), (jnp.ones_like(x),)))


def exactly(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x Phi(x) and its derivative in float64."""
    x = np.asarray(x, np.float64)
    below = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x])
    return x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def test_float32_is_exact_to_its_last_digits():
    (y, slope), (exact, exact_slope) = value_and_slope(X), exactly(X)
    assert y.dtype == slope.dtype == jnp.float32
    units = np.abs(y - exact) / np.spacing(np.maximum(np.abs(exact), 1e-37).astype(np.float32))
    assert units[X > -2].max() < 7
    assert units[X > -2].mean() < 0.7
    # Far below zero the last bit of x^2 / 2 is worth 1e-6 of its exponential.
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(slope, exact_slope, rtol=0, atol=2.5e-7)


def test_what_is_large_or_no_number():
    y = np.asarray(jit(gelu)(np.array([-1e30, -20.0, 0.0, 20.0, 1e30, np.inf, np.nan], np.float32)))
    np.testing.assert_array_equal(y, np.array([0, 0, 0, 20, 1e30, np.inf, np.nan], np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_backward_pass_keeps_one_array(dtype):
    x = jnp.ones((8, 4), dtype)
    _, pull = jax.vjp(gelu, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) == x.size


def test_gradients_by_both_modes():
    x = np.linspace(-5, 5, 41, dtype=np.float32)
    backward = jit(jax.grad(lambda x: gelu(x).sum()))(x)
    np.testing.assert_allclose(backward, value_and_slope(x)[1], rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_types_of_fewer_digits_are_as_in_flax(dtype):
    x = jnp.asarray(X[::50], dtype)
    np.testing.assert_array_equal(jit(gelu)(x), jit(lambda x: nn.gelu(x, approximate=False))(x))


def test_float64_has_all_its_digits():
    with jax.enable_x64(True):
        y = jit(gelu)(jnp.asarray(X, jnp.float64))
    np.testing.assert_allclose(y, exactly(X)[0], rtol=1e-12, atol=1e-300)
