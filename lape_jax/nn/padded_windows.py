"""Attention within windows of a grid that they need not divide, as ViT-Adapter has it for detection."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lape_jax.nn.attention import Attention
from lape_jax.nn.encoder import Block, LayerInputs


class PaddedWindowAttention(Attention):
    """`Attention` of each token to those of its window, `window` x `window` of them, which do not overlap.

    Rows and columns are filled up, below and on the right, to whole windows, and there are no masks: what is filled in
    has queries, keys and values of zero, so that its logits are 0 (before a relative bias) and it takes a share of the
    softmax. Source: czczup/ViT-Adapter, `base/vit.py`, `WindowedAttention`.

    Attributes beside those of `Attention`, whose `grid` is that of a window:
        patches: rows and columns of all tokens.
        window: side of a window.
    """

    patches: tuple[int, int] = (1, 1)
    window: int = 1

    def mix(
        self, qkv: Float[Array, "b n qkv"], train: bool, mask: Float[Array, "w n n"] | None
    ) -> Float[Array, "b n d"]:
        """What the heads make of queries, keys and values, side by side."""
        (rows, columns), side, batch = self.patches, self.window, qkv.shape[0]
        down, across = -(-rows // side), -(-columns // side)
        margin = ((0, 0), (0, down * side - rows), (0, across * side - columns), (0, 0))
        maps = jnp.pad(qkv.reshape(batch, rows, columns, -1), margin)
        parts = maps.reshape(batch, down, side, across, side, -1).swapaxes(2, 3)
        parts = super().mix(parts.reshape(batch * down * across, side * side, -1), train, mask)
        maps = parts.reshape(batch, down, across, side, side, -1).swapaxes(2, 3)
        maps = maps.reshape(batch, down * side, across * side, -1)[:, :rows, :columns]
        return maps.reshape(batch, rows * columns, -1)


class PaddedWindowBlock(Block):
    """A `Block` with attention within windows if its options have a `window`, and else to all tokens.

    In windows, a relative bias is that of `grid=(window, window)`.
    """

    def self_attention(self, x: jax.Array, layer: LayerInputs) -> jax.Array:
        window = self.options.window
        if window is None:
            return super().self_attention(x, layer)
        grid = self.options.relative_grid and (window, window)
        attention = self.attention_layer(PaddedWindowAttention, grid=grid, patches=self.options.grid, window=window)
        return attention(x, self.train)
