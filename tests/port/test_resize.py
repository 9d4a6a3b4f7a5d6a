"""Tables for other grids: hand-computed values, and PyTorch's `interpolate`."""

import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.port.resize import resize_bias_table, resize_table


def draw(*shape):
    return np.random.default_rng(3).standard_normal(shape)


def test_bilinear_by_hand():
    """2 -> 4 columns: centres at -0.25, 0.25, 0.75, 1.25 of the old ones, which are held at the border."""
    table = np.asarray([[7.0], [1.0], [3.0]])
    resized = resize_table(table, (1, 2), (1, 4), extra_rows=1, method="bilinear")
    np.testing.assert_allclose(resized[:, 0], [7.0, 1.0, 1.5, 2.5, 3.0], rtol=1e-12)


def test_bicubic_by_hand():
    """2 -> 4 columns of [0, 1] with a = -0.75 and borders repeated; W(t) is Keys' kernel."""

    def kernel(t, a=-0.75):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    centres = [-0.25, 0.25, 0.75, 1.25]
    expected = [sum(kernel(x - i) * min(max(i, 0), 1) for i in range(-3, 5)) for x in centres]
    resized = resize_table(np.asarray([[0.0], [1.0]]), (1, 2), (1, 4))
    np.testing.assert_allclose(resized[:, 0], expected, rtol=1e-12, atol=1e-15)


def test_bias_tables_are_resized_over_their_offsets():
    table = np.arange(3.0)[:, None].repeat(3, axis=1).reshape(9, 1)  # of a 2 x 2 grid: 3 x 3 offsets, by row
    resized = resize_bias_table(table, (2, 2), (2, 3), method="bilinear").reshape(3, 5)
    np.testing.assert_allclose(resized, np.arange(3.0)[:, None].repeat(5, axis=1), rtol=1e-12)


def test_each_layer_on_its_own():
    table = draw(3, 1 + 4, 2)
    resized = resize_table(table, (2, 2), (3, 3), extra_rows=1)
    np.testing.assert_allclose(resized[1], resize_table(table[1], (2, 2), (3, 3), extra_rows=1), rtol=1e-12)


def test_misfits():
    with pytest.raises(UserError, match="table of 5 rows is not one of 2 tokens and 2 x 2 patches"):
        resize_table(draw(5, 2), (2, 2), (3, 3), extra_rows=2)
    with pytest.raises(UserError, match=r"method='cubic' .*bicubic"):
        resize_table(draw(4, 2), (2, 2), (3, 3), method="cubic")


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((5, 8), (11, 3))])
def test_as_pytorch(old, new, method, dtype):
    torch = pytest.importorskip("torch")
    table = 0.02 * draw(2 + old[0] * old[1], 6).astype(dtype)
    maps = torch.from_numpy(table[2:].reshape(1, *old, 6)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(maps, size=new, mode=method, align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    resized = resize_table(table, old, new, extra_rows=2, method=method)
    np.testing.assert_array_equal(resized[:2], table[:2])
    assert resized.dtype == dtype
    # In float32 the difference, up to 5e-8, is PyTorch's rounding of the positions and weights of the taps.
    np.testing.assert_allclose(resized[2:], expected, rtol=0, atol=1e-7 if dtype == np.float32 else 1e-14)
