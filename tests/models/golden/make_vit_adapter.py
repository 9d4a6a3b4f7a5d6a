"""Writes vit_adapter.npz, the answers of tests/reference/torch_{vit_adapter,upernet}.py, as make.py does for ViTs.

From the root of the repository: python -m tests.models.golden.make_vit_adapter
"""

import pathlib

import numpy as np

from tests.reference import cases, vit_adapter_answers
from tests.reference.vit_adapter_cases import CASES

FILE = pathlib.Path(__file__).with_name("vit_adapter.npz")


def main() -> None:
    answers = {}
    for case in CASES:
        answer = vit_adapter_answers.answer(case)
        evaluated = {name: value for name, value in answer.items() if " " not in name}
        trained = {name: value for name, value in answer.items() if " " in name}
        answers[case.name] = cases.golden(evaluated)
        answers[f"{case.name} trained"] = cases.golden({**trained, "logits": answer[f"train {case.kept}"]})
    np.savez(FILE, **answers)
    print(f"{len(answers)} answers, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
