"""Frozen position tables and relative indices: in PyTorch state dicts, but no parameters here."""

import numpy as np
import pytest

from lape_jax import port
from lape_jax.errors import UserError
from tests.port.tiny import identical, random_variables, tiny


@pytest.mark.parametrize("pe", ["sincos_1d", "sincos_2d"])
@pytest.mark.parametrize("distilled", [False, True])
def test_frozen_table(pe, distilled):
    model = tiny(pe=pe, distilled=distilled)
    state_dict = port.to_torch(random_variables(model), model)
    table, rows = state_dict["pos_embed"], 5 + distilled
    # The official code drops the leading axis of the 1-D table and of no other.
    assert table.shape == ((rows, 32) if pe == "sincos_1d" else (1, rows, 32))
    table = table.reshape(1, rows, 32)
    if pe == "sincos_1d":
        np.testing.assert_allclose(table[0, :, 0], np.sin(np.arange(rows)), atol=1e-7)
        np.testing.assert_allclose(table[0, :, 3], np.cos(np.arange(rows) * 10000 ** (-2 / 32)), atol=1e-7)
    else:
        np.testing.assert_array_equal(table[0, : rows - 4], 0)
        np.testing.assert_allclose(table[0, rows - 4 :, 0], np.sin([0, 1, 0, 1]), atol=1e-7)  # column
        np.testing.assert_allclose(table[0, rows - 4 :, 16], np.sin([0, 0, 1, 1]), atol=1e-7)  # row
    expected = port.from_torch(state_dict, model)
    assert "pos_embed" not in expected["params"]
    for given in (table, table[0], table.astype(np.float16), table + 9e-6):
        identical(expected, port.from_torch({**state_dict, "pos_embed": given}, model))
    identical(expected, port.from_torch({n: x for n, x in state_dict.items() if n != "pos_embed"}, model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x + 2e-5, "pos_embed differs by up to 2e-05 from the one that this model has fixed"),
        (lambda x: x[:, ::-1], r"pos_embed differs by up to \d"),
        (lambda x: x * np.nan, "pos_embed differs by up to nan"),
        (lambda x: x[:, 1:], r"pos_embed is \(1, 4, 32\) and should be \(1, 5, 32\)"),
        (lambda x: x.astype(np.int64), "pos_embed is int64 and should be floating point"),
    ],
)
def test_wrong_frozen_table(change, message):
    model = tiny(pe="sincos_2d")
    state_dict = port.to_torch(random_variables(model), model)
    with pytest.raises(UserError, match=message):
        port.from_torch({**state_dict, "pos_embed": change(state_dict["pos_embed"])}, model)


def test_frozen_table_of_a_long_sequence():
    """Float32 code rounds the angle: at 384 pixels the official 1-D table is off by 2.8e-5, and that is no error."""
    model = tiny(pe="sincos_1d", width=192, image_size=24, patch_size=1)
    rows, width = 577, 192
    angle = np.float32([[p / 10000 ** (2 * (i // 2) / width) for i in range(width)] for p in range(rows)])
    table = np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle))
    assert table.dtype == np.float32
    state_dict = port.to_torch(random_variables(model), model)
    assert np.abs(table - port.to_torch(random_variables(model, np.float64), model)["pos_embed"]).max() > 1e-5
    port.from_torch({**state_dict, "pos_embed": table}, model)


def test_relative_index():
    model = tiny(pe="relative")
    state_dict = port.to_torch(random_variables(model), model)
    name = "blocks.1.attn.relative_position_index"
    # A 2 x 2 grid: (r_i - r_j + 1) * 3 + (c_i - c_j + 1).
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(state_dict[name], expected)
    assert state_dict[name].dtype == np.int64
    variables = port.from_torch(state_dict, model)
    identical(variables, port.from_torch({n: x for n, x in state_dict.items() if "index" not in n}, model))
    for wrong, message in (
        (state_dict[name].T, "differs by up to 8 from"),
        (state_dict[name].astype(float), "is float64 and should be an integer"),
        (state_dict[name][1:], r"is \(3, 4\) and should be \(4, 4\)"),
    ):
        with pytest.raises(UserError, match=f"{name} {message}"):
            port.from_torch({**state_dict, name: wrong}, model)
