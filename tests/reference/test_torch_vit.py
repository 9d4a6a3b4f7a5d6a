"""The yardstick itself, against values worked out by hand."""

import math

import numpy as np
import pytest

from tests.reference import cases

torch = pytest.importorskip("torch")
from tests.reference import torch_vit  # noqa: E402  (needs torch)

pytestmark = pytest.mark.peer


def test_sincos_1d_by_hand():
    # D = 4: frequencies 1 and 1/100, so position 2 is [sin 2, cos 2, sin .02, cos .02]; position 0 is [0, 1, 0, 1].
    table = torch_vit.sincos_1d(3, 4).numpy()
    np.testing.assert_array_equal(table[0], [0, 1, 0, 1])
    np.testing.assert_allclose(table[2], [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)], rtol=1e-15)


def test_sincos_2d_by_hand():
    # D = 8: frequencies 1 and 1/100 in each half; the first half is the column, the second the row.
    table = torch_vit.sincos_2d((2, 3), 8, extra_tokens=1).numpy()
    np.testing.assert_array_equal(table[0], np.zeros(8))
    np.testing.assert_array_equal(table[1], [0, 1, 0, 1, 0, 1, 0, 1])
    column = [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]
    row = [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]
    np.testing.assert_allclose(table[1 + 1 * 3 + 2], column + row, rtol=1e-15)


def test_relative_position_index_by_hand():
    # g = 2: offsets (r_i - r_j, c_i - c_j) in {-1, 0, 1}^2, numbered row by row in a 3 x 3 table; 4 is (0, 0).
    np.testing.assert_array_equal(
        torch_vit.relative_position_index((2, 2)).numpy(), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    )


def test_relative_position_index_of_an_oblong_grid():
    # 1 x 3: only the column offset moves, in a table of 1 x 5.
    np.testing.assert_array_equal(torch_vit.relative_position_index((1, 3)).numpy(), [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


def test_serial_pe_norms_of_a_pair():
    # LN of (a, b) with d = (a - b)/2 is (s, -s), s = d / sqrt(d^2 + eps), then scaled and shifted. Two of them in a
    # row, with scale (2, 1) and bias (0, 1): first d = 3 gives (2s, 1 - s); then d = (3s - 1)/2.
    norm = torch_vit.PENorm("layernorm", 2, eps=1e-6).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0]))
        first = norm(torch.tensor([7.0, 1.0], dtype=torch.float64))
        second = norm(first)
    s = 3 / math.sqrt(9 + 1e-6)
    np.testing.assert_allclose(first.numpy(), [2 * s, 1 - s], rtol=0, atol=1e-15)
    d = (3 * s - 1) / 2
    s = d / math.sqrt(d * d + 1e-6)
    np.testing.assert_allclose(second.numpy(), [2 * s, 1 - s], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("layernorm", [2.0, -3.0 + 0.5]),
        ("norm", [1.0, -1.0]),
        ("scalar", [21.0, 3.0]),
        ("vector", [14.0, 3.0]),
        ("affine", [14.0, 3.5]),
        ("scalar_norm", [3.0, -3.0]),
        ("vector_norm", [2.0, -3.0]),
        ("identity", [7.0, 1.0]),
    ],
)
def test_pe_norm_kinds_by_hand(kind, expected):
    # w = (7, 1): Norm(w) = (1, -1) with eps 0; vec = (2, 3), scalar = 3, bias = (0, 1/2).
    norm = torch_vit.PENorm(kind, 2, eps=0.0).double()
    with torch.no_grad():
        if norm.weight is not None:
            norm.weight.copy_(torch.tensor([2.0, 3.0]) if norm.weight.ndim else torch.tensor(3.0))
        if norm.bias is not None:
            norm.bias.copy_(torch.tensor([0.0, 0.5]))
        answer = norm(torch.tensor([7.0, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(answer.numpy(), expected, rtol=1e-15)


def test_agrees_with_pytorchs_own_modules():
    x = torch.from_numpy(cases.uniform("x", (2, 5, 8)))
    ours, theirs = torch_vit.LayerNorm(8, 1e-6).double(), torch.nn.LayerNorm(8, 1e-6).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch_vit.gelu(x), torch.nn.functional.gelu(x), rtol=1e-13, atol=1e-13)
    attention = torch_vit.Attention(cases.Case(pe="none", join="default", width=8)).double()
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.proj.weight,
            "out_proj.bias": attention.proj.bias,
        }
    )
    torch.testing.assert_close(attention(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("join", "distilled", "count"), [("default", False, 5_717_416), ("lape", True, 5_915_408)])
def test_parameter_counts_are_deit_tinys(join, distilled, count):
    case = cases.Case(
        join=join, distilled=distilled, image=(224, 224), patch=(16, 16), width=192, depth=12, heads=3, classes=1000
    )
    assert sum(parameter.numel() for parameter in torch_vit.ViT(case).parameters()) == count
    assert sum(math.prod(shape) for shape in cases.shapes(case).values()) == count


@pytest.mark.parametrize("case", [*cases.every_combination(), *cases.variations()], ids=lambda case: case.name)
def test_every_tensor_takes_part(case):
    """The weights fill the reference exactly, and each of its tensors moves the loss."""
    gradients = torch_vit.gradients(case, cases.weights(case), cases.images(case), cases.cotangent(case))
    assert {name: value.shape for name, value in gradients.items()} == cases.shapes(case)
    last_table = f"blocks.{case.depth - 1}.attn.relative_position_bias_table"
    if case.relative and case.pool == "token":  # only the class row leaves the last block, and it gets no bias
        assert not gradients.pop(last_table).any()
    assert min(np.abs(value).max() for value in gradients.values()) > 1e-9


def test_names_of_cases_are_unique():
    names = [case.name for case in (*cases.every_combination(), *cases.variations(), *cases.realistic())]
    assert len(set(names)) == len(names)
