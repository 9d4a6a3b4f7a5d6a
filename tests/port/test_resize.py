"""Tables for other grids: hand-computed values, and PyTorch's `interpolate`."""

import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.port.resize import recolour_kernel, resize_bias_table, resize_kernel, resize_table


def draw(*shape):
    return np.random.default_rng(3).standard_normal(shape)


def test_bilinear_by_hand():
    """2 -> 4 columns: centres at -0.25, 0.25, 0.75, 1.25 of the old ones, which are held at the border."""
    table = np.asarray([[7.0], [1.0], [3.0]])
    resized = resize_table(table, (1, 2), (1, 4), num_prefix_tokens=1, method="bilinear")
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
    resized = resize_table(table, (2, 2), (3, 3), num_prefix_tokens=1)
    np.testing.assert_allclose(resized[1], resize_table(table[1], (2, 2), (3, 3), num_prefix_tokens=1), rtol=1e-12)


def test_misfits():
    with pytest.raises(UserError, match="table of 5 rows is not one of 2 tokens and 2 x 2 patches"):
        resize_table(draw(5, 2), (2, 2), (3, 3), num_prefix_tokens=2)
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
    resized = resize_table(table, old, new, num_prefix_tokens=2, method=method)
    np.testing.assert_array_equal(resized[:2], table[:2])
    assert resized.dtype == dtype
    # In float32 the difference, up to 5e-8, is PyTorch's rounding of the positions and weights of the taps.
    np.testing.assert_allclose(resized[2:], expected, rtol=0, atol=1e-7 if dtype == np.float32 else 1e-14)


# ---- Kernels of patches ----------------------------------------------------------------------------------------------


def bilinear(old, new):
    """The matrix (new, old) of bilinear resizing without antialiasing, from its definition."""
    matrix = np.zeros((new, old))
    for row in range(new):
        at = min(max((row + 0.5) * old / new - 0.5, 0), old - 1)
        below = min(int(at), max(old - 2, 0))
        matrix[row, below] += 1 - (at - below)
        if old > 1:
            matrix[row, below + 1] += at - below
    return matrix


def test_kernels_by_hand():
    """A pixel that becomes four has a quarter of its weight in each; two that become their mean, the sum of theirs."""
    np.testing.assert_allclose(
        resize_kernel(np.full((1, 1, 1, 1), 8.0), (2, 2)), np.full((2, 2, 1, 1), 2.0), rtol=1e-12
    )
    kernel = np.asarray([1.0, 3.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(resize_kernel(kernel, (1, 1)).item(), 4.0, rtol=1e-12)  # <B x, 4> for x = (1, 1)
    np.testing.assert_array_equal(resize_kernel(kernel, (1, 2)), kernel)


@pytest.mark.parametrize(("old", "new"), [((2, 2), (3, 5)), ((4, 4), (8, 8)), ((7, 16), (14, 16))])
def test_larger_patches_have_the_same_embedding(old, new):
    kernel, patches = draw(*old, 3, 5), draw(6, *old, 3)
    rows, columns = (bilinear(*pair) for pair in zip(old, new, strict=True))
    resized = np.einsum("ri,sj,pijc->prsc", rows, columns, patches)
    embedded = np.einsum("prsc,rscd->pd", resized, resize_kernel(kernel, new))
    np.testing.assert_allclose(embedded, np.einsum("pijc,ijcd->pd", patches, kernel), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (2, 2)), ((16, 16), (8, 8)), ((8, 6), (5, 9))])
def test_smaller_patches_have_the_nearest_embedding(old, new):
    """Over patches of independent pixels: the least squares of B^T w' = w, here over the whole patch at once."""
    kernel = draw(*old, 2, 3)
    matrix = np.kron(*(bilinear(*pair) for pair in zip(old, new, strict=True)))
    expected, *_ = np.linalg.lstsq(matrix.T, kernel.reshape(-1, 6), rcond=None)
    np.testing.assert_allclose(resize_kernel(kernel, new).reshape(-1, 6), expected, rtol=1e-9, atol=1e-9)


def test_kernels_keep_their_type():
    for dtype in (np.float16, np.float32, np.float64):
        assert resize_kernel(draw(4, 4, 3, 2).astype(dtype), (8, 8)).dtype == dtype
        assert recolour_kernel(draw(4, 4, 3, 2).astype(dtype), 1).dtype == dtype


def test_colours_by_hand():
    kernel = np.asarray([1.0, 2.0, 6.0]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(recolour_kernel(kernel, 1), [[[[9.0]]]])
    np.testing.assert_allclose(recolour_kernel(kernel[:, :, 2:], 3).ravel(), [2.0, 2.0, 2.0], rtol=1e-15)
    for given, wanted in ((3, 4), (4, 3), (2, 1), (1, 2)):
        with pytest.raises(UserError, match=f"images of {given} channels and the model for {wanted}: only grey"):
            recolour_kernel(draw(1, 1, given, 2), wanted)


@pytest.mark.peer
@pytest.mark.parametrize("new", [(8, 8), (14, 12), (32, 32)])
def test_kernels_as_in_timm(new):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    kernel = draw(16, 16, 3, 5)
    options = {"interpolation": "bilinear", "antialias": False}
    expected = timm.layers.resample_patch_embed(torch.from_numpy(kernel.transpose(3, 2, 0, 1)), list(new), **options)
    np.testing.assert_allclose(resize_kernel(kernel, new), expected.numpy().transpose(2, 3, 1, 0), rtol=1e-4, atol=1e-4)
