import jax
import numpy as np
import pytest
from PIL import ImageOps

from lape_jax.augment import histogram
from tests.augment.samples import from_pillow, images, to_pillow
from tests.quick import jit

PEERS = {"equalize": ImageOps.equalize, "autocontrast": ImageOps.autocontrast}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", PEERS)
def test_equals_pillow(name, channels):
    compute = jax.jit(getattr(histogram, name))
    for image in images()[..., :channels]:
        np.testing.assert_array_equal(compute(image), from_pillow(PEERS[name](to_pillow(image))))


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (16, 16), (17, 16)])
@pytest.mark.parametrize("name", PEERS)
def test_small_images_equal_pillow(name, shape):
    compute = jit(getattr(histogram, name))
    random = np.random.default_rng(0)
    for greatest in (1, 40, 256):
        image = random.integers(0, greatest, (*shape, 1), np.uint8)
        np.testing.assert_array_equal(compute(image), from_pillow(PEERS[name](to_pillow(image))))


def test_equalize_clips_what_exceeds_255():
    values = (
        np.concatenate([np.arange(255), np.arange(17)]).astype(np.uint8).reshape(16, 17, 1)
    )  # one step is one pixel
    found = jit(histogram.equalize)(values)
    np.testing.assert_array_equal(found, from_pillow(ImageOps.equalize(to_pillow(values))))
    assert found.max() == 255


def test_autocontrast_of_every_range_as_float64_has_it():
    low, high = np.triu_indices(256, 1)
    found = np.asarray(jax.jit(jax.vmap(histogram.stretching))(low, high))
    scale = 255.0 / (high - low)
    values = np.arange(256)
    expected = np.floor(values * scale[:, None] + (-low * scale)[:, None])
    inside = (values >= low[:, None]) & (values <= high[:, None])
    np.testing.assert_array_equal(found[inside], expected[inside])


def test_autocontrast_where_float64_falls_short_equals_pillow():
    compute = jit(histogram.autocontrast)
    for low, high in ((0, 25), (0, 105), (3, 120), (40, 90)):
        image = np.resize(np.arange(low, high + 1, dtype=np.uint8), (11, 12, 1))
        np.testing.assert_array_equal(compute(image), from_pillow(ImageOps.autocontrast(to_pillow(image))))


@pytest.mark.parametrize("form", [histogram.histogram, histogram._histogram_by_product])
def test_histogram_counts(form):
    for image in images()[:4]:
        counts = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
        np.testing.assert_array_equal(jit(form)(image), counts)


@pytest.mark.parametrize("form", [histogram.lookup, histogram._lookup_by_product])
def test_lookup_reads_the_table_of_the_channel(form):
    tables = np.random.default_rng(0).integers(0, 256, (3, 256), np.uint8)
    image = images()[0]
    expected = np.stack([tables[channel][image[..., channel]] for channel in range(3)], axis=-1)
    np.testing.assert_array_equal(jit(form)(tables, image), expected)
