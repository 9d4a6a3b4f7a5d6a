import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from lape_jax.data import resample


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return load_sample_images().images


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [60, 100, 112, 150, 200, 240, 290, 400])
def test_fast_resizing_is_close_to_pillows(photos, side, interpolation):
    for photo in photos:
        image = photo[20 : 20 + side, 30 : 30 + side]
        exact = resample.resize(image, 100, 100, interpolation).astype(int)
        error = np.abs(resample.resize_fast(image, 100, interpolation) - exact)
        assert error.mean() < (0.01 if side in (100, 400) else 1.8)  # the same size, and too large for the fast way


def test_sampling_alone_would_not_be_close(photos, monkeypatch):
    monkeypatch.setattr(resample, "_LEAST", 10)
    image = photos[0][20:220, 30:230]
    exact = resample.resize(image, 100, 100).astype(int)
    assert np.abs(resample.resize_fast(image, 100, "bicubic") - exact).mean() > 4


def test_height_and_width_are_filtered_on_their_own(photos):
    image = photos[0][20:120, 30:230]  # only the width shrinks
    exact = resample.resize(image, 100, 100).astype(int)
    assert np.abs(resample.resize_fast(image, 100, "bicubic") - exact).mean() < 1.5
    assert np.abs(resample.resize_fast(image.swapaxes(0, 1), 100, "bicubic").swapaxes(0, 1) - exact).mean() < 1.5


def test_the_filter_makes_a_triangle_of_twice_the_width():
    # Sampled with a triangle of support 1 after (1/4, 1/2, 1/4), an image is seen through exactly one of support 2.
    np.testing.assert_allclose(resample._prefilter(2.0, "bilinear"), [0.25, 0.5, 0.25], atol=1e-6)
    for ratio in (1.1, 1.5, 2.7):
        taps = resample._prefilter(ratio, "bicubic")
        assert taps.sum() == pytest.approx(1)
        assert 0 < taps[0] == taps[2] < 1 / 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 2), (224, 1)])
def test_the_smallest_images(shape):
    image = np.full((*shape, 3), 9, np.uint8)
    np.testing.assert_array_equal(resample.resize_fast(image, 4, "bicubic"), np.full((4, 4, 3), 9))
