"""Reach and two-dimensionality of maps that were made by hand."""

import math

import numpy as np
import pytest

from lape_jax.analysis import locality
from lape_jax.analysis.correlation import cosine
from lape_jax.nn import position


def places(grid):
    """Row and column of each token, one token a row."""
    return np.array([(row, column) for row in range(grid[0]) for column in range(grid[1])], float)


def distances(grid):
    return np.linalg.norm(places(grid)[:, None] - places(grid), axis=-1)


def order(grid):
    """|i - j|."""
    index = np.arange(grid[0] * grid[1])
    return np.abs(index[:, None] - index)


def test_means_by_displacement():
    """Three tokens of one row above three of another; s_ij = 10 i + j."""
    values = 10.0 * np.arange(6)[:, None] + np.arange(6)
    mean, count = locality.by_displacement(values, (2, 3))
    assert count.tolist() == [[1, 2, 3, 2, 1], [2, 4, 6, 4, 2], [1, 2, 3, 2, 1]]
    assert mean[1, 2] == np.mean([0, 11, 22, 33, 44, 55])
    assert mean[2, 2] == np.mean([3, 14, 25])  # down one row: 0 -> 3, 1 -> 4, 2 -> 5
    assert mean[1, 4] == np.mean([2, 35])  # two columns to the right: 0 -> 2, 3 -> 5
    assert mean[0, 4] == 32  # up and two to the right: 3 -> 2


def test_background():
    assert locality.background(np.array([[1.0, 0.5, -1], [0.5, 1, 0.25], [-1, 0.25, 1]])) == pytest.approx(-0.5 / 6)
    assert locality.background(np.eye(4)) == 0
    assert math.isnan(locality.background(np.ones((1, 1))))


@pytest.mark.parametrize("behind", [0.0, 0.3, 0.9])
def test_radius_of_what_is_like_itself_alone(behind):
    """Whatever lies behind it."""
    assert locality.radius(behind + (1 - behind) * np.eye(12), (3, 4)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("level", [1.0, 0.3])
def test_radius_of_what_is_the_same_everywhere(level):
    found = locality.radius(np.full((12, 12), level), (3, 4))
    assert found == pytest.approx(distances((3, 4)).mean())
    assert found == pytest.approx(locality.largest_radius((3, 4)))


def test_radius_by_hand():
    """Three tokens of a row: c is 1, .5 and -.4 at distances 0, 1 and 2, the background (4 x .5 - 2 x .4) / 6 = .2."""
    values = np.array([[1, 0.5, -0.4], [0.5, 1, 0.5], [-0.4, 0.5, 1]])
    assert locality.radius(values, (1, 3)) == pytest.approx(4 * 0.3**2 / (3 * 0.8**2 + 4 * 0.3**2))


def test_radius_of_a_gaussian():
    """In the limit of wide ones on wider grids it is sigma sqrt(pi) / 2."""
    grid, sigma = (41, 41), 2.0
    values = np.exp(-(distances(grid) ** 2) / (2 * sigma**2))
    found = locality.radius(values, grid)
    assert found == pytest.approx(sigma * math.sqrt(math.pi) / 2, rel=0.05)
    assert locality.radius(0.5 + values / 2, grid) == pytest.approx(found)
    a = np.arange(-40, 41)
    fall, pairs = np.exp(-(a**2) / (2 * sigma**2)), 41 - np.abs(a)
    count, c = np.outer(pairs, pairs), np.outer(fall, fall)
    behind = ((count * c).sum() - 41**2) / (count.sum() - 41**2)
    weights = count * np.maximum(c - behind, 0) ** 2
    assert found == pytest.approx((weights * np.hypot(a[:, None], a)).sum() / weights.sum())


def test_radius_is_not_taken_in_by_chance():
    """Rows of random numbers: entries of 1 / sqrt(192), of which there are 195 for each 1."""
    values = cosine(np.random.default_rng(0).normal(size=(196, 192)))
    assert locality.radius(values, (14, 14)) < 0.02 * locality.largest_radius((14, 14))


def test_radius_of_nothing_and_of_one_token():
    assert math.isnan(locality.radius(np.zeros((4, 4)), (2, 2)))
    assert locality.radius(np.ones((1, 1)), (1, 1)) == 0


@pytest.mark.parametrize("grid", [(14, 14), (4, 4)])
@pytest.mark.parametrize("fall", [lambda k, side: np.exp(-k / 3), lambda k, side: np.exp(-k / side)])
def test_a_line_is_not_two_dimensional(grid, fall):
    assert locality.two_dness(fall(order(grid), grid[0]), grid) == pytest.approx(0, abs=0.02)
    assert locality.two_dness(cosine(position.sincos_1d(grid[0] * grid[1], 64)), grid) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (6, 4)])
def test_what_depends_on_distance_is_two_dimensional(grid):
    assert locality.two_dness(np.exp(-distances(grid)), grid) == pytest.approx(1)
    assert locality.two_dness(np.cos(distances(grid)), grid) == pytest.approx(1)
    assert locality.two_dness(cosine(position.sincos_2d(grid, 64)), grid) == pytest.approx(1)


def test_columns_and_chance_are_not_two_dimensional():
    across = np.abs(places((9, 9))[:, None, 1] - places((9, 9))[:, 1])
    assert locality.two_dness(np.exp(-across / 2), (9, 9)) == pytest.approx(0, abs=0.02)
    assert locality.two_dness(cosine(np.random.default_rng(0).normal(size=(196, 64))), (14, 14)) < 0.15


@pytest.mark.parametrize(("side", "width", "level"), [(4, 32, 0.59), (8, 32, 0.32), (14, 192, 0.2)])
def test_what_chance_does_on_small_grids(side, width, level):
    """The levels that the module tells: above them is one random table in twenty."""
    rng = np.random.default_rng(0)
    tables = (rng.normal(size=(side**2, width)) for _ in range(200))
    found = [locality.two_dness(cosine(table), (side, side)) for table in tables]
    assert 0.02 < np.mean(np.array(found) > level) < 0.1


def test_a_line_that_recurs_in_every_row_is():
    """cos(2 pi k / W) + cos(2 pi k / W^2): falls in the same way along a row and from row to row."""
    k = order((14, 14))
    values = np.cos(2 * math.pi * k / 14) + np.cos(2 * math.pi * k / 14**2)
    assert locality.two_dness(values, (14, 14)) > 0.9


def test_two_dness_by_loops():
    """The formula, with sums over pairs of tokens."""
    grid, rng = (3, 4), np.random.default_rng(1)
    at = places(grid).astype(int)
    values = np.exp(-distances(grid)) + 0.1 * rng.normal(size=(12, 12))
    total, count = np.zeros((3, 4)), np.zeros((3, 4))
    for i in range(12):
        for j in range(12):
            a, b = np.abs(at[i] - at[j])
            total[a, b] += values[i, j]
            count[a, b] += 1
    c = total / count
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    weights = [count[a, b] * count[b, a] for a, b in pairs]
    one, other = [c[a, b] for a, b in pairs], [c[b, a] for a, b in pairs]
    covariance = np.cov(one, other, aweights=weights, ddof=0)
    expected = max(0, covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1]))
    assert 0.1 < expected < 0.99
    assert locality.two_dness(values, grid) == pytest.approx(expected)


@pytest.mark.parametrize("values", [np.ones((9, 9)), np.eye(9)], ids=["constant", "identity"])
def test_two_dness_of_what_is_the_same_in_all_directions(values):
    assert math.isnan(locality.two_dness(values, (3, 3)))


def test_two_dness_of_small_grids():
    assert math.isnan(locality.two_dness(np.eye(8), (2, 4)))
