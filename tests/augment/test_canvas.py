"""Crops from canvases: the boxes of the crops from whole images, and the host's pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from lape_jax.augment import canvas, crop
from lape_jax.data import canvas as canvases
from lape_jax.data import decode
from lape_jax.errors import UserError
from tests.quick import jit

SIDE, SIZE = 48, 32
SHAPES = [(48, 36), (27, 48), (48, 48), (20, 31), (1, 48), (48, 2), (9, 9), (40, 47)]
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photos():
    """Pieces of real photographs, of all SHAPES, the canvases that they lie on, and their sizes."""
    found = []
    for number, (height, width) in enumerate(SHAPES):
        photo = load_sample_images().images[number % 2]
        found.append(np.ascontiguousarray(photo[50 : 50 + 4 * height : 4, 100 : 100 + 4 * width : 4]))
    laid = np.stack([canvases.whole(photo, SIDE) for photo in found])
    return found, laid, np.array(SHAPES, np.int32)


def assert_close(found, expected):
    """Within one grey level in 99 of 100 pixels, and nowhere far off."""
    far = np.abs(np.asarray(found).astype(int) - np.stack(expected))
    assert (far <= 1).mean() >= 0.99
    assert (far == 0).mean() > 0.95
    assert far.max() < 8


def boxes_of(keys, sizes):
    def draw(key, size):
        draws = jax.random.uniform(key, (crop.DRAWS + 1, 2))
        return crop.crop_box(draws[:-1], size[0], size[1], SCALE, RATIO)

    return np.stack(jax.vmap(draw)(keys, sizes), axis=1)


def test_random_crops_are_pillows_of_the_same_boxes():
    found, laid, sizes = photos()
    keys = jax.random.split(jax.random.key(1), 3 * len(found))
    laid, sizes = np.repeat(laid, 3, axis=0), np.repeat(sizes, 3, axis=0)
    options = {"size": SIZE, "scale": SCALE, "ratio": RATIO, "interpolation": "bicubic"}
    seen = jit(functools.partial(canvas.random_resized_crop, **options))(laid, sizes, keys)
    expected = []
    for number, (top, left, height, width) in enumerate(boxes_of(keys, sizes).tolist()):
        assert top + height <= sizes[number, 0]
        assert left + width <= sizes[number, 1]
        box = (left, top, left + width, top + height)
        picture = Image.fromarray(found[number // 3]).crop(box)
        expected.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    assert_close(seen, expected)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_whole_canvases_are_cropped_as_images_of_that_size(interpolation):
    images = load_sample_images().images[0][None, :SIDE, :SIDE].repeat(16, 0)
    laid = np.stack([canvases.whole(image, SIDE) for image in images])
    keys = jax.random.split(jax.random.key(2), 16)
    options = {"size": SIZE, "scale": SCALE, "ratio": RATIO, "interpolation": interpolation}
    sizes = np.full((16, 2), SIDE, np.int32)
    seen = jit(functools.partial(canvas.random_resized_crop, **options))(laid, sizes, keys)
    assert_close(seen, np.asarray(jit(functools.partial(crop.random_resized_crop, **options))(images, keys)))


@pytest.mark.parametrize("crop_ratio", [0.875, pytest.param(1.0, marks=pytest.mark.slow)])
def test_evaluation_crops_are_the_hosts(crop_ratio):
    found, laid, sizes = photos()
    seen = jit(functools.partial(canvas.eval_crop, size=SIZE, crop_ratio=crop_ratio))(laid, sizes)
    assert_close(seen, [decode.eval_crop(photo, SIZE, crop_ratio) for photo in found])


def test_what_lies_beside_an_image_does_not_matter_and_no_image_is_no_nan():
    _, laid, sizes = photos()
    dirty = laid.copy()
    for image, (height, width) in zip(dirty, sizes, strict=True):
        image.reshape(SIDE, 3, SIDE)[height:] = 255
        image.reshape(SIDE, 3, SIDE)[:, :, width:] = 255
    sizes[0], dirty[0], laid[0] = 0, 0, 0
    evaluate = jit(functools.partial(canvas.eval_crop, size=SIZE, crop_ratio=0.875))
    seen = np.asarray(evaluate(laid, sizes))
    np.testing.assert_array_equal(evaluate(dirty, sizes), seen)
    assert not seen[0].any()


def test_weights_add_up_to_one_and_stay_inside():
    span = canvas.Span(jnp.int32(5), jnp.int32(30), jnp.int32(11), jnp.int32(2))
    found = np.asarray(canvas.weights(span, SIDE, 8, jnp.bool_(True)))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert not found[:, :5].any()
    assert not found[:, 35:].any()


def test_unknown_interpolation_is_a_user_error():
    _, laid, sizes = photos()
    keys = jax.random.split(jax.random.key(0), len(laid))
    with pytest.raises(UserError, match=r"'cubic' is not one of .*did you mean 'bicubic'"):
        canvas.random_resized_crop(
            jnp.asarray(laid), jnp.asarray(sizes), keys, size=8, scale=SCALE, ratio=RATIO, interpolation="cubic"
        )
