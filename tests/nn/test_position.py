"""Position tables against values worked out by hand from their formulas."""

import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.nn import position

# sin and cos of 1, 2 and of a hundredth of them
SIN1, COS1, SIN2, COS2 = 0.8414709848078965, 0.5403023058681398, 0.9092974268256817, -0.4161468365471424
SIN01, COS01, SIN02, COS02 = 0.009999833334166664, 0.9999500004166653, 0.01999866669333308, 0.9998000066665778


def test_sincos_1d_by_hand():
    # width 4: the frequencies are 1, 1, 1/100, 1/100; the class token's row is position 0
    expected = [[0, 1, 0, 1], [SIN1, COS1, SIN01, COS01], [SIN2, COS2, SIN02, COS02]]
    table = position.sincos_1d(3, 4)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-16)


def test_sincos_1d_of_an_odd_width_ends_with_a_sine():
    np.testing.assert_allclose(position.sincos_1d(2, 3)[1], [SIN1, COS1, np.sin(10000 ** (-2 / 3))], rtol=1e-15)


def test_sincos_2d_by_hand():
    # width 4: one frequency, 1, for each of column (first half) and row (second half)
    expected = [
        [0, 0, 0, 0],  # class token
        [0, 0, 0, 0],  # distillation token
        [0, 1, 0, 1],  # row 0, column 0
        [SIN1, COS1, 0, 1],  # row 0, column 1
        [SIN2, COS2, 0, 1],  # row 0, column 2
        [0, 1, SIN1, COS1],  # row 1, column 0
        [SIN1, COS1, SIN1, COS1],
        [SIN2, COS2, SIN1, COS1],
    ]
    table = position.sincos_2d((2, 3), 4, num_prefix_tokens=2)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-16)


def test_sincos_2d_has_its_second_frequency():
    # width 8: frequencies 1 and 10000^(-2/4) = 1/100 in each half
    table = position.sincos_2d((2, 3), 8)
    assert table.shape == (6, 8)
    np.testing.assert_allclose(table[5], [SIN2, COS2, SIN02, COS02, SIN1, COS1, SIN01, COS01], rtol=0, atol=1e-16)


def test_sincos_2d_needs_a_width_divisible_by_4():
    with pytest.raises(UserError, match="pe='sincos_2d' needs a width divisible by 4, not 6"):
        position.sincos_2d((2, 2), 6)


def test_sincos_2d_of_moco_by_hand():
    # width 8: frequencies 1 and 1/10000, the end point; sines and cosines of the column, then of the row
    tiny = 1e-4
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0],  # class token
        [0, 0, 1, 1, 0, 0, 1, 1],
        [SIN1, np.sin(tiny), COS1, np.cos(tiny), 0, 0, 1, 1],
        [SIN2, np.sin(2 * tiny), COS2, np.cos(2 * tiny), 0, 0, 1, 1],
        [0, 0, 1, 1, SIN1, np.sin(tiny), COS1, np.cos(tiny)],
    ]
    table = position.sincos_2d_moco((2, 3), 8, num_prefix_tokens=1)
    assert (table.dtype, table.shape) == (np.float64, (7, 8))
    np.testing.assert_allclose(table[:5], expected, rtol=0, atol=1e-16)


def test_sincos_2d_of_moco_has_frequencies_in_equal_ratios():
    # width 16: 10^(-4 k / 3), so that arguments of column 1 are 1, 10^(-4/3), 10^(-8/3), 1/10000
    row = position.sincos_2d_moco((1, 2), 16)[1]
    np.testing.assert_allclose(row[:4], np.sin(10.0 ** np.array([0, -4 / 3, -8 / 3, -4])), rtol=1e-14)


@pytest.mark.parametrize("width", [4, 10])
def test_sincos_2d_of_moco_needs_two_frequencies(width):
    with pytest.raises(UserError, match=f"a width of at least 8 that is divisible by 4, not {width}"):
        position.sincos_2d_moco((2, 2), width)


def test_relative_position_index_of_a_square():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(position.relative_position_index((2, 2)), expected)


@pytest.mark.parametrize("grid", [(1, 3), (3, 1)])
def test_relative_position_index_of_a_line(grid):
    np.testing.assert_array_equal(position.relative_position_index(grid), [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


def test_relative_position_index_of_an_oblong():
    index = position.relative_position_index((2, 3))  # (down + 1) * 5 + (right + 2)
    assert index[0, 5] == 0  # query (0, 0), key (1, 2): one up, two left
    assert index[5, 0] == 14
    assert index[1, 3] == 3  # query (0, 1), key (1, 0): one up, one right
    assert set(index.flat) == set(range(15))


@pytest.mark.parametrize(
    ("pe", "expected"),
    [
        ("learnable", ("learnable", False)),
        ("sincos_1d", ("sincos_1d", False)),
        ("sincos_2d", ("sincos_2d", False)),
        ("relative", (None, True)),
        ("learnable+relative", ("learnable", True)),
        ("sincos_1d+relative", ("sincos_1d", True)),
        ("sincos_2d+relative", ("sincos_2d", True)),
        ("none", (None, False)),
        ("sincos_2d_moco+relative", ("sincos_2d_moco", True)),
        ("learnable+peg", ("learnable", False)),
        ("relative+peg", (None, True)),
        ("sincos_1d+relative+peg", ("sincos_1d", True)),
        ("peg", (None, False)),
    ],
)
def test_names(pe, expected):
    assert position.parse_pe(pe) == expected
    assert position.has_peg(pe) == pe.endswith("peg")
    assert position.parse_rope(pe) is None


def test_names_of_ropes():
    for kind in position.ROPES:
        assert kind in position.KINDS
        assert position.parse_rope(kind) == position.parse_rope(f"learnable+relative+{kind}+peg") == kind
        assert position.parse_pe(f"sincos_1d+{kind}") == ("sincos_1d", False)


def test_every_name_is_tested():
    assert len(position.KINDS) == 80
    assert len(set(position.KINDS)) == 80


@pytest.mark.parametrize(
    ("pe", "meant"),
    [("learnabel", "learnable"), ("learnable+relativ", "learnable+relative"), ("sincos2d", "sincos_2d")],
)
def test_wrong_names_are_user_errors(pe, meant):
    with pytest.raises(UserError) as error:
        position.parse_pe(pe)
    assert str(error.value).startswith(f"pe={pe!r} is not one of learnable, ")
    assert f"did you mean {meant!r}?" in str(error.value)
