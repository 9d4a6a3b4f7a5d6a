"""Writes parity.npz, the reference's answers by which the parity tests work without PyTorch.

From the root of the repository: python -m tests.models.golden.make
One float64 vector per case, keyed by the case's name; `tests.reference.cases.golden` says what is in it. Weights and
images are not stored: the tests draw them again from the same numpy streams.
"""

import pathlib

import numpy as np

from tests.reference import cases, torch_vit

FILE = pathlib.Path(__file__).with_name("parity.npz")


def answer(case: cases.Case) -> dict[str, np.ndarray]:
    """All that is compared: outputs under their own names, gradients (layers stacked) as `grad <name>`."""
    weights, images = cases.weights(case), cases.images(case)
    found = torch_vit.forward(case, weights, images)
    if case.has_gradients:
        gradients = torch_vit.gradients(case, weights, images, cases.cotangent(case))
        found |= {f"grad {name}": value for name, value in cases.stack_layers(gradients).items()}
    return found


def main() -> None:
    tiny = [*cases.every_combination(), *cases.variations()]
    goldens = {case.name: cases.golden(answer(case)) for case in tiny}
    for case in cases.realistic():
        goldens[case.name] = torch_vit.forward(case, cases.weights(case), cases.images(case))["logits"]
    np.savez(FILE, **goldens)
    print(f"{len(goldens)} cases, {FILE.stat().st_size / 1024:.0f} KiB in {FILE.name}")


if __name__ == "__main__":
    main()
