"""Three numbers on a map of similarity: how far it reaches, how strong it is, whether it is of a plane or of a line.

All are of c(a, b), the mean of s_ij over all pairs of tokens of which j lies a rows and b columns from i. Averaging
first keeps out chance: entries between two random rows of width D are of size 1 / sqrt(D), too small to see but so many
that sums of their absolute values would hide a sharp diagonal; the squares of means over n(a, b) pairs do not add up in
that way.

`background`, from -1 to 1:  the mean of s_ij over all pairs of different tokens. Near 0 if positions are told apart, 1
    if they all look the same.

`radius`, in patches:  R = sum n w d / sum n w over all displacements, with w = max(c - background, 0)^2 and
    d = sqrt(a^2 + b^2): the mean distance to the tokens that look more alike than any two do, which is what one sees as
    the size of the bright spot in a map. From local to global: 0 if each looks like itself alone (the identity, and any
    background with it), up to the mean distance of any two tokens (`largest_radius`) if all look the same. For
    c = exp(-d^2 / 2 sigma^2) with 1 << sigma << the grid's sides it is sigma sqrt(pi) / 2. Without the background's
    being taken off, R would be but another form of it: a tenth of similarity to each of a hundred tokens far away would
    outweigh the spot.

`two_dness`, from 0 to 1:  the Pearson correlation of c(|a|, |b|) with c(|b|, |a|), or 0 if that is negative, over
    displacements 0 <= a, b < min(rows, columns), a != b, each pair (a, b) with the weight n(a, b) n(b, a).
    Where rows and columns count alike, as in any function of the distance, it is 1. Under a function of the order row
    by row, f(|a columns + b|), a step down is not like a step to the right and c depends on a almost alone. With a != b
    a large a goes with a small b, so that the correlation is negative and the number 0, as it is for pure columns. For
    c = F(a) + q F(b) it is about 2 q / (1 + q^2). It asks what the map looks like, not how it came about: a function of
    |i - j| that rises again after every whole row looks two-dimensional and is, which is what LaPE's scales can make of
    a sinusoid. Small grids have few displacements, six pairs of them in 4 x 4, and chance does more there: of tables of
    random numbers one in twenty is above 0.59 on 4 x 4, above 0.32 on 8 x 8 and above 0.2 on 14 x 14.
"""

import numpy as np
from jaxtyping import Float, Int

from lape_jax.nn.position import relative_position_index


def by_displacement(
    values: Float[np.ndarray, "n n"], grid: tuple[int, int]
) -> tuple[Float[np.ndarray, "up across"], Int[np.ndarray, "up across"]]:
    """c(a, b) at [a + rows - 1, b + columns - 1], and n(a, b), the number of pairs it is the mean of."""
    rows, columns = grid
    index = relative_position_index(grid).reshape(-1)
    shape = (2 * rows - 1, 2 * columns - 1)
    # The index is that of i - j, and (a, b) is j - i: the order is turned round.
    total = np.bincount(index, np.asarray(values, np.float64).reshape(-1))[::-1]
    count = np.bincount(index)[::-1]
    return (total / count).reshape(shape), count.reshape(shape)


def background(values: Float[np.ndarray, "n n"]) -> float:
    """Mean of s_ij over all i != j, see above; NaN of a single token."""
    count = len(values)
    return float((values.sum() - np.trace(values)) / (count * (count - 1))) if count > 1 else float("nan")


def radius(values: Float[np.ndarray, "n n"], grid: tuple[int, int]) -> float:
    """R in patches, see above; NaN if nothing is alike, not even a token to itself (a table of zeros)."""
    if not values.any():
        return float("nan")
    if len(values) == 1:
        return 0.0
    mean, count = by_displacement(values, grid)
    above = np.maximum(mean - background(values), 0)
    if above.max() <= 1e-9:  # nothing but rounding
        return largest_radius(grid)
    weights = count * above**2
    return float((weights * _distances(grid)).sum() / weights.sum())


def largest_radius(grid: tuple[int, int]) -> float:
    """R of a map that is the same everywhere: the mean distance of two tokens, a token and itself among them."""
    _, count = by_displacement(np.ones(2 * (grid[0] * grid[1],)), grid)
    return float((count * _distances(grid)).sum() / count.sum())


def two_dness(values: Float[np.ndarray, "n n"], grid: tuple[int, int]) -> float:
    """The correlation of c(a, b) with c(b, a), see above; NaN on grids of less than 3 rows or columns, or if c is the
    same for all displacements that it is about.
    """
    side = min(grid)
    if side < 3:
        return float("nan")
    mean, count = by_displacement(values, grid)
    # c(|a|, |b|): of a displacement and its mirror images.
    total, count = (_fold(_fold(x).T).T for x in (mean * count, count))
    c, n = (total / count)[:side, :side], count[:side, :side]
    apart = ~np.eye(side, dtype=bool)
    weights = (n * n.T)[apart] / (n * n.T)[apart].sum()
    one, other = c[apart], c.T[apart]
    centred = one - (weights * one).sum()  # the mean, and the variance below, of `other` are the same
    variance = (weights * centred**2).sum()
    if variance <= 1e-20:
        return float("nan")
    return max(0.0, float((weights * centred * (other - (weights * one).sum())).sum() / variance))


def _distances(grid: tuple[int, int]) -> Float[np.ndarray, "up across"]:
    rows, columns = grid
    return np.hypot(np.arange(1 - rows, rows)[:, None], np.arange(1 - columns, columns))


def _fold(x: np.ndarray) -> np.ndarray:
    """Sums of line k and line -k, of lines from -m to m."""
    middle = len(x) // 2
    return np.concatenate([x[middle : middle + 1], x[middle + 1 :] + x[:middle][::-1]])
