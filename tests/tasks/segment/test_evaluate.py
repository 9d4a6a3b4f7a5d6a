"""Evaluation in tiles against the slow way in NumPy: every window upsampled, averaged, resized, softmax, arg max."""

import functools
import logging
import math
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest

from lape_jax import models, port
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.port import segmenter
from lape_jax.tasks.segment import tiles
from lape_jax.tasks.segment.evaluate import SceneEvaluator
from lape_jax.tasks.segment.scene import Scene
from tests import quick
from tests.models import families

CLASSES, WINDOW, STRIDE, SCALE = 5, 16, 12, (64, 20)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = [(30, 41), (17, 50), (9, 11), (20, 20), (40, 23), (16, 33)]  # the third is smaller than a window
# Scales, mirrored or not, and the multiple. At 0.3 of "whole" all images have a side that is shorter than a window.
VIEWS = {"one": ((1.0,), False, 0), "several": ((0.75, 1.0, 1.5), True, 0), "whole": ((0.3, 1.0), True, 8)}


class Scenes(list):
    classes = tuple("abcde")


@functools.cache
def scenes():
    rng = np.random.default_rng(4)
    found = Scenes()
    for index, size in enumerate(SIZES):
        small = rng.integers(0, 256, (5, 6, 3), np.uint8)
        mask = rng.integers(0, CLASSES + 1, size).astype(np.uint8)  # 0 is none
        found.append(Scene(cv2.resize(small, size[::-1]), mask, f"scene {index}", first=1))
    return found


MODEL = models.create(
    "segmenter_ti_linear", image_size=WINDOW, patch_size=4, width=16, depth=1, heads=2, num_classes=CLASSES
)


@functools.cache
def variables():
    return jax.tree.map(np.float32, port.from_torch(families.weights(MODEL, segmenter), MODEL))


def config(views="one", **settings):
    scales, flip, multiple = VIEWS[views]
    segment = SimpleNamespace(scale=SCALE, stride=STRIDE, scales=scales, flip=flip, multiple=multiple)
    data = SimpleNamespace(image_size=WINDOW, channels=3, mean=MEAN, std=STD, threads=2, orientation="stored")
    changed = {"segment": segment, "data": data, "eval_batch_size": 7} | settings
    return SimpleNamespace(**changed)


def evaluator(views="one", data=1, fsdp=1, source=None, **settings):
    mesh = sharding.make_mesh(SimpleNamespace(data=data, fsdp=fsdp, tensor=1), jax.devices()[: data * fsdp])
    return SceneEvaluator(MODEL, config(views, **settings), mesh, scenes() if source is None else source)


def test_what_is_too_narrow_is_named():
    found = Scenes([*scenes()[:2], Scene(np.zeros((1, 9000, 3), np.uint8), np.zeros((1, 9000), np.uint8), "thin.jpg")])
    with pytest.raises(UserError, match=r"^thin\.jpg: an image of 9000 x 1 pixels .* too narrow for windows of 16"):
        evaluator(source=found)(variables())
    with pytest.raises(UserError, match=r"^an image of 9000 x 1 pixels"):
        list(evaluator().maps(variables(), [found[2].image]))


# ---- In NumPy --------------------------------------------------------------------------------------------------------


@functools.cache
def apply():
    return quick.jit(functools.partial(MODEL.apply, train=False))


def bilinear(maps, size):
    """(h, w, k) at another size, pixel centres at i + 1/2."""
    for axis, new in enumerate(size):
        old = maps.shape[axis]
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        lower = position.astype(int)
        share = np.expand_dims(position - lower, (1, 2) if axis == 0 else (0, 2))
        maps = maps.take(lower, axis) * (1 - share) + maps.take(np.minimum(lower + 1, old - 1), axis) * share
    return maps


def slide(canvas):
    """Logits (h, w, k) of a canvas, means over the windows, as MMSegmentation counts them."""
    height, width, _ = canvas.shape
    total, windows = np.zeros((height, width, CLASSES)), np.zeros((height, width, 1))
    down = max(height - WINDOW + STRIDE - 1, 0) // STRIDE + 1
    across = max(width - WINDOW + STRIDE - 1, 0) // STRIDE + 1
    for i in range(down):
        for j in range(across):
            bottom, right = min(i * STRIDE + WINDOW, height), min(j * STRIDE + WINDOW, width)
            top, left = max(bottom - WINDOW, 0), max(right - WINDOW, 0)
            window = (canvas[top:bottom, left:right] / 255 - MEAN) / STD
            logits, _ = apply()(variables(), window[None].astype(np.float32))
            total[top:bottom, left:right] += np.asarray(logits[0], np.float64)
            windows[top:bottom, left:right] += 1
    return total / windows


@functools.cache
def in_numpy(views):
    """The classes of all pixels of the scenes, and the matrix of confusions."""
    scales, flip, multiple = VIEWS[views]
    maps, matrix = [], np.zeros((CLASSES, CLASSES), int)
    for scene in scenes():
        size = scene.mask.shape
        votes = np.zeros((*size, CLASSES))
        for scale in scales:
            limits = [int(side * scale) for side in SCALE]
            factor = min(limits[0] / max(size), limits[1] / min(size))
            height, width = (int(side * factor + 0.5) for side in size)
            canvas = cv2.resize(scene.image, (width, height), interpolation=cv2.INTER_LINEAR)
            if multiple:
                height, width = (math.ceil(side / multiple) * multiple for side in (height, width))
                canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR)
            elif min(height, width) < WINDOW:  # the small image is enlarged, or it would be what scale 1 gives
                factor = WINDOW / min(size)
                height, width = (max(int(side * factor + 0.5), WINDOW) for side in size)
                canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR)
            for step in (1, -1) if flip else (1,):
                logits = bilinear(slide(canvas[:, ::step]), size)[:, ::step]
                odds = np.exp(logits - logits.max(-1, keepdims=True))
                votes += odds / odds.sum(-1, keepdims=True)
        ranked = np.sort(votes, -1)
        assert np.all(ranked[..., -1] - ranked[..., -2] > 1e-5)  # or rounding would decide
        maps.append(votes.argmax(-1))
        labelled = scene.mask > 0
        np.add.at(matrix, (scene.mask[labelled].astype(int) - 1, maps[-1][labelled]), 1)
    return maps, matrix


# ---- Tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", quick.first(2, VIEWS))
def test_matrix_and_metrics_are_those_of_the_slow_way(views):
    segmenting = evaluator(views)
    found = segmenting(variables())
    _, expected = in_numpy(views)
    assert (expected > 0).sum() > CLASSES  # else the comparison says little
    np.testing.assert_array_equal(segmenting.matrix, expected)
    right = np.diagonal(expected)
    union = expected.sum(0) + expected.sum(1) - right
    assert found == pytest.approx(
        {
            "val/miou": 100 * np.mean(right[union > 0] / union[union > 0]),
            "val/mean_accuracy": 100 * np.mean(right / expected.sum(1)),
            "val/pixel_accuracy": 100 * right.sum() / expected.sum(),
            "val/examples": len(SIZES),
        }
    )
    assert segmenting(variables(), prefix="test/") == {name.replace("val", "test"): found[name] for name in found}


def test_maps_are_those_of_the_slow_way():
    read = []

    def images():
        for scene in scenes():
            read.append(scene.name)
            yield scene.image

    found = evaluator("one", eval_batch_size=3).maps(variables(), images())
    expected, _ = in_numpy("one")
    for index, truth in enumerate(expected):
        labels = next(found)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, truth)
        assert len(read) <= index + 3  # no more than a batch of windows needs
    assert next(found, None) is None


@pytest.mark.slow
def test_rare_sizes_of_windows_are_not_waited_for():
    """A window of its own size is run with others that fill no batch, after so many images as a batch has windows."""
    read = []

    def images():
        for scene in (scenes()[4], *3 * scenes()[:4]):  # the first is the only one that is taller than wide
            read.append(scene.name)
            yield scene.image

    found = evaluator("whole", eval_batch_size=3).maps(variables(), images())
    np.testing.assert_array_equal(next(found), in_numpy("whole")[0][4])
    assert len(read) == 3
    assert len(list(found)) == 12


@pytest.mark.parametrize("views", ["several", pytest.param("whole", marks=pytest.mark.slow)])
def test_eight_devices_count_as_one_does(views):
    segmenting = evaluator(views, data=4, fsdp=2)
    segmenting(variables())
    np.testing.assert_array_equal(segmenting.matrix, in_numpy(views)[1])


@pytest.mark.slow
def test_on_several_cpu_devices_a_program_waits_for_the_one_before():
    segmenting, made = evaluator("several", data=8), []

    def watched(program):
        def call(*arguments):
            assert all(leaf.is_ready() for leaf in jax.tree.leaves(made))
            made[:] = [program(*arguments)]
            return made[0]

        return call

    tiling, weights = segmenting._tiling, variables()
    segmenting._logits = watched(segmenting._logits)
    tiling.add_window, tiling.add_band = watched(tiling.add_window), watched(tiling.add_band)
    expected = evaluator("several")(weights)
    assert segmenting(weights) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("views", "sizes"), [("several", 1), pytest.param("whole", 4, marks=pytest.mark.slow)])
def test_three_programs_for_images_of_any_size(caplog, views, sizes):
    """And one more for each other size of windows: here 8 x 8, 8 x 16 and 16 x 8 pixels."""
    weights = variables()  # made before anything is counted
    jax.clear_caches()
    segmenting = evaluator(views)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        segmenting(weights)
        list(segmenting.maps(weights, [scene.image for scene in scenes()]))
    programs = [record.getMessage().split()[1] for record in caplog.records if record.msg.startswith("Compiling ")]
    assert sorted(programs) == ["jit(add_band)", "jit(add_window)", *sizes * ["jit(logits)"]]


def test_counts_beyond_what_the_device_holds(monkeypatch):
    monkeypatch.setattr(tiles, "_FULL", 300)  # less than two tiles
    segmenting = evaluator("one")
    segmenting(variables())
    np.testing.assert_array_equal(segmenting.matrix, in_numpy("one")[1])


def test_a_scene_that_cannot_be_read():
    broken = Scenes([*scenes()[:2], Scene(b"no image", scenes()[2].mask, "scene 2")])
    with pytest.raises(UserError, match="scene 2"):
        evaluator("one", source=broken)(variables())


def test_scenes_without_any_label():
    blank = Scenes([Scene(scenes()[3].image, np.zeros((20, 20), np.uint8), "blank", first=1)])
    with pytest.raises(UserError, match="not a pixel of the 1 images has a label: there is nothing to evaluate by"):
        evaluator("one", source=blank)(variables())


def test_windows_with_gaps_are_refused_at_once():
    gaps = SimpleNamespace(scale=SCALE, stride=17, scales=(1.0,), flip=False, multiple=0)
    with pytest.raises(UserError, match="windows of 16 pixels that begin every 17 leave gaps"):
        evaluator("one", segment=gaps)
