"""Writes ceit.npz, the answers of tests/reference/torch_ceit.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_ceit
"""

import pathlib

import numpy as np

from lape_jax.port import ceit
from tests.models import families
from tests.reference import cases, torch_ceit
from tests.reference.ceit_cases import CASES

FILE = pathlib.Path(__file__).with_name("ceit.npz")


def main() -> None:
    answers = {}
    for case in CASES:
        weights = families.weights(families.ceit(case, "float32"), ceit)
        answers[case.name] = cases.golden(torch_ceit.answer(case, weights))
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
