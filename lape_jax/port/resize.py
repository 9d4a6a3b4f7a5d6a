"""Position tables for another resolution: what is learned for a grid of patches, interpolated to another grid."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lape_jax.errors import UserError, nearest
from lape_jax.nn.resize import METHODS, resize_rows

Grid = tuple[int, int]


def resize_table(
    table: Float[np.ndarray, "*l n d"], old: Grid, new: Grid, extra_rows: int = 0, method: str = "bicubic"
) -> Float[np.ndarray, "*l m d"]:
    """A position table of the `old` grid (rows, columns of patches) for the `new` one.

    The first `extra_rows` rows (class and distillation token) stay as they are; the others are interpolated channel by
    channel as PyTorch's `interpolate` does it: half-pixel centres, a = -0.75 for bicubic, no antialiasing. Computed in
    float64.

    Args:
        method: "bicubic" (DeiT, LaPE, timm, mmsegmentation) or "bilinear" (Segmenter, Compact Transformers).

    Raises:
        UserError: unknown method, or a table that does not have the rows of the old grid.
    """
    if method not in METHODS:
        raise UserError(f"method={nearest(method, METHODS)}")
    if table.shape[-2] != extra_rows + old[0] * old[1]:
        raise UserError(
            f"a position table of {table.shape[-2]} rows is not one of {extra_rows} tokens and {old[0]} x {old[1]} "
            f"patches"
        )
    if tuple(old) == tuple(new):
        return table
    with jax.enable_x64(True):  # in float32, errors of the weighted sums reach 1e-6
        resized = resize_rows(jnp.asarray(table, jnp.float64), tuple(old), tuple(new), extra_rows, method)
        return np.asarray(resized).astype(table.dtype)


def resize_bias_table(
    table: Float[np.ndarray, "*l r heads"], old: Grid, new: Grid, method: str = "bicubic"
) -> Float[np.ndarray, "*l s heads"]:
    """A table of relative position biases, ((2 rows - 1)(2 columns - 1), heads) of the `old` grid, for the `new` one.

    Interpolated as `resize_table` does it, over the two axes of offsets.

    Raises:
        UserError: unknown method, or a table that does not have the rows of the old grid.
    """
    offsets = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new)]
    return resize_table(table, *offsets, method=method)
