"""Writes swin.npz, the answers of tests/reference/torch_swin.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_swin
"""

import pathlib

import numpy as np

from lape_jax.port import swin
from tests.models import families
from tests.reference import cases, torch_swin
from tests.reference.swin_cases import CASES

FILE = pathlib.Path(__file__).with_name("swin.npz")


def main() -> None:
    answers = {}
    for case in CASES:
        weights = families.weights(families.swin(case, "float32"), swin)
        answers[case.name] = cases.golden(torch_swin.answer(case, weights))
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
