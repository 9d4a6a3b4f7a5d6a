import itertools

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from lape_jax.augment import three_augment
from lape_jax.augment.three_augment import CHANGES, Change, Jitter
from tests.augment.samples import assert_frequencies, images
from tests.quick import jit

KEYS = jax.random.split(jax.random.key(1), 20_000)
PEERS = {
    "grayscale": lambda image, sigma: image.convert("L").convert("RGB"),
    "solarize": lambda image, sigma: ImageOps.solarize(image),
    "blur": lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
}


def test_each_change_equals_pillow():
    apply = jit(three_augment.apply)
    for image, name, sigma in itertools.product(images()[:3], CHANGES, np.float32([0.1, 0.77, 1.9])):
        found = apply(image, Change(np.int32(CHANGES.index(name)), sigma))
        np.testing.assert_array_equal(found, np.asarray(PEERS[name](Image.fromarray(image), float(sigma))))


def test_changes_are_drawn_equally_often_and_sigmas_uniformly():
    kind, sigma = map(np.asarray, jit(jax.vmap(three_augment.draw))(KEYS))
    assert_frequencies(kind, [1, 1, 1])
    assert scipy.stats.kstest(sigma[kind == 2], scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_jitter_is_drawn_uniformly(strength):
    factors, order = map(np.asarray, jit(jax.vmap(lambda key: three_augment.draw_jitter(key, strength)))(KEYS))
    for values in factors.T:
        assert scipy.stats.kstest(values, scipy.stats.uniform(1 - strength, 2 * strength).cdf).pvalue > 1e-4
    assert (np.sort(order) == [0, 1, 2]).all()
    assert_frequencies(2 * order[:, 0] + (order[:, 1] > order[:, 2]), [1] * 6)
    assert abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.03


def test_jitter_equals_pillow_in_every_order():
    jitter = jit(three_augment.jitter)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = np.float32([0.71, 1.28, 0.83])
    for order in itertools.permutations(range(3)):
        image = expected = Image.fromarray(images()[1])
        for kind in order:
            expected = enhancers[kind](expected).enhance(float(factors[kind]))
        found = jitter(np.asarray(image), Jitter(factors, np.asarray(order)))
        np.testing.assert_array_equal(found, np.asarray(expected))
