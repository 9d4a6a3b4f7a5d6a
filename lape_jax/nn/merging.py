"""From one stage to the next (Swin): 2 x 2 neighbouring tokens become one of twice the width, and so do their PEs."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.layers import layer_norm, normal_02


def neighbours(x: Float[Array, "*b n d"], grid: tuple[int, int]) -> Float[Array, "*b m 4 d"]:
    """The four tokens of each square of 2 x 2, at (row, column) (0, 0), (1, 0), (0, 1), (1, 1); m = n / 4.

    Args:
        x: tokens row by row.
        grid: rows and columns of the tokens, both even.
    """
    *batch, _, width = x.shape
    rows, columns = grid[0] // 2, grid[1] // 2
    x = x.reshape(*batch, rows, 2, columns, 2, width)
    return jnp.moveaxis(x, -4, -2).reshape(*batch, rows * columns, 4, width)


class PatchMerging(nn.Module):
    """Linear(LN([x(0,0), x(1,0), x(0,1), x(1,1)])): 4 C channels to 2 C, without bias. Liu et al. 2021, section 3.1.

    Attributes:
        grid: rows and columns of the tokens that come in.
        ln_eps: the eps of the LayerNorm over 4 C channels.
        dtype: type to compute in.
    """

    grid: tuple[int, int]
    ln_eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        *_, width = x.shape
        x = neighbours(x, self.grid).reshape(x.shape[0], -1, 4 * width)
        x = layer_norm(self.ln_eps, self.dtype, "norm")(x)
        return nn.Dense(2 * width, use_bias=False, dtype=self.dtype, kernel_init=normal_02, name="reduction")(x)


def merge_pe(pe: Float[Array, "n d"], grid: tuple[int, int]) -> Float[Array, "m e"]:
    """The PE of merged tokens, C channels to 2 C without parameters: the means along both diagonals of each square,

        [ (p(0,0) + p(1,1)) / 2,  (p(1,0) + p(0,1)) / 2 ].

    How the PE crosses stages is not published. The counts that are (28.589 to 28.598 million for Swin-T with LaPE)
    leave room for the PE norms of the blocks alone. Transfers without parameters of their own were compared by what
    three of them, each followed by a LayerNorm, make of a 56 x 56 table of width 96:

    - The mean of all four, twice over, never spans more than the 96 dimensions it began with. A table at its initial
      values is then less distinct: a position's closest other one has a cosine of .28 at 14 x 14 (here .14), and of .22
      at 7 x 7 (here .07). Of a table that is smooth over 4 tokens, a little more of the neighbours in the image are
      still the nearest rows at 7 x 7: 72 % (here 65 %).
    - The means of the two columns [(p(0,0) + p(1,0)) / 2, (p(0,1) + p(1,1)) / 2] keep columns apart and blur rows: of
      the 2-D sinusoid, half of the neighbours are still nearest at 7 x 7 (here all are).
    - Means of neighbouring channels of the four, or PatchMerging's own LayerNorm and random initial weights, mix what
      belongs to different positions: of the smooth table, 6 and 25 % of the neighbours are still nearest at 7 x 7.
      Sharing those weights would also tie the PE to the tokens that LaPE frees it from.

    Both halves belong to the middle of the square, so that no direction is favoured, and each token has its share.
    """
    upper_left, lower_left, upper_right, lower_right = jnp.moveaxis(neighbours(pe, grid), -2, 0)
    return jnp.concatenate([(upper_left + lower_right) / 2, (lower_left + upper_right) / 2], axis=-1)
