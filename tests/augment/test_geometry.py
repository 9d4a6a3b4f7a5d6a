from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from lape_jax.augment.geometry import random_flip
from lape_jax.augment.operations import NAMES, OPERATIONS
from lape_jax.augment.warp import BICUBIC, BILINEAR, NEAREST, sample
from tests import quick
from tests.augment.samples import assert_frequencies
from tests.augment.samples import images as sample_images
from tests.quick import jit

flip = jit(random_flip)
FILL = (124, 116, 104)
PILLOW_METHODS = {
    NEAREST: Image.Resampling.NEAREST,
    BILINEAR: Image.Resampling.BILINEAR,
    BICUBIC: Image.Resampling.BICUBIC,
}
MATRICES = {  # the greatest argument of RandAugment, and Pillow's matrix
    "shear_x": (0.3, lambda image, factor: (1, factor, 0, 0, 1, 0)),
    "shear_y": (0.3, lambda image, factor: (1, 0, 0, factor, 1, 0)),
    "translate_x": (0.45, lambda image, fraction: (1, 0, fraction * image.width, 0, 1, 0)),
    "translate_y": (0.45, lambda image, fraction: (1, 0, 0, 0, 1, fraction * image.height)),
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (400, 2, 3, 2), np.uint8)


def test_flips_half_of_the_images_left_to_right_each_by_its_key(images):
    keys = jax.random.split(jax.random.key(0), len(images))
    flipped = np.asarray(flip(images, keys))
    assert flipped.dtype == np.uint8
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_array_equal(flip(images[100:], keys[100:]), flipped[100:])
    assert (np.asarray(flip(images, keys[::-1])) != flipped).any()
    pixels = np.resize(np.asarray([0, 1], np.uint8), (20_000, 1, 2, 1))
    assert_frequencies(flip(pixels, jax.random.split(jax.random.key(1), 20_000))[:, 0, 0, 0], [1, 1])


def moved(name, image, argument, method):
    return sample(image, OPERATIONS[NAMES.index(name)].place(argument, *image.shape[:2]), FILL, method)


def pillow(name, image, argument, method):
    image, method = Image.fromarray(image), PILLOW_METHODS[method]
    if name == "rotate":
        return np.asarray(image.rotate(argument, method, fillcolor=FILL))
    matrix = MATRICES[name][1](image, argument)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix, method, fillcolor=FILL))


@pytest.mark.parametrize("name", quick.first(0, ["rotate", *MATRICES]))
def test_agrees_with_pillow(name):
    """Every pixel within 1 grey level, nearly all equal."""
    greatest = 30 if name == "rotate" else MATRICES[name][0]
    compute = jit(jax.vmap(partial(moved, name), (0, None, None)))
    batch = sample_images()[:3]
    for method in (NEAREST, BILINEAR, BICUBIC):
        equal = []
        for part in [0.0, 0.07, -0.31, 0.5, 1.0, -1.0, *np.random.default_rng(1).uniform(-1, 1, 3)]:
            argument = part * greatest
            for found, image in zip(np.asarray(compute(batch, argument, method)), batch, strict=True):
                difference = np.abs(found.astype(int) - pillow(name, image, argument, method))
                assert difference.max() <= 1, f"{name} {argument} {method}"
                equal.append((difference == 0).mean())
        assert min(equal) > 0.95  # in the worst images, float64 lands on the other side of many whole numbers
        assert np.mean(equal) > 0.99
        assert np.median(equal) > 0.999
        assert method != NEAREST or min(equal) == 1


def test_rotates_about_the_middle_of_images_of_any_shape():
    image = sample_images()[0][:20, :35]
    rotate = jit(lambda image, degrees: moved("rotate", image, degrees, BICUBIC))
    for degrees in (-45.0, 15.0, 60.0):
        difference = np.abs(np.asarray(rotate(image, degrees)).astype(int) - pillow("rotate", image, degrees, BICUBIC))
        assert difference.max() <= 1
