"""What is learned for a grid of patches, for another one; and kernels of patches for other sizes and colours."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lape_jax.errors import UserError, nearest
from lape_jax.nn.resize import METHODS, resize_maps, resize_rows

Grid = tuple[int, int]


def resize_table(
    table: Float[np.ndarray, "*l n d"], old: Grid, new: Grid, num_prefix_tokens: int = 0, method: str = "bicubic"
) -> Float[np.ndarray, "*l m d"]:
    """A position table of the `old` grid (rows, columns of patches) for the `new` one.

    The first `num_prefix_tokens` rows (class and distillation token) stay as they are; the others are interpolated
    channel by channel as PyTorch's `interpolate` does it: half-pixel centres, a = -0.75 for bicubic, no antialiasing.
    Computed in float64.

    Args:
        method: "bicubic" (DeiT, LaPE, timm, mmsegmentation) or "bilinear" (Segmenter, Compact Transformers).

    Raises:
        UserError: unknown method, or a table that does not have the rows of the old grid.
    """
    if method not in METHODS:
        raise UserError(f"method={nearest(method, METHODS)}")
    if table.shape[-2] != num_prefix_tokens + old[0] * old[1]:
        raise UserError(
            f"a position table of {table.shape[-2]} rows is not one of {num_prefix_tokens} tokens and "
            f"{old[0]} x {old[1]} patches"
        )
    if tuple(old) == tuple(new):
        return table
    with jax.enable_x64(True):  # in float32, errors of the weighted sums reach 1e-6
        resized = resize_rows(jnp.asarray(table, jnp.float64), tuple(old), tuple(new), num_prefix_tokens, method)
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


def resize_kernel(kernel: Float[np.ndarray, "h w c d"], size: Grid) -> Float[np.ndarray, "h2 w2 c d"]:
    """The kernel of a patch embedding for patches of another size, which gives resized patches the old embedding.

    PI-resize: with B the matrix that resizes a patch to `size` (bilinear, no antialiasing, as in FlexiViT's code), the
    kernel w of each channel becomes pinv(B^T) w, the least-squares solution of <B x, w'> = <x, w> over all patches x.
    For larger patches that holds exactly. Computed in float64.

    Source: Beyer et al. 2023, "FlexiViT: One Model for All Patch Sizes", arXiv:2212.08013, section 3.4.
    """
    with jax.enable_x64(True):
        # Of rows and of columns: B is their Kronecker product, and so is its pseudoinverse.
        one, other = (_inverse(old, new) for old, new in zip(kernel.shape[:2], size, strict=True))
    return np.einsum("ri,sj,ijcd->rscd", one, other, kernel.astype(np.float64), optimize=True).astype(kernel.dtype)


def _inverse(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """pinv(B^T) for B, the matrix (new, old) that resizes a line of pixels."""
    columns = resize_maps(jnp.eye(old, dtype=jnp.float64)[..., None], (new, old), "bilinear")[..., 0]
    return np.linalg.pinv(np.asarray(columns).T)


def recolour_kernel(kernel: Float[np.ndarray, "h w c d"], channels: int) -> Float[np.ndarray, "h w c2 d"]:
    """The kernel of a convolution over RGB images for grey ones, or the reverse.

    Summed over the channels, or a third of it for each: a grey image, given as three equal channels, has the same
    output. Computed in float64.

    Raises:
        UserError: it is neither of the two.
    """
    given = kernel.shape[2]
    if {given, channels} != {1, 3}:
        raise UserError(
            f"the weights are for images of {given} channels and the model for {channels}: only grey (1) and RGB (3) "
            f"are converted into each other"
        )
    full = kernel.astype(np.float64)
    full = full.sum(axis=2, keepdims=True) if channels == 1 else np.repeat(full / 3, 3, axis=2)
    return full.astype(kernel.dtype)
