"""Writes big_vision.npz, the answers of tests/reference/torch_big_vision.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_big_vision
"""

import pathlib

import numpy as np

from tests.reference import big_vision_cases, cases, torch_big_vision

FILE = pathlib.Path(__file__).with_name("big_vision.npz")


def main() -> None:
    answers = {}
    for case in big_vision_cases.CASES:
        answer = torch_big_vision.answer(case, big_vision_cases.weights(case), big_vision_cases.images(case))
        answers[case.name] = cases.golden(answer)
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
