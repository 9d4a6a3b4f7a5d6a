"""The model against an independent reference, tests/reference/torch_vit.py, on the same random weights in float64.

Every PE x joining x pe_norm that exists, and the options orthogonal to them: logits, the tokens after each layer, the PE
that each layer was given, and the gradient of a scalar loss by every parameter. The reference is met twice: alive, tensor
by tensor (marker `peer`, needs PyTorch), and as golden numbers, which need numpy alone.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax import models, port
from tests.reference import cases

TINY = [*cases.every_combination(), *cases.variations()]
TOLERANCE = 1e-9  # relative to the largest entry (goldens: to the norm) of the reference's tensor
# These tensors are too small for XLA's optimiser to pay: without it the file takes a third of the time.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

each_case = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)


def create(case: cases.Case, dtype=jnp.float64):
    return models.create(
        "deit_ti",
        num_classes=case.classes,
        image_size=case.image,
        patch_size=case.patch,
        in_channels=case.channels,
        width=case.width,
        depth=case.depth,
        heads=case.heads,
        mlp_ratio=case.mlp_ratio,
        pe=case.pe,
        join=case.join,
        pe_norm=case.pe_norm,
        pool=case.pool,
        distilled=case.distilled,
        layer_scale=1e-4 if case.layer_scale else None,
        ln_eps=case.ln_eps,
        dtype=dtype,
    )


@functools.cache
def answer(case: cases.Case) -> dict[str, np.ndarray]:
    """The same tensors under the same names as golden/make.py's `answer`, from lape_jax."""
    with jax.enable_x64(True):
        model = create(case)
        images, cotangent = jnp.asarray(cases.images(case)), cases.cotangent(case)

        def loss(params):
            logits, out = model.apply({"params": params}, images, train=False)
            found = {"logits": logits, "tokens": out["tokens"], "pe": out["pe"]}
            if case.distilled:
                pair, _ = model.apply({"params": params}, images, train=True)
                found |= {"cls_logits": pair[0], "dist_logits": pair[1]}
            return jnp.sum(logits * cotangent), found

        step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
        gradients, found = step(port.from_torch(cases.weights(case), model)["params"])
        by_name = port.to_torch({"params": gradients}, model)
        found |= {f"grad {name}": by_name[name] for name in cases.shapes(case)}
        assert {str(value.dtype) for value in jax.tree.leaves(found)} == {"float64"}
        found = {name: np.asarray(value) for name, value in found.items() if value is not None}
    gradients = {name: found.pop(f"grad {name}") for name in cases.shapes(case)}
    return found | {f"grad {name}": value for name, value in cases.stack_layers(gradients).items()}


def assert_close(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float, scale: float | None = None) -> None:
    scale = np.abs(theirs).max() if scale is None else scale
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape} against {theirs.shape}"
    error = np.abs(ours - theirs).max()
    assert error <= tolerance * scale, f"{name}: differs by {error / scale:.1e} of its scale, allowed {tolerance:.0e}"


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).parent / "golden" / "parity.npz") as file:
        return dict(file)


def test_goldens_are_those_of_the_cases():
    assert set(goldens()) == {case.name for case in (*TINY, *cases.realistic())}


@each_case
def test_matches_goldens(case):
    stored, ours = goldens()[case.name], cases.golden(answer(case))
    assert stored.shape == ours.shape, "other tensors than the reference's: is golden/make.py's answer the same?"
    split = case.batch * case.classes
    assert_close("logits", ours[:split], stored[:split], TOLERANCE)
    names = [name for name in sorted(answer(case)) if name != "logits"]
    for name, ours_row, row in zip(names, ours[split:].reshape(-1, 4), stored[split:].reshape(-1, 4), strict=True):
        assert_close(f"sketch of {name}", ours_row, row, TOLERANCE, scale=row[0])


@pytest.mark.peer
@each_case
def test_matches_live_reference(case):
    pytest.importorskip("torch")
    from tests.models.golden import make

    theirs = make.answer(case)
    ours = answer(case)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(name, ours[name], value, TOLERANCE)


@pytest.mark.peer
@pytest.mark.parametrize(("join", "distilled"), [("default", False), ("lape", False), ("lape", True)])
def test_deit_tiny_at_full_size(join, distilled):
    """`deit_ti` by its name: 224 x 224, patch 16, 192 wide, 12 deep, 1000 classes."""
    pytest.importorskip("torch")
    from tests.reference import torch_vit

    case = cases.Case(
        join=join, distilled=distilled, image=(224, 224), patch=(16, 16), width=192, depth=12, heads=3, classes=1000
    )
    weights, images = cases.weights(case), cases.images(case)[:1]
    theirs = torch_vit.forward(case, weights, images)
    with jax.enable_x64(True):
        model = models.create("deit_ti_distilled" if distilled else "deit_ti", join=join, dtype=jnp.float64)
        logits, out = jax.jit(functools.partial(model.apply, train=False))(port.from_torch(weights, model), images)
    assert_close("logits", np.asarray(logits), theirs["logits"], TOLERANCE)
    assert_close("tokens", np.asarray(out["tokens"]), theirs["tokens"], TOLERANCE)
    if join == "lape":
        assert_close("pe", np.asarray(out["pe"]), theirs["pe"], TOLERANCE)
