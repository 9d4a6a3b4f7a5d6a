"""Windows of a grid of tokens, shifted in every second block (Swin).

Tokens lie row by row, (batch, rows * columns, D), whatever is done with them in between.
Source: Liu et al. 2021, "Swin Transformer", section 3.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lape_jax.nn.encoder import Block, LayerInputs
from lape_jax.nn.layers import normal_02

MASKED = -100.0  # added to the logit of two tokens that only the cyclic shift has brought together


class Windows(NamedTuple):
    """How a grid is cut into windows of `size` x `size` tokens that attend to one another.

    Every second block moves the tokens up and left by `shift` first, cyclically, and back afterwards, so that its
    windows cross the borders of those of the other blocks. Windows at the edge then hold tokens from both ends of the
    grid, which a mask keeps apart. With shift 0 all blocks are alike.
    """

    grid: tuple[int, int]
    size: int
    shift: int

    def order(self, shifted: bool) -> Int[np.ndarray, " n"]:
        """The tokens in the order of windows: window by window, and row by row in each."""
        return self._cut(np.roll(np.arange(np.prod(self.grid)).reshape(self.grid), -self.shift * shifted, (0, 1)))

    def mask(self) -> Float[np.ndarray, "w s s"]:
        """The mask of shifted windows, by window, query and key: `MASKED` if from different ends of the grid, else 0.

        The s = size * size tokens of a window are those of a line of `order(True)`.
        """
        wrapped = [np.arange(side) >= side - self.shift for side in self.grid]  # where they are after the shift
        end = self._cut(2 * wrapped[0][:, None] + wrapped[1]).reshape(-1, self.size**2)
        return np.where(end[:, :, None] != end[:, None, :], MASKED, 0.0).astype(np.float32)

    def _cut(self, grid: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, " n"]:
        rows, columns = (side // self.size for side in self.grid)
        return grid.reshape(rows, self.size, columns, self.size).swapaxes(1, 2).reshape(-1)


@jax.custom_vjp
def reorder(x: Float[Array, "b n d"], order: Int[Array, " n"], back: Int[Array, " n"]) -> Float[Array, "b n d"]:
    """y[:, i] = x[:, order[i]], a permutation whose inverse is `back`; its gradient is `reorder(g, back, order)`.

    JAX by itself would add the gradient up into zeros, row by row.
    """
    return x.at[:, order].get(mode="promise_in_bounds", unique_indices=True)


reorder.defvjp(
    lambda x, order, back: (reorder(x, order, back), (order, back)),
    lambda orders, g: (reorder(g, orders[1], orders[0]), None, None),
)


class WindowBlock(Block):
    """A `Block` whose tokens attend to those of their window, in odd blocks (by `layer.index`) of a shifted one.

    The scan over blocks takes both kinds in turn with one program: a block's order of tokens and mask are chosen by its
    index. XLA lays tokens out so that each is moved for all images at once. In programs compiled for TPU v5e (none was
    run), two blocks of 56 x 56 tokens x 96 with one small product in place of attention and MLP, 64 images forth and
    back, move 1.8 GB to and from memory this way. With a choice between the rolled map and the map as it is they move
    5.7 GB, with a roll by a variable number 5.2, with a slice at a variable place of a wrapped map 4.0, with a branch
    around the rolls 3.7 or around all between them 2.9, and with two blocks per turn, each of its own kind, 3.0. Whole
    blocks move 28.3 GB this way, and 32.9 with the first of the others.

    Attributes: see `Block`, whose options have `windows`; a relative position bias is that of a window, and starts as
    N(0, 0.02^2).
    """

    def self_attention(self, x: jax.Array, layer: LayerInputs) -> jax.Array:
        windows, tokens = self.options.windows, x.shape[1]
        x = x.astype(self.options.dtype)  # first, as there is less to move
        attention = self.attention_layer(bias_init=normal_02)
        if windows.size**2 == tokens:
            return attention(x, self.train)
        shifted = layer.index % 2 == 1
        kinds = [windows.order(odd) for odd in (False, True)]
        order, back = (jnp.where(shifted, *reversed(pair)) for pair in (kinds, [np.argsort(kind) for kind in kinds]))
        mask = jnp.where(shifted, windows.mask(), 0) if windows.shift else None
        parts = reorder(x, order, back).reshape(-1, windows.size**2, x.shape[-1])
        y = attention(parts, self.train, mask)
        return reorder(y.reshape(x.shape), back, order)
