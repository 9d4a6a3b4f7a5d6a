"""Attention in windows that do not divide the grid, against a plain NumPy computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.attention import Attention
from lape_jax.nn.padded_windows import PaddedWindowAttention
from lape_jax.nn.position import relative_position_index
from tests.quick import jit

ROWS, COLUMNS, SIDE, WIDTH = 3, 5, 2, 4


def by_hand(params, x, bias):
    """One window and one head; what is filled in has q, k and v of zero."""
    qkv = x @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    maps = np.zeros((4, 6, 3 * WIDTH))
    maps[:ROWS, :COLUMNS] = qkv.reshape(ROWS, COLUMNS, -1)
    y = np.zeros((4, 6, WIDTH))
    for top in range(0, 4, SIDE):
        for left in range(0, 6, SIDE):
            window = (slice(top, top + SIDE), slice(left, left + SIDE))
            q, k, v = np.split(maps[window].reshape(SIDE * SIDE, -1), 3, axis=1)
            weights = np.exp(q @ k.T / WIDTH**0.5 + bias)
            y[window] = (weights / weights.sum(axis=1, keepdims=True) @ v).reshape(SIDE, SIDE, -1)
    return y[:ROWS, :COLUMNS].reshape(-1, WIDTH) @ params["proj"]["kernel"] + params["proj"]["bias"]


@pytest.mark.parametrize("relative", [False, True])
def test_by_hand(relative):
    attention = PaddedWindowAttention(1, patches=(ROWS, COLUMNS), window=SIDE, grid=(SIDE, SIDE) if relative else None)
    draw = np.random.default_rng(0).standard_normal
    x = draw((2, ROWS * COLUMNS, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(functools.partial(attention.init, train=False), jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: draw(leaf.shape).astype(np.float32), shapes)
    y = jit(functools.partial(attention.apply, train=False))({"params": params}, x)
    bias = 0
    if relative:
        bias = params["relative_position_bias_table"][relative_position_index((SIDE, SIDE)), 0]
    for found, rows in zip(y, x, strict=True):
        np.testing.assert_allclose(found, by_hand(params, rows, bias), rtol=1e-4, atol=1e-5)


def test_a_window_as_large_as_the_grid_is_plain_attention():
    attention = PaddedWindowAttention(1, patches=(2, 2), window=2)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, WIDTH)), jnp.float32)
    params = jit(functools.partial(attention.init, train=False))(jax.random.key(0), x)
    found = (jit(functools.partial(a.apply, train=False))(params, x) for a in (attention, Attention(1)))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
