"""Training batches: what is in them, and that they are the same whoever makes them."""

import numpy as np

from lape_jax.data.batches import Reading
from lape_jax.data.order import Share
from lape_jax.tasks import TASKS
from lape_jax.tasks.config import base
from lape_jax.tasks.detect import bitmaps, masks, pipeline, recipes
from lape_jax.tasks.detect.digits import DigitPhotos


def config():
    found = base()
    found.task, found.batch_size = "detect", 4
    found.data.threads = 2
    recipes.small(found, times=1)
    found.detect.max_objects = 8
    found.augment.flip = True
    return found


def batches(found, start=0, total=3, part=(0, 1)):
    with pipeline.train_batches(DigitPhotos("train"), found, Reading.of(found, start, total, Share(*part))) as made:
        return list(made)


def assert_same(these, those):
    assert len(these) == len(those) > 0
    for one, other in zip(these, those, strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_a_batch_has_the_shapes_that_the_task_says():
    found = config()
    (batch,) = batches(found, total=1)
    shapes = TASKS["detect"].shapes(found, (128, 128, 3))
    assert {name: (array.shape[1:], array.dtype) for name, array in batch.items()} == {
        name: (row.shape, row.dtype) for name, row in shapes.items()
    }
    assert batch["mask"].tolist() == [1, 1, 1, 1]
    height, width = batch["size"].T
    assert ((height <= 96) & (width <= 128) & (height >= 80)).all()
    assert (batch["valid"].sum(axis=1) == 6).all()
    for row in range(4):
        assert not batch["image"][row, height[row] :].any()
        assert not batch["image"][row, :, width[row] :].any()
        for place in range(6):
            mask = masks.expand(batch["masks"][row, place], batch["boxes"][row, place], *found.detect.canvas)
            ink = batch["image"][row, ..., 0] * mask
            assert (ink[mask > 0] > 20).mean() > 0.95  # bilinear beside nearest


def test_the_same_from_any_step_and_for_any_host():
    found = config()
    whole = batches(found)
    assert_same(batches(found, start=2), whole[2:])
    parts = [batches(found, part=(i, 2)) for i in range(2)]
    together = [
        {name: np.concatenate([one[name], other[name]]) for name in one} for one, other in zip(*parts, strict=True)
    ]
    assert_same(together, whole)
    found.data.threads = 1
    assert_same(batches(found), whole)


def test_of_too_many_objects_some_are_drawn():
    found = config()
    found.detect.max_objects = 4
    photo, drawn = DigitPhotos("train")[0], set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        parts = pipeline.learned(photo, "view", (96, 128), 4, pipeline.view(found), rng)
        assert parts[4].all()
        drawn.add(tuple(parts[3].tolist()))
    assert len(drawn) > 3


def test_an_evaluated_photo():
    found = config()
    with pipeline.whole_photos(DigitPhotos("val"), [5, 2], found) as photos:
        one, other = photos
    assert (one.index, other.index, one.pixels.shape) == (5, 2, (96, 126, 3))
    pixels = np.zeros((427, 640, 3), np.uint8)
    large = pipeline.whole(0, pixels, (1333, 800))
    assert large.pixels.shape == (800, 1199, 3)
    np.testing.assert_array_equal(large.ratios, np.float32([800 / 427, 1199 / 640]))


def test_rle_of_all_forms():
    pixels = np.zeros((5, 7), np.uint8)
    pixels[1:4, 2:5] = 1
    forms = [pixels, bitmaps.encode(pixels), {"size": [5, 7], "counts": [11, 3, 2, 3, 2, 3, 11]}]
    forms.append((np.array([2.0, 1, 5, 1, 5, 4, 2, 4]),))
    for form in forms:
        np.testing.assert_array_equal(bitmaps.bitmap(form, 5, 7), pixels)
        assert bitmaps.area(form, 5, 7) == 9
