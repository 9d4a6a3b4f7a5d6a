import jax
import numpy as np
import pytest

from lape_jax.augment.geometry import random_flip
from tests.quick import jit

flip = jit(random_flip)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (400, 2, 3, 2), np.uint8)


def test_flips_half_of_the_images_left_to_right(images):
    flipped = np.asarray(flip(images, jax.random.key(0)))
    assert flipped.dtype == np.uint8
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_flips_are_a_function_of_the_key(images):
    one, again, other = (np.asarray(flip(images, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
