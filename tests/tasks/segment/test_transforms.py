"""The transforms against others written from the description of the reference's (MMSegmentation 0.x and mmcv)."""

import colorsys
import itertools
import math
from collections import Counter

import cv2
import numpy as np
import pytest

from lape_jax.data.order import augment_rng
from lape_jax.data.rescale import fit
from lape_jax.errors import UserError
from lape_jax.tasks.segment import transforms as scene_transforms
from lape_jax.tasks.segment.transforms import canvas_size, photometric_distortion, train_scene

OPTIONS = {"scale": (64, 16), "scale_range": (1.0, 1.0), "max_class": 1.0, "flip": False, "distort": False}


class Draws(np.random.Generator):
    """A generator whose draws are given: IndexError if they are too few; what is left of them is in `values`."""

    def __init__(self, *values):
        super().__init__(np.random.PCG64(0))
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def crop(pixels, labels, size, rng, **changes):
    return train_scene(pixels, labels, size=size, rng=rng, **{**OPTIONS, **changes})


def numbered(height, width):
    """Pixels and labels that tell where they come from: the label is 100 row + column."""
    row, column = np.mgrid[:height, :width]
    return np.stack([row, column, row + column], -1).astype(np.uint8), (100 * row + column).astype(np.int32)


@pytest.mark.parametrize(
    ("height", "width", "factor", "expected"),
    [
        (512, 683, 1.0, (512, 683)),  # the shorter side decides: 512 / 512
        (300, 400, 1.0, (512, 683)),  # 400 * 512 / 300 = 682.67
        (400, 300, 1.0, (683, 512)),
        (300, 400, 0.5, (256, 341)),
        (300, 400, 0.7501, (384, 512)),  # int(512 * 0.7501) = int(384.05)
        (200, 2000, 1.0, (205, 2048)),  # the longer side decides: 204.8
        (2000, 200, 2.0, (4096, 410)),
        (1, 5000, 1.0, (1, 2048)),  # never 0
    ],
)
def test_sizes_are_those_of_mmcv(height, width, factor, expected):
    assert fit(height, width, (2048, 512), factor) == expected
    assert fit(height, width, (512, 2048), factor) == expected


def test_the_canvas_holds_a_window():
    assert canvas_size(300, 400, (2048, 512), 1.0, 512) == (512, 683)
    assert canvas_size(300, 400, (2048, 512), 1.5, 512) == (768, 1024)
    assert canvas_size(300, 400, (2048, 512), 0.5, 512) == (512, 683)
    assert canvas_size(200, 2000, (2048, 512), 1.0, 512) == (512, 5120)
    for height in range(1, 200, 7):
        for width in range(1, 200, 11):
            h, w = canvas_size(height, width, (64, 32), 0.75, 48)
            assert min(h, w) == 48
            assert abs(h / w - height / width) <= 0.5 / 48 * (1 + height / width)
    with pytest.raises(UserError, match=r"an image of 9000 x 2 pixels .* at 2304000 x 512, more than 89478485 pixels"):
        canvas_size(2, 9000, (2048, 512), 1.0, 512)


def test_images_are_resized_bilinearly_and_maps_by_the_nearest(photo):
    """Factor 1.7 into limits of int(1.7 * 64) = 108 and int(1.7 * 50) = 85: 40 x 60 becomes 72 x 108."""
    labels = numbered(40, 60)[1]
    image, target = crop(photo, labels, 128, Draws(0.8, 0.0, 0.0), scale=(64, 50), scale_range=(0.5, 2.0))
    rows, columns = np.arange(72) * 40 // 72, np.arange(108) * 60 // 108
    np.testing.assert_array_equal(target[:72, :108], labels[rows][:, columns])
    assert (target[72:] == -2).all()
    assert (target[:, 108:] == -2).all()
    assert not image[72:].any()
    assert not image[:, 108:].any()
    expected = photo.astype(float)
    for axis, size in ((0, 72), (1, 108)):  # between the two nearest centres
        place = np.clip((np.arange(size) + 0.5) * photo.shape[axis] / size - 0.5, 0, photo.shape[axis] - 1)
        low = np.minimum(place.astype(int), photo.shape[axis] - 2)
        share = np.expand_dims(place - low, tuple({0, 1, 2} - {axis}))
        expected = np.take(expected, low, axis) * (1 - share) + np.take(expected, low + 1, axis) * share
    error = np.abs(image[:72, :108] - expected)  # OpenCV rounds its weights, and its sums in between
    assert error.max() < 1
    assert error.mean() < 0.3


def test_shrinking_does_not_smooth():
    """Half the size: the mean of the two middle columns of four, or of a stripe pattern, not of more."""
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::4] = 200
    image, _ = crop(stripes, np.zeros((8, 64), np.int32), 32, Draws(0, 0, 0), scale=(32, 4))
    assert set(np.unique(image[:4])) == {0, 100}


def test_the_crop_is_uniform():
    """16 x 19 cut to 13: 4 rows and 7 columns of places, each as likely as the others."""
    pixels, labels = numbered(16, 19)
    draws = 1400
    seen = Counter()
    for number in range(draws):
        image, target = crop(pixels, labels, 13, augment_rng(0, 0, number), scale=(19, 16))
        top, left = divmod(int(target[0, 0]), 100)
        seen[top, left] += 1
        np.testing.assert_array_equal(target, labels[top : top + 13, left : left + 13])
        np.testing.assert_array_equal(image, pixels[top : top + 13, left : left + 13])
    assert set(seen) == {(top, left) for top in range(4) for left in range(7)}
    mean = draws / 28
    assert sum((count - mean) ** 2 / mean for count in seen.values()) < 55.5  # chi-squared, 27 degrees: p = 0.001


def test_the_factor_is_uniform():
    pixels, labels = numbered(20, 20)
    sizes = [
        int(
            (crop(pixels, labels, 96, augment_rng(1, 0, number), scale=(40, 40), scale_range=(0.5, 2.0))[1] != -2)[
                0
            ].sum()
        )
        for number in range(400)
    ]
    assert (min(sizes), max(sizes)) == (20, 79)
    assert np.mean(sizes) == pytest.approx(50, abs=3)  # 17.3 / sqrt(400) is 0.87
    assert np.quantile(sizes, [0.25, 0.75]) == pytest.approx([35, 65], abs=5)


def halves(left, right, columns=8):
    """16 x 16 with the value `left` in the first columns."""
    labels = np.full((16, 16), right, np.int32)
    labels[:, :columns] = left
    return np.zeros((16, 16, 3), np.uint8), labels


@pytest.mark.parametrize(
    ("labels", "draws", "left"),
    [
        # Crops of 8: column 0 is all of the one class, column 7 seven eighths of the other, column 4 half of each.
        (halves(5, 2), [0, 0, 0, 0, 0, 7 / 9, 0, 4 / 9], 4),
        (halves(5, 2), [0, 0, 0, 4.1 / 9], 4),
        (halves(5, 2), [0, 2 / 9, 0, 4 / 9], 4),  # exactly three quarters: drawn anew
        (halves(5, 2), [0, 3 / 9], 3),  # five eighths
        (halves(5, -1), [0, 4 / 9] + [0, 7 / 9] * 10, 7),  # one class, and unlabelled pixels, which do not count
        (halves(-1, -1), [0, 4 / 9] + [0, 1 / 9] * 10, 1),  # no class at all
        (halves(5, 5), [0, 0.0] + [0, 5 / 9] * 9 + [0, 8 / 9], 8),  # the eleventh is taken as it is
    ],
)
def test_crops_that_one_class_fills_are_drawn_anew(labels, draws, left):
    pixels, labels = labels
    rng = Draws(0.0, *(value + 1e-6 for value in draws))
    _, target = crop(pixels, labels, 8, rng, scale=(16, 16), max_class=0.75)
    assert rng.values == []
    np.testing.assert_array_equal(target, labels[:8, left : left + 8])


def test_unlabelled_pixels_count_for_no_class():
    """60 of class 0, 20 of class 1 and the rest unlabelled: exactly 3/4, though it is far less of all pixels."""
    pixels, labels = np.zeros((16, 16, 3), np.uint8), np.full(256, -1, np.int32)
    labels[:60], labels[60:80] = 0, 1
    rng = Draws(0.0, *[0.0] * 22)
    crop(pixels, labels.reshape(16, 16), 16, rng, max_class=0.75)
    assert rng.values == []
    labels[80] = 1
    rng = Draws(0.0, 0.0, 0.0)
    crop(pixels, labels.reshape(16, 16), 16, rng, max_class=0.75)
    assert rng.values == []


def test_the_share_can_be_ignored():
    rng = Draws(0.0, 0.0, 0.0)
    crop(*halves(5, 5), 8, rng, scale=(16, 16), max_class=1.0)
    assert rng.values == []


def test_mirroring_moves_image_and_map_but_not_the_padding():
    pixels, labels = numbered(10, 12)
    options = {"scale": (12, 10), "flip": True}
    image, target = crop(pixels, labels, 16, Draws(0, 0, 0, 0.49), **options)
    np.testing.assert_array_equal(target[:10, :12], labels[:, ::-1])
    np.testing.assert_array_equal(image[:10, :12], pixels[:, ::-1])
    assert (target[10:] == -2).all()
    assert (target[:, 12:] == -2).all()
    _, target = crop(pixels, labels, 16, Draws(0, 0, 0, 0.5), **options)
    np.testing.assert_array_equal(target[:10, :12], labels)


def test_the_whole_is_a_function_of_the_generator(photo):
    options = {"scale": (80, 50), "scale_range": (0.5, 2.0), "max_class": 0.75, "flip": True, "distort": True}
    labels = np.arange(2400, dtype=np.int32).reshape(40, 60) // 300
    results = [crop(photo, labels, 32, augment_rng(3, 5, place), **options) for place in (1, 1, 2)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert (results[0][0] != results[2][0]).any()


def clipped(values):
    return np.floor(np.clip(values.astype(np.float32), 0, 255)).astype(np.uint8)


def in_hsv(pixels, change):
    """OpenCV's 8-bit HSV, changed by `change(hue, saturation)`, and back."""
    hue, saturation, value = np.moveaxis(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), -1, 0)
    hue, saturation = change(hue.astype(int), saturation)
    hsv = np.stack([hue.astype(np.uint8), saturation.astype(np.uint8), value], -1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def expected_distortion(pixels, *, brightness=None, first=True, contrast=None, saturation=None, hue=None):
    """The values: what is added or multiplied, or None."""
    out = pixels
    if brightness is not None:
        out = clipped(out + np.float32(brightness))
    if first and contrast is not None:
        out = clipped(out * np.float32(contrast))
    if saturation is not None:
        out = in_hsv(out, lambda h, s: (h, clipped(s * np.float32(saturation))))
    if hue is not None:
        out = in_hsv(out, lambda h, s: ((h + hue) % 180, s))
    if not first and contrast is not None:
        out = clipped(out * np.float32(contrast))
    return out


def share(value, low, high):
    """The draws for a change by `value` with uniform limits, or for none."""
    return [0.5] if value is None else [0.499, (value - low) / (high - low)]


def test_every_branch_of_the_distortion():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    branches = itertools.product(
        (None, -24.0, 31.0), (None, 0.5625, 1.4375), (None, 0.625, 1.375), (None, -18, 0, 17), (True, False)
    )
    for brightness, contrast, saturation, hue, first in branches:
        of_contrast = share(contrast, 0.5, 1.5)
        rng = Draws(
            *share(brightness, -32, 32),
            0.499 if first else 0.5,
            *(of_contrast if first else []),
            *share(saturation, 0.5, 1.5),
            *share(hue if hue is None else hue + 0.5, -18, 18),
            *([] if first else of_contrast),
        )
        found = photometric_distortion(pixels.copy(), rng)
        assert rng.values == []
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue, "first": first}
        np.testing.assert_array_equal(found, expected_distortion(pixels, **given), err_msg=str(given))


def test_the_order_of_the_channels_is_red_green_blue():
    """Half the saturation of a clear red: (200, 40, 0) has V 200, S 1, H 12 degrees, and becomes (200, 120, 100)."""
    hue, _, value = colorsys.rgb_to_hsv(200 / 255, 40 / 255, 0)
    expected = np.array(colorsys.hsv_to_rgb(hue, 0.5, value)) * 255
    pixels = np.broadcast_to(np.uint8([200, 40, 0]), (2, 2, 3)).copy()
    found = photometric_distortion(pixels, Draws(0.9, 0.0, 0.9, 0.1, 0.0, 0.9))
    assert np.abs(found - expected).max() < 2
    assert found[0, 0, 0] == 200


def test_the_draws_of_the_distortion_have_their_distributions(monkeypatch):
    """Of 3,000 draws: each change in half of them, contrast before or after alike, the amounts uniform."""
    seen = {"linear": []}
    real = scene_transforms._linear
    monkeypatch.setattr(
        scene_transforms, "_linear", lambda v, a, b: seen["linear"].append((v.ndim, a, b)) or real(v, a, b)
    )
    pixels = np.full((1, 1, 3), 100, np.uint8)
    pixels[..., 0] = 150
    hues, count = Counter(), 3000
    for number in range(count):
        out = photometric_distortion(pixels, augment_rng(2, 0, number))
        hues[int(cv2.cvtColor(out, cv2.COLOR_RGB2HSV)[0, 0, 0])] += 1
    brightness = [b for _, a, b in seen["linear"] if b != 0]
    contrast = [a for ndim, a, b in seen["linear"] if b == 0 and ndim == 3]
    saturation = [a for ndim, a, b in seen["linear"] if b == 0 and ndim == 2]
    for values, low, high in ((brightness, -32, 32), (contrast, 0.5, 1.5), (saturation, 0.5, 1.5)):
        assert len(values) == pytest.approx(count / 2, abs=4 * math.sqrt(count) / 2)
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) < high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.035 * (high - low))
    assert sum(hues[h % 180] for h in range(-1, 2)) > count / 2  # unchanged, but for rounding
    assert sum(hues[h % 180] for h in range(-19, 19)) == count


def test_grey_images_get_brightness_and_contrast_only():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 1), np.uint8)
    rng = Draws(0.1, 0.75, 0.9, 0.1, 0.3, 0.1, 0.2, 0.1, 0.25)
    found = photometric_distortion(pixels, rng)
    assert rng.values == []
    np.testing.assert_array_equal(found, expected_distortion(pixels, brightness=16.0, first=False, contrast=0.75))
    image, target = crop(pixels, np.zeros((5, 4), np.int32), 8, augment_rng(0, 0, 0), distort=True)
    assert (image.shape, target.shape) == ((8, 8, 1), (8, 8))
