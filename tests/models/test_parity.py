"""The model against an independent reference, tests/reference/torch_vit.py, on the same random weights in float64.

Every PE x joining x pe_norm that exists, and the options orthogonal to them: logits, the tokens after each layer, the
PE that each layer was given, and the gradient of a scalar loss by every parameter (`Case.has_gradients`). The reference
is met twice: alive, tensor by tensor (marker `peer`, needs PyTorch), and as golden numbers, which need numpy alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from tests import quick
from tests.models import compare, stepwise
from tests.models.compare import assert_close, goldens
from tests.reference import cases

TINY = [*cases.every_combination(), *cases.variations()]
COMPILED = [
    case for case in TINY if case.name in ("default-learnable", "shared-sincos_1d", "unshared-learnable+relative")
]
COMPILED += [cases.Case(join="lape_sharing"), cases.Case(pe="sincos_2d+relative", join="lape")]
TOLERANCE = 1e-9  # relative to the largest entry (goldens: to the norm) of the reference's tensor

# Some kinds of PE and joining, and some of the other options.
FIRST = {"lape-learnable-layernorm-distilled", "unshared-learnable+peg", "default-relative-oblong_patches"}
each_case = quick.cases(TINY, FIRST)


@functools.cache
def answer(case: cases.Case, compiled: bool = False) -> dict[str, np.ndarray]:
    """See `compare.answer`.

    Run operation by operation unless `compiled`: all cases are made of the same small operations. Of a few cases it
    takes less to compile each whole.
    """
    run = (lambda f, x: quick.jit(f)(x)) if compiled else stepwise.run
    return compare.answer(case, run, lambda gradients, model: port.to_torch({"params": gradients}, model))


def assert_golden(case: cases.Case, found: dict[str, np.ndarray]) -> None:
    stored, ours = goldens()[case.name], cases.golden(found)
    assert stored.shape == ours.shape, f"the reference gave other tensors than these: {', '.join(sorted(found))}"
    logits = case.batch * case.classes
    assert_close("logits", ours[:logits], stored[:logits], TOLERANCE)
    names = [name for name in sorted(found) if name != "logits"]
    for name, row, expected in zip(names, ours[logits:].reshape(-1, 4), stored[logits:].reshape(-1, 4), strict=True):
        assert_close(f"sketch of {name}", row, expected, TOLERANCE, scale=expected[0])


def test_goldens_are_those_of_the_cases():
    assert set(goldens()) == {case.name for case in (*TINY, *cases.realistic())}


@each_case
def test_matches_goldens(case):
    assert_golden(case, answer(case, compiled=case.name in FIRST))


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_compiled_matches_goldens(case):
    assert_golden(case, answer(case, compiled=True))


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.models.golden import make

    ours, theirs = answer(case, compiled=case.name in FIRST), make.answer(case)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(name, ours[name], value, TOLERANCE)


@pytest.mark.peer
@pytest.mark.parametrize(("join", "distilled"), [("default", False), ("lape", False), ("lape", True)])
def test_deit_tiny_at_full_size(join, distilled):
    """`deit_ti` by its name: 224 x 224, patch 16, 192 wide, 12 deep, 1000 classes."""
    pytest.importorskip("torch")
    from tests.reference import torch_vit

    size = {"image": (224, 224), "patch": (16, 16), "width": 192, "depth": 12, "heads": 3, "classes": 1000, "batch": 1}
    case = cases.Case(join=join, distilled=distilled, **size)
    weights, images = cases.weights(case), cases.images(case)
    theirs = torch_vit.forward(case, weights, images)
    with jax.enable_x64(True):
        model = models.create("deit_ti_distilled" if distilled else "deit_ti", join=join, dtype=jnp.float64)
        apply = jax.jit(functools.partial(model.apply, train=False))
        logits, out = apply(port.from_torch(weights, model), jnp.asarray(images))
    assert_close("logits", logits, theirs["logits"], TOLERANCE)
    assert_close("tokens", out["tokens"], theirs["tokens"], TOLERANCE)
    if join == "lape":
        assert_close("pe", out["pe"], theirs["pe"], TOLERANCE)
