"""Writes coco_toys.npz: what pycocotools says of the sets of tests/reference/coco_toys.py.

From the root of the repository: python -m tests.models.golden.make_coco_toys (made with pycocotools 2.0.11)
A key is "TOY KIND LIMITS": KIND is bbox or segm, LIMITS are the most detections of a class and image. "1,10,100" are
COCO's twelve figures; "100,300,1000" are MMDetection's, AP at 100 and all other precisions at 1000.
"""

import contextlib
import copy
import io
import pathlib

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.reference.coco_toys import TOYS, Toy

FILE = pathlib.Path(__file__).with_name("coco_toys.npz")
LIMITS = ((1, 10, 100), (100, 300, 1000))


def figures(toy: Toy, kind: str, limits: tuple[int, int, int]) -> np.ndarray:
    """(12,) float64; -1 where there is no object."""
    results = []
    for found in toy.found:
        result = {"image_id": found.image_id, "category_id": found.category_id, "score": found.score}
        if kind == "bbox":
            result["bbox"] = list(found.bbox)
        else:
            result["segmentation"] = mask.encode(np.asfortranarray(found.bitmap))
        results.append(result)
    if not results:  # pycocotools cannot load an empty list
        return nothing_found(toy, kind, limits)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(toy.truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        return run(evaluation, limits)


def nothing_found(toy: Toy, kind: str, limits: tuple[int, int, int]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth, answer = COCO(), COCO()
        truth.dataset = copy.deepcopy(toy.truth)
        truth.createIndex()
        answer.dataset = {**copy.deepcopy(toy.truth), "annotations": []}
        answer.createIndex()
        return run(COCOeval(truth, answer, kind), limits)


def run(evaluation: COCOeval, limits: tuple[int, int, int]) -> np.ndarray:
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.array(evaluation.stats)


def main() -> None:
    answers = {}
    for toy in TOYS:
        for kind in ("bbox", "segm"):
            for limits in LIMITS:
                answers[f"{toy.name} {kind} {','.join(map(str, limits))}"] = figures(toy, kind, limits)
    np.savez(FILE, **answers)
    for name, value in answers.items():
        print(f"{name:28}", *(f"{x:7.4f}" for x in value))


if __name__ == "__main__":
    main()
