"""Merging of tokens and of their PE, by hand and by what the choice of the latter rests on."""

import jax.numpy as jnp
import numpy as np

from lape_jax.nn.merging import PatchMerging, merge_pe, neighbours
from lape_jax.nn.position import sincos_2d


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("f")


def test_order_of_neighbours():
    x = jnp.arange(8.0).reshape(1, 8, 1)  # 2 x 4 tokens
    found = neighbours(x, (2, 4))[..., 0]
    np.testing.assert_array_equal(found, [[[0, 4, 1, 5], [2, 6, 3, 7]]])


def test_patch_merging():
    x, kernel, scale, bias = draw(2, 8, 3), draw(12, 6), draw(12), draw(12)
    params = {"norm": {"scale": scale, "bias": bias}, "reduction": {"kernel": kernel}}
    y = PatchMerging((2, 4)).apply({"params": params}, jnp.asarray(x))
    for square, tokens in enumerate(([0, 4, 1, 5], [2, 6, 3, 7])):
        merged = x[:, tokens].reshape(2, 12)
        merged = merged - merged.mean(-1, keepdims=True)
        merged = merged / np.sqrt((merged**2).mean(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y[:, square], (merged * scale + bias) @ kernel, rtol=1e-4, atol=1e-5)


def test_merged_pe_by_hand():
    pe = draw(8, 3)
    first, second = merge_pe(jnp.asarray(pe), (2, 4))
    np.testing.assert_allclose(first, [*(pe[0] + pe[5]) / 2, *(pe[4] + pe[1]) / 2], rtol=1e-6)
    np.testing.assert_allclose(second, [*(pe[2] + pe[7]) / 2, *(pe[6] + pe[3]) / 2], rtol=1e-6)


def three_times(table):
    """By stage, the LayerNorm (over channels, without parameters) of a 56 x 56 table that is merged three times."""
    sides = (56, 28, 14)
    for side in sides:
        table = table - table.mean(1, keepdims=True)
        table = table / np.sqrt((table**2).mean(1, keepdims=True) + 1e-5)
        table = np.asarray(merge_pe(jnp.asarray(table), (side, side)))
        yield side // 2, table


def cosines(table):
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return unit @ unit.T - 2 * np.eye(len(table))


def test_initial_tables_span_all_there_is_to_span():
    """Means of all four neighbours, written twice, would stay within 96 dimensions."""
    tables = dict(three_times(0.02 * draw(56 * 56, 96)))
    ranks = {side: np.linalg.matrix_rank(table, tol=1e-2) for side, table in tables.items()}
    assert ranks == {28: 2 * 95, 14: 14 * 14, 7: 7 * 7}  # a LayerNorm takes one of 96
    assert np.median(cosines(tables[7]).max(1)) < 0.1


def test_neighbours_stay_nearest():
    """Of the 2-D sinusoid; along rows as much as along columns."""
    for side, table in three_times(sincos_2d((56, 56), 96).astype("f")):
        similar = cosines(table)
        row, column = np.divmod(np.arange(side * side), side)
        nearest_row, nearest_column = np.divmod(similar.argmax(1), side)
        assert (np.abs(nearest_row - row) + np.abs(nearest_column - column)).max() == 1
        grid = similar.reshape(side, side, side, side)
        right = [grid[r, c, r, c + 1] for r in range(side) for c in range(side - 1)]
        below = [grid[r, c, r + 1, c] for r in range(side - 1) for c in range(side)]
        np.testing.assert_allclose(np.mean(right), np.mean(below), rtol=1e-3)
