import jax
import numpy as np
import pytest
from PIL import Image

from lape_jax.augment import warp
from lape_jax.augment.geometry import rotation
from lape_jax.augment.warp import BICUBIC, BILINEAR, NEAREST, Affine
from lape_jax.errors import UserError
from tests.augment.samples import images
from tests.quick import jit

METHODS = {"nearest": NEAREST, "bilinear": BILINEAR, "bicubic": BICUBIC}
ROW = np.asarray([[10, 20, 40, 80]], np.uint8)[..., None]

sample = jit(lambda image, affine, method: warp.sample(image, affine, (5,), method))


@pytest.mark.parametrize("method", METHODS)
def test_no_displacement_is_the_image_itself(method):
    image = images()[0]
    found = jit(lambda image: warp.sample(image, Affine(), (1, 2, 3), METHODS[method]))(image)
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("method", "shift", "expected"),
    [
        ("nearest", 1, [20, 40, 80, 5]),
        ("nearest", -0.5, [10, 20, 40, 80]),  # a source at exactly x is pixel x
        ("nearest", -0.6, [5, 10, 20, 40]),
        ("bilinear", 0.25, [12, 25, 50, 80]),  # 12.5 is truncated, the border repeated
        ("bilinear", -0.5, [10, 15, 30, 60]),
        ("bilinear", 0.5, [15, 30, 60, 5]),  # a source at exactly the width is outside
        ("bicubic", 0.5, [12, 26, 62, 5]),  # (-10 + 5 * 10 + 5 * 20 - 40) / 8, ...
        ("bicubic", 0, [10, 20, 40, 80]),
    ],
)
def test_shifts_by_hand(method, shift, expected):
    found = sample(ROW, Affine(tx=shift), METHODS[method])
    np.testing.assert_array_equal(np.asarray(found).ravel(), expected)


def test_cubic_overshoot_is_clipped():
    row = np.asarray([[0, 255, 0, 255, 255, 0]], np.uint8)[..., None]
    found = np.asarray(sample(row, Affine(tx=0.5), BICUBIC)).ravel()
    expected = Image.fromarray(row[..., 0]).transform(
        (6, 1), Image.Transform.AFFINE, (1, 0, 0.5, 0, 1, 0), 3, fillcolor=5
    )
    np.testing.assert_array_equal(found, np.asarray(expected).ravel())
    assert found.max() == 255


@pytest.mark.parametrize(
    "size", [(5, 9), *(pytest.param(size, marks=pytest.mark.slow) for size in ((53, 80), (16, 16)))]
)
def test_the_form_for_tpus_agrees(size):
    image, fill = images()[0][: size[0], : size[1]], np.asarray((9, 99, 199), np.uint8)
    by_pixels, by_tiles = jit(warp._in_image), jit(warp._by_tiles)
    for affine in (rotation(30.0, *size), rotation(-17.3, *size), Affine(dxy=0.3), Affine(dyx=-0.21), Affine(tx=-7.7)):
        affine = Affine(*map(np.float32, affine))
        for method in (NEAREST, BILINEAR, BICUBIC):
            arguments = image, affine, fill, np.int32(method)
            expected, found = (np.asarray(form(*arguments)).astype(int) for form in (by_pixels, by_tiles))
            assert np.abs(found - expected).max() <= 1
            assert (found != expected).mean() < (0.02 if method != NEAREST else 1e-9)


def test_the_form_for_tpus_keeps_flat_areas():
    flat, fill = np.full((40, 40, 1), 77, np.uint8), np.asarray((77,), np.uint8)
    by_tiles, affine = jit(warp._by_tiles), Affine(*map(np.float32, rotation(23.0, 40, 40)))
    for method in (BILINEAR, BICUBIC):
        np.testing.assert_array_equal(by_tiles(flat, affine, fill, np.int32(method)), flat)


def test_fill_must_have_a_value_per_channel():
    with pytest.raises(UserError, match="3 channels, but the image has 1"):
        warp.sample(jax.numpy.zeros((2, 2, 1), np.uint8), Affine(), (1, 2, 3), NEAREST)
