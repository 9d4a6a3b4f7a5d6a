"""Attention against a plain NumPy computation, its relative bias by hand, and its numerics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.nn.attention import Attention
from tests import quick
from tests.quick import jit

BATCH, TOKENS, WIDTH, HEADS = 2, 5, 6, 2
GRID = (2, 2)  # and one token before the patches


def random_params(grid=None):
    draw = np.random.default_rng(0).standard_normal
    params = {
        "qkv": {"kernel": draw((WIDTH, 3 * WIDTH)), "bias": draw(3 * WIDTH)},
        "proj": {"kernel": draw((WIDTH, WIDTH)), "bias": draw(WIDTH)},
    }
    if grid:
        params["relative_position_bias_table"] = draw(((2 * grid[0] - 1) * (2 * grid[1] - 1), HEADS))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, TOKENS, WIDTH)), jnp.float32)


def run(attention, params, x, train=False):
    return jit(partial(attention.apply, train=train))({"params": params}, x, rngs={"dropout": jax.random.key(0)})


def by_head(params, x, bias):
    """The same in NumPy, one sample and head at a time; bias (heads, n, n)."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    qkv = np.asarray(x, np.float64) @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    size = WIDTH // HEADS
    y = np.zeros(x.shape)
    for sample in range(BATCH):
        for head in range(HEADS):
            q, k, v = (
                qkv[sample, :, part * WIDTH + head * size : part * WIDTH + (head + 1) * size] for part in range(3)
            )
            weights = np.exp(q @ k.T / np.sqrt(size) + bias[head])
            weights /= weights.sum(axis=1, keepdims=True)
            y[sample, :, head * size : (head + 1) * size] = weights @ v
    return y @ params["proj"]["kernel"] + params["proj"]["bias"]


def test_matches_a_plain_computation(x):
    params = random_params()
    y = run(Attention(HEADS), params, x)
    np.testing.assert_allclose(y, by_head(params, x, np.zeros(HEADS)), rtol=1e-4, atol=1e-5)


def test_relative_bias_reaches_patches_only(x):
    params = random_params(GRID)
    table = np.asarray(params["relative_position_bias_table"])
    attention = Attention(HEADS, grid=GRID)
    y, bias = jit(
        lambda x: attention.apply(
            {"params": params}, x, train=False, capture_intermediates=lambda _, method: method == "relative_bias"
        )
    )(x)
    # The row of the table for query i and key j of a 2 x 2 grid, see test_position.py
    index = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    expected = np.zeros((HEADS, TOKENS, TOKENS))  # row and column 0 stay zero: the class token
    expected[:, 1:, 1:] = table.T[:, index]
    np.testing.assert_allclose(bias["intermediates"]["relative_bias"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(y, by_head(params, x, expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [None, GRID])
def test_sequences_take_turns_with_masks(x, grid):
    """Of four sequences and two masks, the first and third have the first mask."""
    params, mask = random_params(grid), np.random.default_rng(2).standard_normal((2, TOKENS, TOKENS)).astype("f")
    bias = np.zeros((HEADS, TOKENS, TOKENS))
    if grid:
        index = np.array([[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])
        bias[:, 1:, 1:] = np.asarray(params["relative_position_bias_table"]).T[:, index]
    apply = jit(partial(Attention(HEADS, grid=grid).apply, train=False))
    y = apply({"params": params}, jnp.concatenate([x, x[::-1]]), mask=mask)
    first, second = (by_head(params, x, bias + part) for part in mask)
    np.testing.assert_allclose(y, [first[0], second[1], first[1], second[0]], rtol=1e-4, atol=1e-5)


def test_parameters_and_their_start(x):
    params = jit(lambda x: Attention(HEADS, grid=GRID).init(jax.random.key(0), x, train=False))(x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random_params(GRID))
    np.testing.assert_array_equal(params["relative_position_bias_table"], 0)
    np.testing.assert_array_equal(params["qkv"]["bias"], 0)


def test_without_qkv_bias(x):
    shapes = jax.eval_shape(lambda x: Attention(HEADS, qkv_bias=False).init(jax.random.key(0), x, train=False), x)
    assert set(shapes["params"]["qkv"]) == {"kernel"}


def selector(q, k, v):
    """Parameters that give token i of a one-hot sequence the rows q[i], k[i] and v[i], unprojected."""
    kernel = np.concatenate([np.asarray(part, np.float32) for part in (q, k, v)], axis=1)
    return {
        "qkv": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(kernel.shape[1])},
        "proj": {"kernel": jnp.eye(len(kernel)), "bias": jnp.zeros(len(kernel))},
    }


def test_logits_are_float32_in_bfloat16():
    # q k / sqrt(4) = 256 and 257 for the two keys: bfloat16 has no 257, and would weigh them equally.
    q, k, v = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    q[0, :2], k[0, 0], k[1, :2], v[1, 0] = (16, 1), 32, (32, 2), 1
    x = jnp.eye(4, dtype=jnp.bfloat16)[None, :2]
    y = run(Attention(heads=1, dtype=jnp.bfloat16), selector(q, k, v), x)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-1)), rel=5e-3)


@pytest.mark.parametrize("where", ["attn_dropout", "dropout"])
def test_dropout_in_training_only(where):
    # Zero queries weigh the 4 keys equally, and values are one-hot: the output is the matrix of weights, all 1/4.
    x = jnp.broadcast_to(jnp.eye(4), (500, 4, 4))
    params = selector(np.zeros((4, 4)), np.zeros((4, 4)), np.eye(4))
    attention = Attention(heads=1, **{where: 0.5})
    np.testing.assert_allclose(run(attention, params, x), 0.25)
    y = np.asarray(run(attention, params, x, train=True))
    assert set(np.unique(y)) == {0.0, 0.5}
    assert y.mean() == pytest.approx(0.25, abs=0.01)


def test_cudnn_is_missed_where_it_is_used():
    attention = Attention(HEADS, implementation="cudnn", dtype=jnp.bfloat16)
    with pytest.raises(UserError, match="attention='cudnn' is not possible here, use attention='auto': cuDNN"):
        jax.eval_shape(partial(attention.init, train=False), jax.random.key(0), jnp.zeros((1, TOKENS, WIDTH)))


# ---- In blocks of queries --------------------------------------------------------------------------------------------


def in_blocks(attention, grid, mask=None, masked=False):
    """Output and gradients of a nonlinear function of it, in float64, for 13 patches and a token before them."""
    draw = np.random.default_rng(3).standard_normal
    params = random_params(grid)
    x = draw((4, 1 + 12, WIDTH))

    def loss(params, x):
        y = attention.apply({"params": params}, x, False, *((mask,) if masked else ()))
        return jnp.sum(jnp.sin(y)), y

    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, x))
        gradients, y = jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    return jax.tree.map(np.asarray, (y, gradients))


@pytest.mark.parametrize("block", quick.first(1, [5, 1, 12]))
@pytest.mark.parametrize("kind", ["plain", "relative", "mask", "both"])
def test_blocks_are_exact(kind, block, monkeypatch):
    """For blocks that divide the queries and others, with and without what is added to the logits."""
    monkeypatch.setattr("lape_jax.nn.attention.BLOCK", block)
    mask = jnp.asarray(np.random.default_rng(4).standard_normal((2, 13, 13)), jnp.float32)
    grid = (3, 4) if kind in ("relative", "both") else None
    options = {"heads": HEADS, "grid": grid, "dtype": jnp.float64}
    found, expected = (
        in_blocks(Attention(**options, implementation=name), grid, mask, kind in ("mask", "both"))
        for name in ("blocks", "xla")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)


@pytest.mark.parametrize("relative", [False, True])
def test_blocks_never_hold_a_map_of_all_pairs(relative):
    """Neither forward nor backward, by what the compiled program asks for: it grows as the sequence, not its square."""

    def temporaries(tokens, implementation="blocks"):
        grid = (tokens // 32, 32) if relative else None
        attention = Attention(1, grid=grid, implementation=implementation)
        x = jax.ShapeDtypeStruct((1, tokens, 8), jnp.float32)
        params = jax.eval_shape(partial(attention.init, train=False), jax.random.key(0), x)
        step = jax.jit(jax.grad(lambda v, x: jnp.sum(jnp.sin(attention.apply(v, x, False))), argnums=(0, 1)))
        return step.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(1024), temporaries(4096)
    assert many < 4.2 * few
    assert many < 4 * 4096**2 / 2  # half of one map
    if not relative:
        assert temporaries(4096, "xla") > 4 * 4096**2
