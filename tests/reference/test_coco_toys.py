"""The toy sets themselves, and their golden figures against a live pycocotools."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from tests.reference import coco_toys
from tests.reference.coco_toys import TOYS

BY_NAME = {toy.name: toy for toy in TOYS}


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_toys_survive_json_and_float32(toy):
    assert json.loads(json.dumps(toy.truth)) == toy.truth
    for found in toy.found:
        assert tuple(np.float32(found.bbox).tolist()) == found.bbox
        assert float(np.float32(found.score)) == found.score
        assert found.bitmap.shape == (coco_toys.HEIGHT, coco_toys.WIDTH)
        assert found.bitmap.any()
    places = [(found.image_id, -found.score) for found in toy.found]
    assert places == sorted(places)
    known = {image["id"] for image in toy.truth["images"]}, {kind["id"] for kind in toy.truth["categories"]}
    assert {found.image_id for found in toy.found} <= known[0]
    assert {found.category_id for found in toy.found} <= known[1]


def test_toys_have_what_they_are_for():
    scores = collections.Counter((x.image_id, x.category_id, x.score) for x in BY_NAME["ties"].found)
    assert max(scores.values()) >= 3
    assert sum(annotation["iscrowd"] for annotation in BY_NAME["crowds"].truth["annotations"]) == 13
    sizes = {annotation["area"] for annotation in BY_NAME["areas"].truth["annotations"]}
    assert {coco_toys.SMALL, coco_toys.LARGE} <= sizes
    counts = collections.Counter((x.image_id, x.category_id) for x in BY_NAME["many"].found)
    assert counts[1, 1] > 150
    assert counts[1, 2] > 100
    with_objects = {annotation["image_id"] for annotation in BY_NAME["absent"].truth["annotations"]}
    assert with_objects == {1, 3, 5}
    assert {annotation["category_id"] for annotation in BY_NAME["absent"].truth["annotations"]} == {1, 44, 77}


def test_run_lengths_by_hand():
    bitmap = np.array([[1, 0, 0], [1, 1, 0]], np.uint8)
    assert coco_toys.counts(bitmap) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    assert coco_toys.counts(np.zeros((2, 3), np.uint8)) == {"size": [2, 3], "counts": [6]}
    assert coco_toys.counts(np.ones((1, 2), np.uint8)) == {"size": [1, 2], "counts": [0, 2]}


@pytest.mark.parametrize("name", [toy.name for toy in TOYS])
def test_goldens_are_those_of_pycocotools(name):
    pytest.importorskip("pycocotools")
    from tests.models.golden import make_coco_toys as maker

    with np.load(maker.FILE) as file:
        assert len(file.files) == len(TOYS) * 4
        for kind in ("bbox", "segm"):
            for limits in maker.LIMITS:
                expected = file[f"{name} {kind} {','.join(map(str, limits))}"]
                np.testing.assert_array_equal(maker.figures(BY_NAME[name], kind, limits), expected)


def test_order_counts_where_scores_tie():
    pytest.importorskip("pycocotools")
    from tests.models.golden import make_coco_toys as maker

    toy = BY_NAME["ties"]
    other = dataclasses.replace(toy, found=toy.found[::-1])
    for kind in ("bbox", "segm"):
        both = [maker.figures(each, kind, (1, 10, 100))[0] for each in (toy, other)]
        assert abs(both[0] - both[1]) > 0.001
