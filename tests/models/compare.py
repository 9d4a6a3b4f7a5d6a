"""What the parity and the precision tests share: the model of a case, the stored goldens, and one way to compare."""

import functools
import pathlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lape_jax import models, port
from tests.reference import cases
from tests.reference.cases import Case


def create(case: Case, dtype=jnp.float64):
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
        peg_blocks=case.peg_blocks,
        join=case.join,
        pe_norm=case.pe_norm,
        pool=case.pool,
        distilled=case.distilled,
        layer_scale=1e-4 if case.layer_scale else None,
        ln_eps=case.ln_eps,
        dtype=dtype,
    )


def answer(
    case: Case, run: Callable, named: Callable[[dict, nn.Module], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The same tensors under the same names as golden/make.py's `answer`, from lape_jax, in float64.

    Args:
        run: f, x -> f(x), by some way of computing it.
        named: gradients and model -> arrays by the names of a state dict.
    """
    with jax.enable_x64(True):
        model = create(case)
        weights = port.from_torch(cases.weights(case), model)["params"]
        images, cotangent = jnp.asarray(cases.images(case)), cases.cotangent(case)

        def loss(params):
            logits, out = model.apply({"params": params}, images, train=False)
            found = {"logits": logits, "tokens": out["tokens"], "pe": out["pe"]}
            if case.distilled:
                found["cls_logits"], found["dist_logits"] = out["heads"]
            return jnp.sum(logits * cotangent), found

        gradients, found = run(jax.grad(loss, has_aux=True) if case.has_gradients else loss, weights)
        found = {name: np.asarray(value) for name, value in found.items() if value is not None}
        if case.has_gradients:
            by_name = named(gradients, model)
            stacked = cases.stack_layers({name: np.asarray(by_name[name]) for name in cases.shapes(case)})
            found |= {f"grad {name}": value for name, value in stacked.items()}
    assert {str(value.dtype) for value in found.values()} == {"float64"}
    return found


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).parent / "golden" / "parity.npz") as file:
        return dict(file)


def assert_close(name: str, ours, theirs: np.ndarray, tolerance: float, scale: float | None = None) -> None:
    """max|ours - theirs| <= tolerance * scale; the scale is max|theirs| unless given."""
    ours = np.asarray(ours, np.float64)
    scale = np.abs(theirs).max() if scale is None else scale
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape} against {theirs.shape}"
    error = np.abs(ours - theirs).max()
    assert error <= tolerance * scale, (
        f"{name}: differs by {error:.1e} on a scale of {scale:.1e}, allowed {tolerance:.0e}"
    )
