"""Writes mask_rcnn.npz, the answers of tests/reference/mask_rcnn_answers.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_mask_rcnn
`tests.reference.mask_rcnn_cases` says what is kept of an answer (`stored`), and reads the file (`golden`).
"""

import pathlib

import numpy as np

from tests.reference import mask_rcnn_answers
from tests.reference.mask_rcnn_cases import CASES, golden, pack, stored

FILE = pathlib.Path(__file__).with_name("mask_rcnn.npz")


def main() -> None:
    answers = {case.name: stored(mask_rcnn_answers.answer(case)) for case in CASES}
    arrays: dict[str, np.ndarray] = {}
    for name, answer in answers.items():
        arrays |= pack(name, answer)
    np.savez_compressed(FILE, **arrays)
    for name, answer in answers.items():
        found = golden(FILE, name)
        assert all(np.array_equal(found[key], value) for key, value in answer.items())
    print(f"{sum(map(len, answers.values()))} answers, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
