"""Writes t2t.npz, the answers of tests/reference/torch_t2t.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_t2t
"""

import pathlib

import numpy as np

from lape_jax.port import t2t
from tests.models import families
from tests.reference import cases, torch_t2t
from tests.reference.t2t_cases import CASES

FILE = pathlib.Path(__file__).with_name("t2t.npz")


def main() -> None:
    answers = {}
    for case in CASES:
        weights = families.weights(families.t2t(case, "float32"), t2t)
        answers[case.name] = cases.golden(torch_t2t.answer(case, weights))
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
