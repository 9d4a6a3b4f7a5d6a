"""Maps of another size, interpolated as PyTorch's `interpolate` does it with `align_corners=False`.

Pixel centres are at i + 1/2, borders are repeated, there is no antialiasing, and the bicubic kernel has a = -0.75.
"""

import jax
import jax.numpy as jnp
from jax.image import ResizeMethod
from jaxtyping import Array, Float

METHODS = {"bicubic": ResizeMethod.CUBIC_PYTORCH, "bilinear": ResizeMethod.LINEAR}


def resize_maps(maps: Float[Array, "*l h w c"], size: tuple[int, int], method: str) -> Float[Array, "*l h2 w2 c"]:
    """`maps` with so many rows and columns, by one of `METHODS`; computed in the type that they have."""
    shape = (*maps.shape[:-3], *size, maps.shape[-1])
    return jax.image.resize(maps, shape, METHODS[method], antialias=False)


def resize_rows(
    table: Float[Array, "*l n d"], old: tuple[int, int], new: tuple[int, int], num_prefix_tokens: int, method: str
) -> Float[Array, "*l m d"]:
    """A table of the `old` grid (rows, columns of patches) for the `new` one; the first rows stay as they are."""
    *layers, _, width = table.shape
    maps = table[..., num_prefix_tokens:, :].reshape(*layers, *old, width)
    patches = resize_maps(maps, new, method).reshape(*layers, new[0] * new[1], width)
    return jnp.concatenate([table[..., :num_prefix_tokens, :], patches], axis=-2)
