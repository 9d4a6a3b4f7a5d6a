"""Writes compact.npz, the answers of tests/reference/torch_compact.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_compact
"""

import pathlib

import numpy as np

from lape_jax.port import compact
from tests.models import families
from tests.reference import cases, torch_compact
from tests.reference.compact_cases import CASES

FILE = pathlib.Path(__file__).with_name("compact.npz")


def main() -> None:
    answers = {}
    for case in CASES:
        weights = families.weights(families.compact(case, "float32"), compact)
        answers[case.name] = cases.golden(torch_compact.answer(case, weights))
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
