"""Multi-head self-attention, with an optional relative position bias on the logits."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lape_jax.nn.by_blocks import by_blocks
from lape_jax.nn.choice import Choice, OnDevices, Site, by_shards, choose
from lape_jax.nn.cudnn import attend_cudnn
from lape_jax.nn.layers import normal_02
from lape_jax.nn.position import relative_position_index
from lape_jax.nn.resize import resize_rows
from lape_jax.nn.rope import ROPE_MIXED, Rope, frequencies, turn

BLOCK = 256  # most queries at a time of "blocks"
Heads = Float[Array, "b n heads hd"]
Keys = Float[Array, "b m heads hd"]  # of the sequence that is attended to; m is n in self-attention
# Added to the logits: one for all sequences, or one for each of the w windows of an image, which follow one another.
Bias = Float[Array, "heads n n"] | Float[Array, "w #heads n n"]


def attention_weights(q: Heads, k: Keys, bias: jax.Array | None) -> Float[Array, "b heads n m"]:
    """softmax(q k^T / sqrt(head_dim) + bias) in float32 or better, and then of the type of q."""
    full = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=full) / math.sqrt(q.shape[-1])
    return jax.nn.softmax(add_bias(logits, bias), axis=-1).astype(q.dtype)


def add_bias(logits: Float[Array, "b heads n m"], bias: jax.Array | None) -> Float[Array, "b heads n m"]:
    """logits + bias, which is one for all sequences, or one for each of w that follow one another."""
    if bias is None:
        return logits
    return (logits.reshape(-1, *bias.shape[:-3], *logits.shape[-3:]) + bias).reshape(logits.shape)


def attend_plainly(
    q: Heads, k: Keys, v: Keys, bias: jax.Array | None, dropout: Callable[[jax.Array], jax.Array] = lambda w: w
) -> Heads:
    """softmax(q k^T / sqrt(head_dim) + bias) v, with `dropout` of the weights.

    Types of fewer digits than float32 have `attention_weights` rounded once. Where there is nothing to round, their
    sums divide the product with v instead, which has fewer numbers; then the backward pass has no sums over rows of
    (n, m), either. CPUs, which compute in those types, want the heads first in the products of both passes: each of q,
    k and v is turned once for all of them.
    """
    if q.dtype != jnp.promote_types(q.dtype, jnp.float32):
        return jnp.einsum("bhqk,bkhd->bqhd", dropout(attention_weights(q, k, bias)), v)
    q, k, v = (part.swapaxes(1, 2) for part in (q / math.sqrt(q.shape[-1]), k, v))
    logits = add_bias(jnp.einsum("bhqd,bhkd->bhqk", q, k), bias)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    y = jnp.einsum("bhqk,bhkd->bhqd", dropout(weights), v) / weights.sum(axis=-1, keepdims=True)
    return y.swapaxes(1, 2)


def attend_in_blocks(
    q: Heads, k: Keys, v: Keys, bias: Callable[[Int[Array, " s"]], jax.Array] | None = None, block: int = BLOCK
) -> Heads:
    """softmax(q k^T / sqrt(head_dim) + bias) v for some queries at a time, as `attend_plainly` otherwise has it.

    What exists at a time are the weights of at most `block` queries, (b, heads, block, m), see
    `lape_jax.nn.by_blocks`; the gradients of k and v are added up in float32 or better.

    Args:
        bias: what is added to the logits of the queries with these places in their sequence, (heads, s, m) or
            (w, #heads, s, m).
        block: how many.
    """
    full = jnp.promote_types(q.dtype, jnp.float32)

    def some(rows, part, keys, values):
        return attend_plainly(part, keys.astype(k.dtype), values.astype(v.dtype), bias and bias(rows))

    # The gradients of keys and values are added up in the type that they have out here.
    return by_blocks(some, [q], [k.astype(full), v.astype(full)], axis=1, into=1, block=block)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim) + bias) v, then a projection; q, k and v come from one fused matmul.

    Logits and softmax are float32 or better. `jax.nn.dot_product_attention` serves cuDNN; its XLA path always takes the
    softmax in float32, which would spoil float64 models, and has no dropout, so that path is written out here. Fused
    kernels are as near to it as bfloat16 is to float32.

    Attributes:
        heads: number of heads; must divide the width.
        grid: rows and columns of patches if there is a relative position bias, else None. The bias of the tokens before
            the patches (class, distillation), as query or key, is zero.
        table_grid: rows and columns that its table is learned for, if they are others: it is resized (bicubic).
        bias_init: initial values of its table.
        rope: turns queries and keys before they meet, whatever attends; its grid is that of all patches.
        qkv_bias: whether the fused projection has a bias.
        attn_dropout: dropout on the attention weights.
        dropout: dropout after the projection.
        implementation: "xla"; "blocks", which is the same for up to `BLOCK` tokens, and for more never has the weights
            of all queries at a time (see `attend_in_blocks`); "cudnn"; "pallas", a kernel for short sequences on TPUs
            (`lape_jax.nn.tpu_attention`); or "auto", the one that suits, see `lape_jax.nn.choice.choose`.
        dtype: type to compute in.
    """

    heads: int
    grid: tuple[int, int] | None = None
    table_grid: tuple[int, int] | None = None
    bias_init: Initializer = nn.initializers.zeros
    rope: Rope | None = None
    qkv_bias: bool = True
    attn_dropout: float = 0.0
    dropout: float = 0.0
    implementation: str | OnDevices = "xla"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], train: bool, mask: Float[Array, "w n n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Attention of each sequence in `x` to itself.

        Args:
            x: sequences; with a mask, b is a multiple of w.
            train: whether dropout acts.
            mask: added to the logits of all heads, `mask[i % w]` to those of sequence i.
        """
        width = x.shape[-1]
        dense = {"dtype": self.dtype, "kernel_init": normal_02}
        qkv = nn.Dense(3 * width, use_bias=self.qkv_bias, name="qkv", **dense)(x)
        qkv = checkpoint_name(qkv, "qkv")
        if self.rope is not None:
            q, k, v = jnp.split(qkv, 3, axis=-1)
            qkv = jnp.concatenate([*self.turned(q, k), v], axis=-1)
        y = checkpoint_name(self.mix(qkv, train, mask), "attended")
        y = nn.Dense(width, name="proj", **dense)(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y)

    def turned(self, *parts: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], ...]:
        """Queries or keys of all heads, side by side, as `rope` turns them."""
        freqs = None
        if self.rope.kind == ROPE_MIXED:
            shape = (2, self.heads, parts[0].shape[-1] // self.heads // 2)
            freqs = jnp.asarray(self.param("freqs", frequencies, shape, jnp.float32))
        return tuple(turn(part, self.rope, freqs, self.heads) for part in parts)

    def mix(
        self, qkv: Float[Array, "b n qkv"], train: bool, mask: Float[Array, "w n n"] | None
    ) -> Float[Array, "b n d"]:
        """What the heads make of queries, keys and values, side by side."""
        batch, tokens, width = qkv.shape
        shape = (batch, tokens, self.heads, width // 3 // self.heads)
        if self.choice(shape, shape, train, mask).name == "pallas":
            from lape_jax.nn.tpu_attention import attend_short  # here, as most have no TPU

            bias = self.whole_bias(tokens, mask)
            if bias is not None:
                bias = jnp.broadcast_to(bias, (bias.shape[0], self.heads, tokens, tokens))
            return by_shards(partial(attend_short, self.heads), self.implementation, False, qkv, bias)
        # Split before it is reshaped: XLA for TPU copies less.
        q, k, v = (part.reshape(shape) for part in jnp.split(qkv, 3, axis=-1))
        return self.attend(q, k, v, train, mask).reshape(batch, tokens, -1)

    def choice(
        self, queries: tuple[Any, ...], keys: tuple[Any, ...], train: bool, mask: Float[Array, "w n n"] | None
    ) -> Choice:
        """Which implementation attends, of queries and keys of these shapes (sequences, tokens, heads, channels).

        In a program that is exported the number of sequences may be a symbol.
        """
        windows = mask.shape[0] if mask is not None else int(self.grid is not None)
        return choose(
            self.implementation,
            Site(*queries[:2], *keys[1:], jnp.dtype(self.dtype), train and self.attn_dropout > 0, windows),
        )

    def attend(self, q: Heads, k: Keys, v: Keys, train: bool, mask: Float[Array, "w n n"] | None = None) -> Heads:
        """What each head makes of its queries, keys and values, by the `implementation`."""
        tokens, name = q.shape[1], self.choice(q.shape, k.shape, train, mask).name
        if name == "pallas":
            qkv = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in (q, k, v)], axis=-1)
            return self.mix(qkv, train, mask).reshape(q.shape)
        if name == "blocks" and tokens > BLOCK:
            return attend_in_blocks(q, k, v, self.bias_of_rows(tokens, mask))
        bias = self.whole_bias(tokens, mask)
        if name == "cudnn":
            return by_shards(attend_cudnn, self.implementation, True, q, k, v, bias)
        bias = bias if bias is None or mask is not None else bias[0]
        return attend_plainly(q, k, v, bias, nn.Dropout(self.attn_dropout, deterministic=not train))

    def whole_bias(self, tokens: int, mask: Float[Array, "w n n"] | None) -> Bias | None:
        """What is added to the logits of each sequence, or of each of the w sequences of an image."""
        bias = None if self.grid is None else self.relative_bias(tokens)[None]
        if mask is None:
            return bias
        return mask[:, None] if bias is None else bias + mask[:, None]

    def relative_bias(self, tokens: int) -> Float[Array, "heads n n"]:
        height, width = self.grid
        bias = jnp.moveaxis(self.bias_table()[relative_position_index(self.grid)], -1, 0)
        extra = tokens - height * width
        return jnp.pad(bias, ((0, 0), (extra, 0), (extra, 0)))

    def bias_table(self) -> Float[Array, "r heads"]:
        """The relative biases of all offsets in `grid`, a row for each."""
        learned, offsets = ((2 * h - 1, 2 * w - 1) for h, w in (self.table_grid or self.grid, self.grid))
        shape = (math.prod(learned), self.heads)
        table = self.param("relative_position_bias_table", self.bias_init, shape, jnp.float32)
        return table if learned == offsets else resize_rows(table, learned, offsets, 0, "bicubic")

    def bias_of_rows(
        self, tokens: int, mask: Float[Array, "w n n"] | None
    ) -> Callable[[Int[Array, " s"]], jax.Array] | None:
        """The rows of the bias that are asked for, made when they are: there is never a whole one of n x n."""
        if self.grid is None:
            return None if mask is None else lambda rows: mask[:, None, rows]
        table, width = self.bias_table(), self.grid[1]
        extra = tokens - math.prod(self.grid)

        def bias(rows: Int[Array, " s"]) -> Float[Array, "heads s n"] | Float[Array, "w heads s n"]:
            query, key = rows[:, None] - extra, jnp.arange(tokens) - extra
            down = query // width - key // width + self.grid[0] - 1
            right = query % width - key % width + width - 1
            patches = (query >= 0) & (key >= 0)
            found = jnp.where(patches, jnp.moveaxis(table[down * (2 * width - 1) + right], -1, 0), 0)
            return found if mask is None else found + mask[:, None, rows]

        return bias
