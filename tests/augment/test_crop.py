"""Crops: pixels bit for bit as Pillow's, boxes distributed as timm's."""

import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from lape_jax.augment import crop
from lape_jax.errors import UserError
from tests import quick
from tests.augment.samples import assert_frequencies
from tests.augment.timm_peer import assert_same_distribution
from tests.quick import jit

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pillow(image, box, size, name):
    top, left, height, width = (int(side) for side in box)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = picture.crop((left, top, left + width, top + height))
    if height > size:  # some versions of Pillow then begin with the columns; this is the order of the others
        picture = picture.resize((size, height), PILLOW[name])
    return np.asarray(picture.resize((size, size), PILLOW[name])).reshape(size, size, -1)


def photos(count, height, width, channels=3):
    """Pieces of real photographs."""
    rng = np.random.default_rng(0)
    pictures = load_sample_images().images
    pieces = np.empty((count, height, width, channels), np.uint8)
    for i in range(count):
        picture = pictures[i % len(pictures)]
        top, left = (rng.integers(0, side - piece) for side, piece in zip(picture.shape, (height, width), strict=False))
        pieces[i] = picture[top : top + height, left : left + width, :channels]
    return pieces


@pytest.mark.parametrize(
    ("height", "width", "channels", "size"),
    quick.first(
        3, [(40, 56, 3, 24), (9, 11, 3, 40), (32, 32, 1, 32), (32, 32, 3, 32), (97, 64, 3, 5), (256, 256, 3, 224)]
    ),
)
def test_pixels_are_pillows_bit_for_bit(height, width, channels, size):
    count = 256 if size < 100 else 4
    images = photos(count, height, width, channels)
    # Saturated noise, where the cubic's overshoot is clipped, in every third image.
    rng = np.random.default_rng(1)
    images[::3] = 255 * rng.integers(0, 2, images[::3].shape, np.uint8)
    heights, widths = rng.integers(1, height + 1, count), rng.integers(1, width + 1, count)
    heights[:2], widths[:2] = (1, height), (1, width)  # one pixel, and the whole image
    tops, lefts = rng.integers(0, height - heights + 1), rng.integers(0, width - widths + 1)
    boxes = crop.Box(*(jnp.asarray(side) for side in (tops, lefts, heights, widths)))
    filters = ("bicubic", "bilinear")
    resize = jit(functools.partial(crop.resize_boxes, size=size, filters=filters))
    found = np.asarray(resize(images, boxes, jnp.arange(count) % 2))
    for i in range(count):
        expected = pillow(images[i], [side[i] for side in boxes], size, filters[i % 2])
        np.testing.assert_array_equal(found[i], expected, err_msg=str([int(side[i]) for side in boxes]))


def timm_box(height, width, scale, ratio):
    """timm's rule for the box of a random-resized crop, in Python's arithmetic."""
    for _ in range(10):
        area = random.uniform(*scale) * height * width
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def draw_boxes(height, width, scale, ratio, count):
    draws = np.random.default_rng(0).random((count, crop.DRAWS, 2), np.float32)
    draw = jax.vmap(lambda draws: crop.crop_box(draws, height, width, scale, ratio))
    return np.stack(jit(draw)(draws), axis=1)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.8, 1.0), (3 / 4, 4 / 3)),  # CIFAR: many draws do not fit
        (224, 224, (0.08, 1.0), (3 / 4, 4 / 3)),  # ImageNet
        (30, 90, (0.3, 0.9), (0.5, 2.0)),  # one in three fits, so that some take the centre
    ],
)
def test_boxes_are_distributed_as_timms(height, width, scale, ratio):
    ours = draw_boxes(height, width, scale, ratio, 6000)
    random.seed(0)
    theirs = np.asarray([timm_box(height, width, scale, ratio) for _ in range(6000)])
    for boxes in (ours, theirs):
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()
    for quantity in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0] / np.maximum(height - b[:, 2], 1),
        lambda b: b[:, 1] / np.maximum(width - b[:, 3], 1),
    ):
        assert_same_distribution(quantity(ours), quantity(theirs))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (100, 10, (43, 0, 13, 10)),  # 10 / (3/4) = 13.3 rows
        (10, 100, (0, 43, 10, 13)),
        (12, 9, (0, 0, 12, 9)),  # its own ratio is allowed
    ],
)
def test_the_centre_is_taken_where_nothing_fits(height, width, box):
    # Twice the image's area, or the whole of an image that is too long, fits in no try.
    scale = (2.0, 2.0) if height == 12 else (1.0, 1.0)
    np.testing.assert_array_equal(draw_boxes(height, width, scale, (3 / 4, 4 / 3), 4), [box] * 4)


@functools.cache
def cropped(interpolation, count=64):
    keys = jax.random.split(jax.random.key(7), count)
    images = photos(count, 32, 32)
    transform = functools.partial(
        crop.random_resized_crop, size=32, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), interpolation=interpolation
    )
    return images, np.asarray(jit(transform)(images, keys))


def matches(images, found, name):
    """For each image, whether its crop is what Pillow makes of the image's own box with this filter."""
    keys = jax.random.split(jax.random.key(7), len(images))
    draws = jax.vmap(lambda key: jax.random.uniform(key, (crop.DRAWS + 1, 2)))(keys)[:, :-1]
    boxes = np.stack(jax.vmap(lambda draws: crop.crop_box(draws, 32, 32, (0.3, 1.0), (3 / 4, 4 / 3)))(draws), axis=1)
    results = zip(images, boxes, found, strict=True)
    return np.asarray([(pillow(image, box, 32, name) == result).all() for image, box, result in results])


@pytest.mark.parametrize("interpolation", quick.first(1, ["bilinear", "bicubic"]))
def test_every_image_has_its_box_and_its_filter(interpolation):
    images, found = cropped(interpolation)
    assert matches(images, found, interpolation).all()


def test_random_interpolation_is_either_for_each_image():
    images, found = cropped("random")
    bilinear, bicubic = (matches(images, found, name) for name in ("bilinear", "bicubic"))
    assert (bilinear | bicubic).all()
    assert 20 < bilinear.sum() < 44  # of 64, and but for flat pictures never both


def test_places_down_and_across_and_filters_are_independent(monkeypatch):
    def report(images, boxes, choices, *, size, filters):
        values = jnp.stack([*boxes, choices], axis=1).astype(jnp.uint8)
        return jnp.pad(values, ((0, 0), (0, 7))).reshape(-1, size, size, 3)

    monkeypatch.setattr(crop, "resize_boxes", report)
    options = {"size": 2, "scale": (0.1, 0.3), "ratio": (1.0, 1.0), "interpolation": "random"}
    draw = jit(lambda keys: crop.random_resized_crop(jnp.zeros((20_000, 200, 200, 3), jnp.uint8), keys, **options))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000))).reshape(-1, 12)
    places = 2 * found[:, :2] >= 201 - found[:, 2:4].astype(int)  # of 0 to 200 - side, in which half
    assert_frequencies(4 * places[:, 0] + 2 * places[:, 1] + found[:, 4], np.ones(8))


def test_unknown_interpolation_is_a_user_error():
    with pytest.raises(UserError, match=r"'cubic' is not one of .*did you mean 'bicubic'"):
        crop.random_resized_crop(
            jnp.zeros((1, 4, 4, 3), jnp.uint8),
            jax.random.split(jax.random.key(0), 1),
            size=4,
            scale=(1.0, 1.0),
            ratio=(1.0, 1.0),
            interpolation="cubic",
        )


def test_pad_and_crop_cuts_every_place_of_the_padded_image_equally_often():
    image = np.arange(1, 31, dtype=np.uint8).reshape(3, 5, 2)
    padded = np.full((7, 9, 2), 200, np.uint8)
    padded[2:5, 2:7] = image
    places = {padded[y : y + 3, x : x + 5].tobytes(): (y, x) for y in range(5) for x in range(5)}
    keys = jax.random.split(jax.random.key(0), 2500)
    found = np.asarray(jit(functools.partial(crop.pad_and_crop, pad=2, fill=200))(np.stack([image] * 2500), keys))
    counts = np.zeros((5, 5))
    for piece in found:
        counts[places[piece.tobytes()]] += 1
    assert counts.min() > 60  # 100 expected, standard deviation 10
    assert counts.max() < 140
