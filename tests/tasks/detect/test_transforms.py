"""What photos go through, against plain loops over the definition, and by hand."""

import cv2
import numpy as np
import pytest

from lape_jax.tasks.detect import bitmaps, transforms
from lape_jax.tasks.detect.photo import Objects

RECIPE = {
    "canvas": (1024, 1024), "long": 1333, "short": tuple(range(480, 801, 32)), "crop_short": (400, 500, 600),
    "crop": (384, 600), "flip": True,
}  # fmt: skip


class Draws(np.random.Generator):
    """Its numbers are given."""

    def __init__(self, *values):
        super().__init__(np.random.PCG64(0))
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def objects(height, width, boxes, learned=None):
    count, masks = len(boxes), []
    for x, y, w, h in boxes:
        mask = np.zeros((height, width), np.uint8)
        mask[max(int(y), 0) : int(y + h), max(int(x), 0) : int(x + w)] = 1
        masks.append(mask)
    return Objects(
        height,
        width,
        np.array(boxes, np.float64).reshape(-1, 4),
        np.arange(count, dtype=np.int32),
        crowd=np.zeros(count, bool),
        learned=np.ones(count, bool) if learned is None else np.array(learned),
        areas=np.ones(count),
        masks=tuple(masks),
    )


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def by_the_book(pixels, found, rng):
    """The same steps on whole bitmaps, each resized by OpenCV, as the reference does them."""
    boxes = found.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes[found.learned].astype(np.float32)
    masks = [mask for mask, learned in zip(found.masks, found.learned, strict=True) if learned]
    kept = np.flatnonzero(found.learned)

    def resize(short):
        nonlocal pixels, boxes, masks
        h, w = pixels.shape[:2]
        scale = min(1333 / max(h, w), short / min(h, w))
        new = int(w * scale + 0.5), int(h * scale + 0.5)
        pixels = cv2.resize(pixels, new, interpolation=cv2.INTER_LINEAR)
        masks = [cv2.resize(mask, new, interpolation=cv2.INTER_NEAREST) for mask in masks]
        boxes = boxes * np.array([new[0] / w, new[1] / h, new[0] / w, new[1] / h], np.float32)
        boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clip(0, new[0]), boxes[:, 1::2].clip(0, new[1])

    def crop(height, width):
        nonlocal pixels, boxes, masks, kept
        top = int(rng.random() * (pixels.shape[0] - height + 1))
        left = int(rng.random() * (pixels.shape[1] - width + 1))
        pixels = pixels[top : top + height, left : left + width]
        boxes = boxes - np.array([left, top, left, top], np.float32)
        boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clip(0, width), boxes[:, 1::2].clip(0, height)
        inside = [x2 > x1 and y2 > y1 for x1, y1, x2, y2 in boxes]
        masks = [mask[top : top + height, left : left + width] for mask, has in zip(masks, inside, strict=True) if has]
        boxes, kept = boxes[inside], kept[inside]

    if rng.random() < 0.5:
        width = pixels.shape[1]
        pixels, masks = np.ascontiguousarray(pixels[:, ::-1]), [mask[:, ::-1].copy() for mask in masks]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if rng.random() < 0.5:
        resize((400, 500, 600)[int(rng.random() * 3)])
        height, width = (
            min(side, 384) + int(rng.random() * (min(side, 600) - min(side, 384) + 1)) for side in pixels.shape[:2]
        )
        crop(height, width)
    resize(480 + 32 * int(rng.random() * 11))
    crop(min(pixels.shape[0], 1024), min(pixels.shape[1], 1024))
    return pixels, boxes, masks, kept


@pytest.mark.parametrize("seed", range(12))
def test_a_training_photo_by_the_book(seed):
    height, width = [(48, 64), (427, 640), (90, 33)][seed % 3]
    rng = np.random.default_rng(seed)
    corners = rng.random((5, 4)) * [width, height, width / 2, height / 2] + [-3, -3, 1, 1]
    found = objects(height, width, corners.tolist(), learned=[True, True, False, True, True])
    pixels = noise(height, width)
    seen = transforms.train_photo(pixels, found, **RECIPE, rng=np.random.default_rng(100 + seed))
    expected, boxes, masks, kept = by_the_book(pixels, found, np.random.default_rng(100 + seed))
    np.testing.assert_array_equal(seen.pixels, expected)
    np.testing.assert_array_equal(seen.boxes, boxes)
    assert seen.boxes.dtype == np.float32
    np.testing.assert_array_equal(seen.kept, kept)
    assert max(seen.pixels.shape) <= 1024
    for index, mask in zip(seen.kept, masks, strict=True):
        whole = bitmaps.bitmap(found.masks[index], height, width)
        np.testing.assert_array_equal(whole[seen.rows[:, None], seen.columns], mask)


def test_both_policies_and_mirror_images_occur():
    found = objects(427, 640, [(10, 10, 50, 50)])
    views = [
        transforms.train_photo(noise(427, 640), found, **RECIPE, rng=np.random.default_rng(seed)) for seed in range(40)
    ]
    mirrored = sum(bool(view.columns[0] > view.columns[-1]) for view in views)
    whole = sum(len(np.unique(view.columns)) > 0.99 * min(640, view.pixels.shape[1]) for view in views)
    assert 10 < mirrored < 30
    assert 5 < whole < 35


def test_a_sliver_stays_and_what_is_outside_goes():
    found = objects(100, 100, [(0, 0, 50.5, 20), (0, 0, 50, 20), (60, 60, 20, 20)])
    seen = transforms.Seen(noise(100, 100), found.corners, np.arange(3), np.arange(100), np.arange(100))
    cut = transforms.cropped(seen, 100, 50, Draws(0.0, 0.999))  # columns 50 to 99
    np.testing.assert_array_equal(cut.boxes, np.array([[0, 0, 0.5, 20], [10, 60, 30, 80]], np.float32))
    assert cut.kept.tolist() == [0, 2]
    assert bitmaps.bitmap(found.masks[0], 100, 100)[cut.rows[:, None], cut.columns].sum() == 0  # its mask is empty


def test_without_objects_the_image_stays():
    found = objects(50, 70, [], learned=np.zeros(0, bool))
    seen = transforms.train_photo(noise(50, 70), found, **RECIPE, rng=np.random.default_rng(0))
    assert (len(seen.boxes), len(seen.kept)) == (0, 0)
    assert min(seen.pixels.shape[:2]) > 300


def test_boxes_are_scaled_by_the_ratio_of_the_sides():
    found = objects(427, 640, [(100, 100, 200, 200)])
    seen = transforms.Seen(noise(427, 640), found.corners, np.arange(1), np.arange(427), np.arange(640))
    larger = transforms.resized(seen, (1333, 800))
    assert larger.pixels.shape == (800, 1199, 3)
    across, down = np.float32(1199 / 640), np.float32(800 / 427)
    np.testing.assert_array_equal(larger.boxes[0], np.float32([100, 100, 300, 300]) * [across, down, across, down])


def test_on_canvas():
    whole = transforms.on_canvas(np.ones((2, 3, 3), np.uint8), (32, 64))
    assert (whole.shape, whole.sum(), whole[:2, :3].all()) == ((32, 64, 3), 18, True)
