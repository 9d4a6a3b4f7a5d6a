"""Random erasing: one box of noise, distributed as timm's."""

import functools
import random

import jax
import numpy as np
import pytest

from lape_jax.augment import erase
from tests.augment.timm_peer import assert_same_distribution, load
from tests.quick import jit

SHADE = 3.5


def erased(prob, count, height, width, channels=3, seed=0):
    images = np.full((count, height, width, channels), SHADE, np.float32)
    images *= 1 + np.arange(channels, dtype=np.float32)
    keys = jax.random.split(jax.random.key(seed), count)
    return images, np.asarray(jit(functools.partial(erase.random_erase, prob=prob))(images, keys))


def boxes(images, found):
    """(n, 4) top, left, height, width of the boxes, which must be rectangles in which every value has changed."""
    changed = (images != found).all(axis=3)
    np.testing.assert_array_equal((images != found).any(axis=3), changed)
    rows, columns = changed.any(axis=2), changed.any(axis=1)
    box = np.stack([rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)], axis=1)
    last = box[:, :2] + box[:, 2:] - 1
    for line, end in ((rows, last[:, 0]), (columns, last[:, 1])):
        assert (line.shape[1] - 1 - line[:, ::-1].argmax(axis=1) == end)[line.any(axis=1)].all()
    np.testing.assert_array_equal(changed.sum(axis=(1, 2)), box[:, 2] * box[:, 3])
    return box[changed.any(axis=(1, 2))]


@functools.cache
def quarter():
    return erased(0.25, 4000, 20, 28)


def test_a_quarter_of_the_images_loses_a_box():
    found = boxes(*quarter())
    assert 900 < len(found) < 1100  # standard deviation 27
    areas = found[:, 2] * found[:, 3] / (20 * 28)  # of whole pixels: 2 % are 11.2 of them, a third 186.7
    assert 0.015 < areas.min() < 0.025
    assert 0.32 < areas.max() < 0.35
    assert found[:, 2].max() < 20
    assert found[:, 3].max() < 28


def test_the_noise_is_standard_normal_in_each_pixel_and_channel():
    images, found = quarter()
    noise = found[images != found].reshape(-1, 3).astype(np.float64)
    assert len(noise) > 50000
    # Five standard errors of the mean, the variance, and the correlation of the channels.
    error = 5 / np.sqrt(len(noise))
    assert np.abs(noise.mean(axis=0)).max() < error
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=error * np.sqrt(2))
    assert_same_distribution(noise[:, 0], np.random.default_rng(0).normal(size=20000))
    assert np.unique(noise).size > 0.9 * noise.size  # neighbours and images do not share their noise


@pytest.mark.parametrize(("prob", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_probability_zero_and_one(prob, share):
    assert len(boxes(*erased(prob, 50, 32, 32))) == share * 50


def test_digits_of_one_channel():
    images, found = erased(1.0, 200, 8, 8, channels=1)
    assert len(boxes(images, found)) == 200


def test_nothing_is_erased_where_no_box_fits():
    images, found = erased(1.0, 20, 1, 64)  # a box lower than one row
    np.testing.assert_array_equal(images, found)


@pytest.mark.peer
def test_boxes_are_distributed_as_timms():
    module = load("random_erasing")
    torch = pytest.importorskip("torch")
    height, width, count = 20, 28, 8000
    random.seed(0)
    torch.manual_seed(0)
    transform = module.RandomErasing(probability=1.0, mode="pixel", device="cpu")
    blank = torch.full((count, 1, height, width), SHADE)
    theirs = boxes(blank.permute(0, 2, 3, 1).numpy(), transform(blank.clone()).permute(0, 2, 3, 1).numpy())
    ours = boxes(*erased(1.0, count, height, width, channels=1))
    assert abs(len(ours) - len(theirs)) < 0.01 * count
    for quantity in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] / (height - b[:, 2]),
        lambda b: b[:, 1] / (width - b[:, 3]),
    ):
        assert_same_distribution(quantity(ours), quantity(theirs))
