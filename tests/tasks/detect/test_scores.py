"""Average precision, against figures that pycocotools gave by other code (tests/models/golden/make_coco_toys.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from lape_jax.errors import UserError
from lape_jax.tasks.detect import bitmaps, coco, scores
from lape_jax.tasks.detect.photo import Photo
from lape_jax.tasks.detect.scores import Detection
from tests import quick
from tests.reference.coco_toys import TOYS

GOLDEN = np.load(Path(__file__).parents[2] / "models" / "golden" / "coco_toys.npz")


class Photos(list):
    """Those that a file of annotations tells of."""

    def __init__(self, path):
        found = coco.read(str(path))
        self.ids, self.classes = found.ids, tuple(found.ids)
        super().__init__(Photo(bytes, entry.objects, entry.file, entry.number) for entry in found.entries)


def opened(truth, tmp_path):
    (tmp_path / "toy.json").write_text(json.dumps(truth))
    return Photos(tmp_path / "toy.json")


def detections(toy, source):
    label = {number: label for label, number in enumerate(source.ids.values())}
    return [
        Detection(
            one.image_id,
            label[one.category_id],
            one.score,
            (one.bbox[0], one.bbox[1], one.bbox[0] + one.bbox[2], one.bbox[1] + one.bbox[3]),
            bitmaps.encode(one.bitmap),
        )
        for one in toy.found
    ]


@quick.cases(TOYS, first=("ties", "silent", "areas"))
def test_figures_are_those_of_pycocotools_to_the_last_bit(case, tmp_path):
    source = opened(case.truth, tmp_path)
    found = scores.evaluate(source, detections(case, source))
    for kind, called in scores.KINDS.items():
        expected = GOLDEN[f"{case.name} {called} 1,10,100"]
        ours = [found.figures[f"{kind}_{name}"] for name in scores.FIGURES]
        np.testing.assert_array_equal(ours, np.where(expected < 0, np.nan, 100 * expected))
        ap = found.of_classes(kind)
        assert np.nanmean(ap) == pytest.approx(found.figures[f"{kind}_ap"], rel=1e-12)
        assert np.nanmean(found.of_classes(kind, 0)) == pytest.approx(found.figures[f"{kind}_ap50"], rel=1e-12)


def test_without_an_object_there_is_nothing_to_evaluate_by(tmp_path):
    toy = TOYS[0]
    source = opened({**toy.truth, "annotations": []}, tmp_path)
    with pytest.raises(UserError, match="has an object of a known class"):
        scores.evaluate(source, [])
