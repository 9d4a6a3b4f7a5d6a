"""What the parity and the precision tests share: the model of a case, the stored goldens, and one way to compare."""

import functools
import pathlib

import jax.numpy as jnp
import numpy as np

from lape_jax import models
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
