"""The yardstick of multi-scale deformable attention itself, against values worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from tests.reference.cases import uniform

torch = pytest.importorskip("torch")
from tests.reference import torch_deformable  # noqa: E402  (needs torch)

pytestmark = pytest.mark.peer


def draw(name: str, *shape: int):
    return torch.from_numpy(uniform(name, shape))


def maximum(tensor) -> float:
    return float(tensor.detach().abs().max())


def one_sample(pixels, x: float, y: float) -> float:
    """A map (h, w) sampled at (x, y), by both ways."""
    shapes, value = [tuple(pixels.shape)], pixels.reshape(1, -1, 1, 1)
    location, weight = (
        torch.tensor([x, y], dtype=torch.float64).reshape(1, 1, 1, 1, 1, 2),
        value.new_ones(1, 1, 1, 1, 1),
    )
    first = float(torch_deformable.sample_by_taps(value, shapes, location, weight))
    assert float(torch_deformable.sample_by_grid(value, shapes, location, weight)) == pytest.approx(first, abs=1e-12)
    return first


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (1.5 / 3, 0.5 / 2, 2.0),  # the centre of a pixel
        (1 / 2, 1 / 2, (2 + 5) / 2),  # the middle: between the two pixels of the middle column
        (1 / 3, 1 / 2, (1 + 2 + 4 + 5) / 4),  # the corner of four pixels
        (0, 0.5 / 2, 1 / 2),  # on the left border: half of the tap is outside, and counts as zero
        (1, 1, 6 / 4),  # the lower right corner: three taps of four are outside
        (-0.5 / 3, 0.5 / 2, 0.0),  # outside by half a pixel: the centre of a pixel that is not there
        (-0.25 / 3, 0.5 / 2, 0.25 * 1),  # outside by a quarter of a pixel: still a quarter of the first
        (0.5 / 3, 2.4 / 2, 0.1 * 4),  # below by .4 of a pixel
        (-0.51 / 3, 0.5 / 2, 0.0),
        (7.0, -3.0, 0.0),
        (0.9 / 3, 0.7 / 2, 0.6 * 0.8 * 1 + 0.4 * 0.8 * 2 + 0.6 * 0.2 * 4 + 0.4 * 0.2 * 5),
    ],
)
def test_sampling_by_hand(x, y, expected):
    pixels = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    assert one_sample(pixels, x, y) == pytest.approx(expected, abs=1e-12)


def test_the_two_ways_of_sampling_agree_in_value_and_gradient():
    shapes, lead = [(4, 6), (2, 3), (1, 2)], (2, 5, 3)
    given = [draw("value", 2, 24 + 6 + 2, 3, 4), 0.5 + 0.6 * draw("places", *lead, 3, 2, 2), draw("w", *lead, 3, 2)]
    answers = []
    for sample in (torch_deformable.sample_by_taps, torch_deformable.sample_by_grid):
        value, locations, weights = (tensor.clone().requires_grad_() for tensor in given)
        out = sample(value, shapes, locations, weights)
        assert out.shape == (2, 5, 12)
        (out * draw("cotangent", 2, 5, 12)).sum().backward()
        answers.append([out, value.grad, locations.grad, weights.grad])
    for first, second in zip(*answers, strict=True):
        assert maximum(first - second) < 1e-12 * maximum(first)
    outside = ((given[1] < 0) | (given[1] > 1)).any(dim=-1).double().mean()
    assert 0.3 < outside < 0.8


def test_reference_points_by_hand():
    found = torch_deformable.reference_points([(1, 2), (2, 1)], torch.zeros(1, dtype=torch.float64))
    np.testing.assert_array_equal(found.numpy(), [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]])


def test_deformable_attention_is_the_formula_taken_one_number_at_a_time():
    shapes, count, points, width = [(2, 3), (1, 2)], 2, 3, 6
    samples = count * len(shapes) * points
    sizes = {"sampling_offsets": 2 * samples, "attention_weights": samples, "value_proj": width, "output_proj": width}
    state = {f"a.{name}.weight": draw(f"{name}.weight", size, width) for name, size in sizes.items()}
    state |= {f"a.{name}.bias": draw(f"{name}.bias", size) for name, size in sizes.items()}
    query, feature = 0.5 * draw("query", 1, 4, width), draw("feature", 1, 8, width)
    references = torch.from_numpy(uniform("references", (4, 2)) / math.sqrt(12) + 0.5)
    attend = torch_deformable.Deformable(heads=count, points=points)
    found = attend(state, "a", query, references, feature, shapes)

    weights = {name: value.numpy() for name, value in state.items()}
    at = lambda layer, x: weights[f"a.{layer}.weight"] @ x + weights[f"a.{layer}.bias"]  # noqa: E731
    values = np.stack([at("value_proj", x) for x in feature[0].numpy()])
    maps = [values[:6].reshape(2, 3, width), values[6:].reshape(1, 2, width)]
    for q, x in enumerate(query[0].numpy()):
        offsets, logits, gathered = at("sampling_offsets", x), at("attention_weights", x), np.zeros(width)
        for head in range(count):
            mine = np.exp(logits[head * 6 : head * 6 + 6])
            channels = slice(head * 3, head * 3 + 3)
            for number, (level, point) in enumerate(itertools.product(range(2), range(points))):
                right, down = offsets[((head * 2 + level) * points + point) * 2 :][:2]
                height, wide = shapes[level]
                column, row = (
                    references[q, 0].item() * wide + right - 0.5,
                    references[q, 1].item() * height + down - 0.5,
                )
                for i, j in itertools.product(range(height), range(wide)):
                    near = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                    gathered[channels] += mine[number] / mine.sum() * near * maps[level][i, j, channels]
        np.testing.assert_allclose(found[0, q].numpy(), at("output_proj", gathered), rtol=1e-11, atol=1e-12)
