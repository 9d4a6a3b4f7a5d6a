"""Writes segmenter.npz, the answers of tests/reference/torch_segmenter.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_segmenter
"""

import pathlib

import numpy as np

from lape_jax.port import segmenter
from tests.models import families
from tests.reference import cases, torch_segmenter
from tests.reference.segmenter_cases import CASES

FILE = pathlib.Path(__file__).with_name("segmenter.npz")


def main() -> None:
    answers = {}
    for case in CASES:
        weights = families.weights(families.segmenter(case, "float32"), segmenter)
        answers[case.name] = cases.golden(torch_segmenter.answer(case, weights))
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
