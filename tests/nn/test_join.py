"""Each joining method and each function of the PE, on numbers that one can check in one's head.

`ten` and `hundred` stand for the block's LayerNorm and the PE's: z -> 10 z and w -> 100 w.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.join import JOINS
from lape_jax.nn.pe_norm import PE_NORMS, PENorm


def ten(z):
    return 10 * z


def hundred(w):
    return 100 * w


@pytest.fixture
def tokens():
    return jnp.asarray([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # batch 2, 2 rows, 2 channels


@pytest.fixture
def table():
    return jnp.asarray([[0.1, 0.2], [0.3, 0.4]])


def block(name, x, pe):
    join = JOINS[name]
    return join.block(x, pe, ten, hundred if join.normalises_pe else None)


def test_names_are_the_papers_and_folded():
    assert set(JOINS) == {"default", "shared", "unshared", "lape_sharing", "lape", "pvg", "mpvg", "folded"}
    assert [name for name, join in JOINS.items() if join.normalises_pe] == ["lape_sharing", "lape"]
    assert [name for name, join in JOINS.items() if join.table_per_layer] == ["unshared", "folded"]
    assert [name for name, join in JOINS.items() if not join.norm1_bias] == ["folded"]
    assert [name for name, join in JOINS.items() if join.norms_apart] == ["pvg", "mpvg"]
    assert [name for name, join in JOINS.items() if join.last_norm] == ["mpvg"]
    assert [name for name, join in JOINS.items() if not join.trainable] == ["folded"]


def test_claims_are_not_inherited():
    class More(type(JOINS["lape"])):
        title = "more"

    assert (More().folds_into, JOINS["lape"].folds_into) == (None, "folded")
    assert JOINS["default"].stem_only
    assert not type("More", (type(JOINS["default"]),), {})().stem_only


@pytest.mark.parametrize("name", ["pvg", "mpvg"])
def test_pvg_adds_the_table_in_the_stem_and_what_it_is_given_to_the_attention_input(name, tokens, table):
    join = JOINS[name]
    x, pe = join.stem(tokens, table)
    np.testing.assert_allclose(x[1], [[5.1, 6.2], [7.3, 8.4]], rtol=1e-6)
    assert pe is None
    joined = join.block(x, table, ten, None)
    assert joined.tokens is x
    np.testing.assert_allclose(joined.attention_input, 10 * x + table, rtol=1e-6)
    assert joined.delivered is table
    staged = join.in_stages
    assert staged.stem(tokens, table)[1] is table
    np.testing.assert_allclose(staged.block(x, table, ten, hundred).handed_on, 100 * table, rtol=1e-6)


def test_only_mpvg_sees_the_table_at_the_end(tokens, table):
    for name, join in JOINS.items():
        found = join.final(tokens, table, table, ten, hundred)
        expected = 10 * tokens + 100 * table if name == "mpvg" else 10 * tokens
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_only_default_adds_the_table_in_the_stem(tokens, table):
    x, pe = JOINS["default"].stem(tokens, table)
    np.testing.assert_allclose(x[1], [[5.1, 6.2], [7.3, 8.4]], rtol=1e-6)
    assert pe is None
    for name in ("shared", "lape_sharing", "lape"):
        x, pe = JOINS[name].stem(tokens, table)
        assert x is tokens
        assert pe is table


def test_default_leaves_the_block_alone(tokens):
    joined = block("default", tokens, None)
    assert joined.tokens is tokens
    np.testing.assert_array_equal(joined.attention_input, 10 * tokens)
    assert joined.delivered is None
    assert joined.handed_on is None


@pytest.mark.parametrize("name", ["shared", "unshared"])
def test_shared_and_unshared_add_to_the_residual_stream(name, tokens, table):
    joined = block(name, tokens, table)
    np.testing.assert_allclose(joined.tokens[0], [[1.1, 2.2], [3.3, 4.4]], rtol=1e-6)
    np.testing.assert_allclose(joined.attention_input, 10 * joined.tokens, rtol=1e-6)
    assert joined.delivered is table
    assert joined.handed_on is table


@pytest.mark.parametrize("name", ["lape_sharing", "lape"])
def test_lape_adds_to_the_attention_input_only(name, tokens, table):
    joined = block(name, tokens, table)
    assert joined.tokens is tokens
    np.testing.assert_allclose(joined.attention_input[0], [[10 + 10, 20 + 20], [30 + 30, 40 + 40]], rtol=1e-6)
    np.testing.assert_allclose(joined.delivered, [[10, 20], [30, 40]], rtol=1e-6)


def test_folded_adds_its_table_to_the_attention_input_only(tokens, table):
    joined = block("folded", tokens, table)
    assert joined.tokens is tokens
    np.testing.assert_allclose(joined.attention_input[0], [[10.1, 20.2], [30.3, 40.4]], rtol=1e-6)


def test_lape_hands_on_what_it_delivers_and_sharing_what_it_received(tokens, table):
    lape, sharing = block("lape", tokens, table), block("lape_sharing", tokens, table)
    assert lape.handed_on is lape.delivered
    assert sharing.handed_on is table


@pytest.mark.parametrize("name", sorted(JOINS))
def test_bfloat16_tokens_stay_bfloat16_and_their_pe_float32(name, tokens, table):
    tokens, join = tokens.astype(jnp.bfloat16), JOINS[name]
    x, pe = (tokens, table) if join.table_per_layer else join.stem(tokens, table)
    joined = join.block(x, table if pe is None else pe, ten, hundred if join.normalises_pe else None)
    assert x.dtype == joined.tokens.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((pe, joined.delivered, joined.handed_on))} <= {jnp.dtype("float32")}


ROW, EPS = [0.0, 4.0], 5.0  # mean 2, variance 4: (w - mean) / sqrt(var + eps) = (-2, 2) / 3
VECTOR = {"scale": np.asarray([3.0, 6.0])}
SCALAR = {"scale": np.asarray(3.0)}
BIAS = {"bias": np.asarray([1.0, 2.0])}


@pytest.mark.parametrize(
    ("kind", "params", "expected"),
    [
        ("layernorm", VECTOR | BIAS, [-2 + 1, 4 + 2]),
        ("norm", {}, [-2 / 3, 2 / 3]),
        ("scalar", SCALAR, [0, 12]),
        ("vector", VECTOR, [0, 24]),
        ("affine", VECTOR | BIAS, [0 + 1, 24 + 2]),
        ("scalar_norm", SCALAR, [-2, 2]),
        ("vector_norm", VECTOR, [-2, 4]),
        ("identity", {}, [0, 4]),
    ],
)
def test_pe_norm_by_hand(kind, params, expected):
    pe = jnp.asarray([ROW])
    norm = PENorm(kind, EPS)
    shapes = jax.eval_shape(norm.init, jax.random.key(0), pe).get("params", {})
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(norm.apply({"params": params}, pe), [expected], rtol=1e-6, atol=1e-6)


def test_every_pe_norm_is_tested():
    assert set(PE_NORMS) == {
        *("layernorm", "norm", "scalar", "vector", "affine", "scalar_norm", "vector_norm", "identity"),
    }


def test_pe_norm_starts_as_the_plain_function():
    pe = jnp.asarray([ROW, [1.0, 7.0]])
    for kind in PE_NORMS:
        values, params = PENorm(kind, 0.0).init_with_output(jax.random.key(0), pe)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} <= {jnp.dtype("float32")}
        np.testing.assert_allclose(values, [[-1, 1], [-1, 1]] if "norm" in kind else pe, rtol=1e-6)


def test_a_row_of_zeros_becomes_the_bias_and_the_next_norm_amplifies_it():
    # The class row of the 2-D sinusoid: LNp_0(0) = b_0 exactly, and (+-b) / sqrt(b^2 + eps) comes next.
    bias = jnp.asarray([1e-3, -1e-3])
    norm = PENorm()
    first = norm.apply({"params": {"scale": jnp.ones(2), "bias": bias}}, jnp.zeros((1, 2)))
    np.testing.assert_array_equal(first, [bias])
    second = norm.apply({"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, first)
    np.testing.assert_allclose(second, [[2**-0.5, -(2**-0.5)]], rtol=1e-6)


def test_variance_survives_a_large_mean():
    # E[x^2] - E[x]^2 in float32 would be off by thousands of percent here.
    pe = jnp.asarray([[10000.0, 10001.0]])
    np.testing.assert_allclose(PENorm("norm").apply({}, pe), [[-1, 1]], rtol=1e-5)


def test_pe_norm_is_float32_for_bfloat16():
    pe = jnp.asarray([ROW], jnp.bfloat16)
    for kind in PE_NORMS:
        values, _ = jax.eval_shape(PENorm(kind).init_with_output, jax.random.key(0), pe)
        assert values.dtype == jnp.float32
