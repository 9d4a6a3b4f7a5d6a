"""Rotary position embeddings (RoPE) over a grid of patches: queries and keys are turned by angles that tell places.

Channels of a head are pairs, hd/2 of them, each a point in a plane. That of a patch in row r and column c is turned by
the angle a_m(r, c), m = 0 .. hd/2 - 1, in queries and keys alike, so that their product depends on how far two patches
lie apart. Values are not turned, nor are tokens before the patches (class, distillation). Nothing belongs to a grid:
images of another size have angles of their own, and nothing is interpolated.

With q = hd/4 and f_k = 100^(-k/q), k = 0 .. q - 1:

    kind          pairs            a_k for k < q, and a_(q+k)
    rope_axial    (2m, 2m + 1)     c f_k, r f_k
    rope_mixed    (2m, 2m + 1)     c F_0m + r F_1m for all m, with F learned by each head of each block
    rope_dinov3   (m, m + hd/2)    2 pi y f_k, 2 pi x f_k, with y = 2 (r + 1/2) / rows - 1, and x the same of columns

Source: Heo et al. 2024, "Rotary Position Embedding for Vision Transformer" (arXiv:2403.13298), naver-ai/rope-vit;
Siméoni et al. 2025, "DINOv3" (arXiv:2508.10104), facebookresearch/dinov3.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float64

from lape_jax.errors import UserError
from lape_jax.nn.position import ROPE_AXIAL, ROPE_DINOV3, ROPE_MIXED, parse_rope

THETA, THETA_MIXED = 100.0, 10.0  # the latter of initial values


class Rope(NamedTuple):
    """What turns queries and keys."""

    kind: str  # one of `lape_jax.nn.position.ROPES`
    grid: tuple[int, int]  # rows and columns of patches


def of(pe: str, grid: tuple[int, int]) -> Rope | None:
    """That of a position embedding by its name, if it has one."""
    kind = parse_rope(pe)
    return kind and Rope(kind, grid)


def check_heads(pe: str, width: int, heads: int) -> None:
    """Raises UserError unless heads of width / heads channels can be turned as `pe` says."""
    if parse_rope(pe) and width // heads % 4:
        raise UserError(
            f"pe={pe!r} turns half the pairs of a head by rows and half by columns: width={width} over heads={heads} "
            f"makes {width // heads} channels, and they must be divisible by 4"
        )


def frequencies(key: jax.Array, shape: tuple[int, int, int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Initial F (2, heads, hd/2) of "rope_mixed": two orthogonal axes in a direction of each head's own.

    With phi uniform in [0, 2 pi) for each head, q = hd/4 and g_k = 10^(-k/q), k = 0 .. q - 1:
    F_0 = [g cos(phi), g cos(phi + pi/2)], F_1 = [g sin(phi), g sin(phi + pi/2)].
    """
    _, heads, half = shape
    sizes = THETA_MIXED ** (-jnp.arange(half // 2, dtype=dtype) / (half // 2))
    phi = jax.random.uniform(key, (heads, 1), dtype, 0, 2 * math.pi)
    directions = (phi, phi + math.pi / 2)
    return jnp.stack([jnp.concatenate([sizes * wave(d) for d in directions], -1) for wave in (jnp.cos, jnp.sin)])


def fixed_angles(rope: Rope, head_dim: int) -> Float64[np.ndarray, "n half"]:
    """a_m by patch, row by row, of the kinds that learn nothing."""
    quarter = head_dim // 4
    sizes = THETA ** (-np.arange(quarter) / quarter)
    row, column = (axis.reshape(-1, 1) for axis in np.indices(rope.grid))
    if rope.kind == ROPE_AXIAL:
        return np.concatenate([column * sizes, row * sizes], axis=1)
    y, x = (2 * (axis + 0.5) / side - 1 for axis, side in zip((row, column), rope.grid, strict=True))
    return 2 * math.pi * np.concatenate([y * sizes, x * sizes], axis=1)


def turn(
    x: Float[Array, "b n d"], rope: Rope, freqs: Float[Array, "2 heads half"] | None, heads: int
) -> Float[Array, "b n d"]:
    """Queries or keys of all heads, side by side, turned; in float32 or better, whatever type they have.

    Args:
        x: queries or keys of tokens whose last ones are the patches of the grid.
        rope: how.
        freqs: F of "rope_mixed", else None.
        heads: how many.
    """
    tokens, width = x.shape[1:]
    size, full = width // heads, jnp.promote_types(x.dtype, jnp.float32)
    if rope.kind == ROPE_MIXED:
        row, column = (jnp.asarray(axis.reshape(-1, 1, 1), full) for axis in np.indices(rope.grid))
        angles = column * freqs[0].astype(full) + row * freqs[1].astype(full)
    else:
        angles = jnp.asarray(fixed_angles(rope, size)[:, None], full)
    # Tokens before the patches are turned by 0, which changes no bit of them, so that there is nothing to put together.
    angles = jnp.pad(angles, ((tokens - len(angles), 0), (0, 0), (0, 0)))
    # The other channel of a pair is `apart` channels away. Shifts of whole rows do on all chips what pairs on an axis
    # of two would do on few.
    apart, axis = (size // 2, -2) if rope.kind == ROPE_DINOV3 else (1, -1)
    cos, sin = (
        jnp.broadcast_to(jnp.stack(pair, axis).reshape(tokens, -1, size), (tokens, heads, size)).reshape(tokens, width)
        for pair in ((jnp.cos(angles), jnp.cos(angles)), (-jnp.sin(angles), jnp.sin(angles)))
    )
    y = x.astype(full)
    first = np.arange(width) % (2 * apart) < apart
    other = jnp.where(first, jnp.roll(y, -apart, axis=-1), jnp.roll(y, apart, axis=-1))
    return (y * cos + other * sin).astype(x.dtype)
