"""The yardstick of UperNet itself, against values worked out by hand and PyTorch's own layers."""

import math

import numpy as np
import pytest

from tests.reference.cases import uniform
from tests.reference.vit_adapter_states import learned, random_state, tiny, upernet_shapes

torch = pytest.importorskip("torch")
from tests.reference import torch_upernet  # noqa: E402  (needs torch)
from tests.reference.torch_deformable import Deformable  # noqa: E402
from tests.reference.torch_vit_adapter import Mode, tensors  # noqa: E402

pytestmark = pytest.mark.peer

OPTIONS = {"depth": 8, "heads": 2, "attend": Deformable(heads=2, points=3)}


def heads(grad: bool = False) -> dict:
    return tensors(random_state(upernet_shapes(tiny()), (4, 6), deform_heads=2), requires_grad=grad)


def images(batch: int = 2):
    return draw("images", batch, 3, 64, 96)


def draw(name: str, *shape: int):
    return torch.from_numpy(uniform(name, shape))


def maximum(tensor) -> float:
    return float(tensor.detach().abs().max())


def test_every_parameter_of_the_upernet_gets_a_gradient_from_the_losses():
    state, statistics = heads(grad=True), {}
    pixels, masks, aux = torch_upernet.upernet(state, images(), train=True, statistics=statistics, **OPTIONS)
    assert [tuple(x.shape) for x in (pixels, masks, aux)] == [(2, 5, 64, 96), (2, 5, 16, 24), (2, 5, 4, 6)]
    assert len(statistics) == 3 * 23
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (2, 64, 96)))
    total, first, second = torch_upernet.losses(masks, aux, torch.where(labels == 5, 255, labels))
    assert float(total.detach()) == pytest.approx(float((first + 0.4 * second).detach()), rel=1e-15)
    total.backward()
    assert all(maximum(state[name].grad) > 0 for name in learned(upernet_shapes(tiny())))


def test_pixels_are_the_masks_resized_by_hand():
    # A ramp along a row, twice as large: half-pixel centres at -.25, .25, .75, ... of the old, clamped.
    found = torch_upernet.resize(torch.tensor([[0.0, 4.0, 8.0]])[None, None], (1, 6)).flatten()
    np.testing.assert_allclose(found, [0, 1, 3, 5, 7, 8])


def test_adaptive_pool_with_fewer_rows_than_bins():
    # Three rows, six bins: each row stands twice. Four columns, six bins: columns 0, 0-1, 1, 2, 2-3, 3.
    x = torch.tensor([[0.0, 10, 20, 30], [1, 11, 21, 31], [2, 12, 22, 32]], dtype=torch.float64)[None, None]
    row = np.array([0.0, 5, 10, 20, 25, 30])
    found = torch_upernet.adaptive_pool(x, 6)[0, 0].numpy()
    np.testing.assert_allclose(found, np.array([0, 0, 1, 1, 2, 2])[:, None] + row, rtol=1e-15)
    np.testing.assert_allclose(torch_upernet.adaptive_pool(x, 2)[0, 0], [[5.5, 25.5], [6.5, 26.5]])  # rows 0-1, 1-2


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (16, 16)])
def test_adaptive_pool_is_that_of_pytorch(size):
    x = draw("x", 2, 3, *size)
    for bins in torch_upernet.POOLS:
        expected = torch.nn.functional.adaptive_avg_pool2d(x, bins)
        assert maximum(torch_upernet.adaptive_pool(x, bins) - expected) < 1e-14


def test_batch_statistics_of_two_images_pooled_to_one_pixel():
    # Two values a channel: one becomes -1, one 1, but for eps. One image alone has no variance.
    state = heads()
    name, x = "decode_head.psp_modules.0.1", draw("top", 2, 16, 1, 1)
    found = torch_upernet.conv_module(state, name, x, Mode(train=True))[..., 0, 0]
    weight, bias = state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]
    values = x[..., 0, 0] @ state[f"{name}.conv.weight"][..., 0, 0].T
    half = (values[0] - values[1]) / 2
    side = half / torch.sqrt(half**2 + 1e-5)
    expected = torch.stack([weight * side + bias, -weight * side + bias]).clamp(min=0)
    assert maximum(found - expected) < 1e-12
    with pytest.raises(ValueError, match="no variance"):
        torch_upernet.upernet(state, images(1), train=True, **OPTIONS)


def test_ignored_pixels_add_nothing_and_count_in_the_mean():
    logits = torch.tensor([[0.0, 0.0, 5.0, 1.0], [0.0, math.log(3), 2.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 255, 255]).reshape(1, 2, 2)
    found = torch_upernet.cross_entropy(logits.reshape(1, 2, 2, 2), labels)
    assert float(found) == pytest.approx((math.log(2) + math.log(4 / 3)) / 4, rel=1e-14)
    assert float(torch_upernet.cross_entropy(logits.reshape(1, 2, 2, 2), torch.full((1, 2, 2), 255))) == 0
    logits, labels = draw("logits", 2, 5, 6, 7), torch.from_numpy(np.random.default_rng(1).integers(0, 5, (2, 6, 7)))
    labels[:, 2:4] = 255
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=255).mean()
    assert float(torch_upernet.cross_entropy(logits, labels)) == pytest.approx(float(expected), rel=1e-14)
