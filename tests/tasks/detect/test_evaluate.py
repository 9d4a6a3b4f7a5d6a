"""Whole images of any size, with a model that sees at once what there is."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.parallel import hosts, sharding
from lape_jax.tasks.detect import bitmaps, evaluate, show
from lape_jax.tasks.detect.evaluate import PhotoEvaluator
from lape_jax.tasks.detect.photo import Photo
from lape_jax.tasks.detect.scores import FIGURES, Detection
from tests import runs
from tests.tasks.detect.seer import SIZES, Photos, Seer, config, photos


def run(devices=1, source=None, **detect):
    with runs.on(devices):
        mesh = sharding.make_mesh(config().mesh)
        evaluator = PhotoEvaluator(Seer(), config(**detect), mesh, source or photos())
        return evaluator, evaluator({"params": jnp.ones(())})


@pytest.fixture(scope="module")
def whole():
    return run()


def test_what_is_found_and_counted(whole):
    evaluator, results = whole
    assert list(results) == [*(f"val/{kind}_{name}" for kind in ("box", "mask") for name in FIGURES), "val/examples"]
    assert results["val/examples"] == len(SIZES)
    assert results["val/box_ap50"] == results["val/mask_ap50"] == 100  # the second guess of each comes after the first
    assert np.isnan(results["val/box_ap_large"])
    assert evaluator.programs <= 3
    assert [one.image for one in evaluator.detections[::2]] == [100, 99, 98, 97, 96, 95]
    for one, other in zip(evaluator.detections[::2], evaluator.detections[1::2], strict=True):
        assert {(one.label, round(one.score, 1)), (other.label, round(other.score, 1))} >= {(0, 0.4)}
        assert one.label <= other.label  # by class, and by score within a class
        assert one.label != other.label or one.score > other.score


@pytest.mark.parametrize("changes", [{"test_canvases": 1}, {"test_canvases": 0}, {"devices": 8}])
def test_neither_canvases_nor_devices_change_what_is_found(whole, changes):
    assert run(**changes)[0].detections == whole[0].detections


def test_images_beside_a_data_set(whole):
    with runs.on(1):
        evaluator = PhotoEvaluator(Seer(), config(), sharding.make_mesh(config().mesh))
        found = list(evaluator.find({"params": jnp.ones(())}, (photo.image() for photo in photos())))
    ones = [one for photo, parts in zip(photos(), found, strict=True) for one in parts.detections(photo.number)]
    assert ones == whole[0].detections
    assert len(found[-1].labels) == 0


def test_files(whole):
    found = show.by_class(config(shown=0.5), whole[0], photos(), 2)
    assert {*found} == {"ap.csv", "detections.json", "box_ap.png", "precision_recall.png", "overlays.png"}
    results = json.loads(found["detections.json"])
    assert (len(results), results[0]["image_id"]) == (12, 100)
    assert {one["category_id"] for one in results} == {1, 2, 3}
    assert found["ap.csv"].decode().splitlines()[0].startswith("number,class,box_ap,box_ap50,box_ap75,mask_ap")


def test_boxes_alone():
    evaluator, figures = run(masks=False)
    assert len(figures) == 13
    assert not [name for name in figures if "mask" in name]
    found = show.by_class(config(masks=False), evaluator, photos(), 0)
    assert found["ap.csv"].decode().splitlines()[0] == "number,class,box_ap,box_ap50,box_ap75,objects"
    assert b"segmentation" not in found["detections.json"]


def test_what_is_drawn_is_where_it_was_found(whole):
    photo = photos()[0]
    mask = np.pad(np.ones((12, 12), np.uint8), ((8, 20), (8, 44)))
    found = show.together([Detection(1, 1, 0.9, (8, 8, 20, 20), bitmaps.encode(mask))])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    plain = np.zeros((40, 64, 3), np.uint8)
    drawn = show.detected(plain, found, Photos.classes, colours, config(shown=0.3).detect)
    assert drawn.shape == (40 * 8, 64 * 8, 3)
    assert drawn[14 * 8, 14 * 8].tolist() == [0, 115, 0]
    assert drawn[8 * 8, 14 * 8].tolist() == [0, 255, 0]  # the box
    assert not drawn[30 * 8 :].any()
    assert not show.detected(plain, found, Photos.classes, colours, config(shown=0.95).detect).any()
    boxes = show.detected(plain, found, Photos.classes, colours, config(shown=0.3, masks=False).detect)
    assert boxes[8 * 8, 14 * 8].tolist() == [0, 255, 0]
    assert not boxes[14 * 8, 14 * 8].any()
    assert show.truth(photo.image(), photo, Photos.classes, colours).any()


def test_several_processes_put_together_what_they_found(whole):
    """Each has done every second image."""
    source, said = photos(), []
    numbers = [photo.number for photo in source]
    parts = [{}, {}]
    for index, number in enumerate(numbers):
        ones = [one for one in whole[0].detections if one.image == number]
        parts[index % 2][index] = show.together(ones)
    with mock.patch.object(jax, "process_count", return_value=2):
        with mock.patch.object(hosts, "gather", lambda text: said.append(text) or [text]):
            for part in parts:
                evaluate._together(part, numbers)
        with mock.patch.object(hosts, "gather", return_value=said):
            found = evaluate._together(parts[0], numbers)
    assert found == whole[0].detections
    assert isinstance(found[0], Detection)


def test_a_photo_that_cannot_be_read():
    source = photos()
    source[1] = Photo(lambda: b"", source[1].objects, "broken.jpg", 5)
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read"):
        run(source=source)
