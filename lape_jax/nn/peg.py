"""Positional encoding generator: a position embedding that a convolution makes from the tokens themselves."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.nn.encoder import Carry, Encoder


class PEG(nn.Module):
    """x + conv(x) for the patches as a map, a depth-wise 3x3 convolution with bias, stride 1 and a border of zeros.

    The border is what tells positions apart. Tokens before the patches (class, distillation) pass unchanged. Initial
    values: kernel N(0, 2/9), bias 0. Source: Chu et al. 2021, "Conditional Positional Encodings for Vision
    Transformers" (CPVT, arXiv:2102.10882); `PosCNN` and `CPVTV2` in Meituan-AutoML/Twins, `gvt.py`.

    Attributes:
        grid: rows and columns of patches.
        dtype: type to compute in.
    """

    grid: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], grid: tuple[int, int] | None = None) -> Float[Array, "b n d"]:
        """Tokens with what their neighbours say of them; a `grid` takes the place of the attribute."""
        batch, tokens, width = x.shape
        rows, columns = grid or self.grid
        extra = tokens - rows * columns
        convolution = nn.Conv(
            width,
            (3, 3),
            padding=1,
            feature_group_count=width,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(math.sqrt(2 / 9)),
            name="proj",
        )
        encoding = convolution(x[:, extra:].reshape(batch, rows, columns, width)).reshape(batch, -1, width)
        return x + jnp.pad(encoding, ((0, 0), (extra, 0), (0, 0))).astype(x.dtype)


def check_pegs(pe: str, blocks: int, depth: int) -> None:
    """Raises UserError unless a model of this depth and `pe` can have PEGs after its first so many `blocks`."""
    if position.has_peg(pe) and not 1 <= blocks <= depth:
        raise UserError(f"peg_blocks={blocks} is not between 1 and depth={depth}")
    if not position.has_peg(pe) and blocks != 1:
        raise UserError(f"peg_blocks={blocks} is for a pe such as 'peg' or 'learnable+peg', and pe={pe!r} has no PEG")


def encode_with_pegs(
    encoder: Encoder,
    pegs: Sequence[PEG],
    carry: Carry,
    layer_pe: Float[Array, "l n d"] | None,
    *,
    train: bool,
    first: int,
    count: int | None,
    grid: tuple[int, int] | None = None,
    **changed: Any,
) -> tuple[Carry, dict[str, jax.Array | None]]:
    """Runs the encoder as `Encoder.__call__` does, but `pegs[l]` acts on the tokens between block l and block l+1.

    What is returned per layer is what the blocks put out, before a PEG acts on it; the carry has been through it. The
    carried PE is not touched. A `grid` takes the place of that which encoder and PEGs were made for; what else is
    `changed` is so in the blocks.
    """
    other = {} if grid is None else {"grid": grid}
    stop = encoder.depth if count is None else first + count
    cuts = [first, *(block for block in range(1, len(pegs) + 1) if first < block < stop), stop]
    parts = []
    for start, end in itertools.pairwise(cuts):
        carry, out = encoder(carry, layer_pe, train=train, first=start, count=end - start, **other, **changed)
        parts.append(out)
        if end <= len(pegs):
            carry = carry._replace(tokens=pegs[end - 1](carry.tokens, **other))
    return carry, jax.tree.map(lambda *layers: jnp.concatenate(layers), *parts)
