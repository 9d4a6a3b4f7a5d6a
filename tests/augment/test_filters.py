import jax
import numpy as np
import pytest
from PIL import ImageEnhance, ImageFilter

from lape_jax.augment.filters import gaussian_blur, sharpness
from tests.augment.samples import from_pillow, images, to_pillow
from tests.quick import jit


@pytest.mark.parametrize("channels", [3, 1])
def test_sharpness_equals_pillow(channels):
    batch = images()[..., :channels]
    compute = jax.jit(jax.vmap(sharpness, (0, None)))
    for factor in np.float32([0, 0.1, 0.19, 0.5, 1, 1.37, 1.81, 1.9]):
        for found, image in zip(compute(batch, factor), batch, strict=True):
            expected = ImageEnhance.Sharpness(to_pillow(image)).enhance(float(factor))
            np.testing.assert_array_equal(found, from_pillow(expected))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 2), (3, 3)])
def test_sharpness_of_tiny_images_equals_pillow(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = ImageEnhance.Sharpness(to_pillow(image)).enhance(1.75)
    np.testing.assert_array_equal(jit(sharpness)(image, 1.75), from_pillow(expected))


@pytest.mark.parametrize("channels", [3, 1])
def test_gaussian_blur_equals_pillow(channels):
    batch = images()[:4, ..., :channels]
    compute = jax.jit(jax.vmap(gaussian_blur, (0, None)))
    sigmas = [0.1, 0.3, 0.7, 1.0, 1.3, 1.41, 1.42, 1.5, 2.0, 2.4, *np.random.default_rng(0).uniform(0.1, 2, 12)]
    for sigma in np.float32(sigmas):
        for found, image in zip(compute(batch, sigma), batch, strict=True):
            expected = to_pillow(image).filter(ImageFilter.GaussianBlur(float(sigma)))
            np.testing.assert_array_equal(found, from_pillow(expected), f"sigma {sigma}")


def test_gaussian_blur_of_an_image_smaller_than_the_filter_equals_pillow():
    image = np.random.default_rng(0).integers(0, 256, (2, 1, 3), np.uint8)
    expected = to_pillow(image).filter(ImageFilter.GaussianBlur(2))
    np.testing.assert_array_equal(jit(gaussian_blur)(image, 2.0), from_pillow(expected))
