"""Writes rope.npz, the answers of the references to tests/reference/rope_cases.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_rope
"""

import pathlib

import numpy as np

from lape_jax.port import segmenter
from tests.models import families
from tests.models.golden import make
from tests.reference import cases, torch_segmenter, vit_adapter_answers
from tests.reference.rope_cases import ADAPTERS, SEGMENTERS, VITS
from tests.reference.vit_adapter_cases import AdapterCase


def evaluated(case: AdapterCase) -> dict[str, np.ndarray]:
    """What of the answer is no matter of training."""
    training = ("train ", "grad ", "moved ")
    return {name: x for name, x in vit_adapter_answers.answer(case).items() if not name.startswith(training)}


def segmented(case: cases.Case) -> dict[str, np.ndarray]:
    return torch_segmenter.answer(case, families.weights(families.segmenter(case, "float32"), segmenter))


FILE = pathlib.Path(__file__).with_name("rope.npz")
ANSWERS = [(make.answer, VITS), (segmented, SEGMENTERS), (evaluated, ADAPTERS)]


def main() -> None:
    answers = {case.name: cases.golden(answer(case)) for answer, family in ANSWERS for case in family}
    np.savez(FILE, **answers)
    print(f"{len(answers)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
