"""The small parts, one by one, against values worked out by hand or in NumPy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.layers import LayerScale, Mlp, PatchEmbed, drop_path, layer_norm, normal_02, torch_uniform
from tests.quick import jit

jitted_drop_path = jit(drop_path)


@pytest.fixture(scope="module")
def key():
    return jax.random.key(0)


def test_weights_start_normal_and_are_not_cut_off(key):
    weights = np.asarray(jit(normal_02, static_argnums=1)(key, (20000,)))
    assert weights.std() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean()) < 5e-4
    assert np.abs(weights).max() > 0.06  # a truncated normal would end at 0.04


def test_convolutions_start_as_in_pytorch(key):
    weights = np.asarray(jit(torch_uniform(16), static_argnums=1)(key, (20000,)))
    assert weights.min() == pytest.approx(-0.25, rel=1e-3)
    assert weights.max() == pytest.approx(0.25, rel=1e-3)
    assert weights.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.02)


def test_layer_norm_by_hand():
    norm = layer_norm(5.0, jnp.float32, "norm1")
    params = {"scale": jnp.asarray([3.0, 6.0]), "bias": jnp.asarray([1.0, 2.0])}
    # mean 2, variance 4: (-2, 2) / sqrt(4 + 5)
    y = norm.apply({"params": params}, jnp.asarray([[[0.0, 4.0]]]))
    np.testing.assert_allclose(y, [[[-2 + 1, 4 + 2]]], rtol=1e-6)
    assert norm.name == "norm1"


def test_layer_norm_is_float32_for_bfloat16_and_exact_for_a_large_mean():
    norm = layer_norm(1e-6, jnp.bfloat16, "norm")
    params = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    assert norm.apply({"params": params}, jnp.asarray([[[0.0, 4.0]]], jnp.bfloat16)).dtype == jnp.float32
    y = norm.apply({"params": params}, jnp.asarray([[[10000.0, 10001.0]]]))
    np.testing.assert_allclose(y, [[[-1, 1]]], rtol=1e-5)


def test_patches_are_projected_row_by_row():
    images = np.random.default_rng(0).standard_normal((2, 4, 6, 2)).astype(np.float32)
    embed = PatchEmbed(width=3, patch_size=(2, 3))
    params = jit(embed.init)(jax.random.key(1), images)["params"]
    kernel, bias = np.asarray(params["proj"]["kernel"]), np.asarray(params["proj"]["bias"])
    assert kernel.shape == (2, 3, 2, 3)
    assert np.abs(kernel).max() <= 1 / math.sqrt(12)
    assert 0 < np.abs(bias).max() <= 1 / math.sqrt(12)
    tokens = np.asarray(jit(embed.apply)({"params": params}, images))
    assert tokens.shape == (2, 4, 3)
    corners = [(0, 0), (0, 3), (2, 0), (2, 3)]
    for n, (row, column) in enumerate(corners):
        patch = images[:, row : row + 2, column : column + 3]
        np.testing.assert_allclose(tokens[:, n], np.einsum("bhwc,hwcd->bd", patch, kernel) + bias, rtol=1e-5, atol=1e-6)


def test_mlp_by_hand():
    # One channel, two hidden units: fc1(1) = (1, -1); gelu(1) = Phi(1) = 0.8413447, gelu(-1) = Phi(1) - 1
    params = {
        "fc1": {"kernel": jnp.asarray([[1.0, -1.0]]), "bias": jnp.zeros(2)},
        "fc2": {"kernel": jnp.asarray([[10.0], [100.0]]), "bias": jnp.asarray([0.5])},
    }
    y = jit(partial(Mlp(hidden=2).apply, train=False))({"params": params}, np.ones((1, 1, 1)))
    np.testing.assert_allclose(y, [[[10 * 0.8413447 + 100 * -0.1586553 + 0.5]]], rtol=1e-6)


def test_mlp_drops_units_after_both_layers_in_training_only(key):
    params = {
        "fc1": {"kernel": jnp.zeros((1, 2)), "bias": jnp.full(2, 10.0)},  # gelu(10) = 10
        "fc2": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)},
    }
    mlp, x = Mlp(hidden=2, dropout=0.5), np.zeros((1, 1000, 1), np.float32)
    np.testing.assert_allclose(jit(partial(mlp.apply, train=False))({"params": params}, x), 20.0)
    y = np.asarray(jit(partial(mlp.apply, train=True))({"params": params}, x, rngs={"dropout": key}))
    # (0, 1 or 2 hidden units kept at twice their value) x (dropped, or kept at twice its value)
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_allclose(values, [0, 40, 80])
    np.testing.assert_allclose(counts / 1000, [5 / 8, 2 / 8, 1 / 8], atol=0.05)


def test_layer_scale_by_hand(key):
    x = jnp.asarray([[[1.0, 2.0]]])
    y, variables = LayerScale(0.1).init_with_output(key, x)
    np.testing.assert_allclose(y, [[[0.1, 0.2]]], rtol=1e-6)
    assert variables["params"]["gamma"].shape == (2,)
    y = LayerScale(0.1).apply({"params": {"gamma": jnp.asarray([3.0, 5.0])}}, x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(y, [[[3, 10]]])
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_drop_path_drops_whole_samples_and_scales_the_others(key, dtype):
    branch = jnp.broadcast_to(jnp.asarray([1.0, -3.0], dtype), (4000, 1, 2))
    y = jitted_drop_path(branch, 0.75, key)
    assert y.dtype == dtype
    y = np.asarray(y, np.float32)
    kept = y[:, 0, 0] != 0
    np.testing.assert_array_equal(y[kept], np.broadcast_to([4.0, -12.0], (kept.sum(), 1, 2)))
    np.testing.assert_array_equal(y[~kept], 0)
    assert kept.mean() == pytest.approx(0.25, abs=0.03)  # so the expectation is the branch itself


def test_drop_path_at_rate_zero_is_the_identity(key):
    branch = jnp.linspace(-1, 1, 8000).reshape(4000, 1, 2)
    np.testing.assert_array_equal(jitted_drop_path(branch, 0.0, key), branch)


def test_a_dropped_branch_may_be_infinite(key):
    y = np.asarray(jitted_drop_path(jnp.full((4000, 1, 2), jnp.inf), 0.5, key))
    assert set(y.flat) == {0.0, np.inf}  # 0 * inf would be NaN
