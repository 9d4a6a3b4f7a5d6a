"""Multi-head self-attention, with an optional relative position bias on the logits."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError, nearest
from lape_jax.nn.layers import normal_02
from lape_jax.nn.position import relative_position_index
from lape_jax.nn.resize import resize_rows

IMPLEMENTATIONS = ("xla", "cudnn")
Heads = Float[Array, "b n heads hd"]
Keys = Float[Array, "b m heads hd"]  # of the sequence that is attended to; m is n in self-attention
# Added to the logits: one for all sequences, or one for each of the w windows of an image, which follow one another.
Bias = Float[Array, "heads n n"] | Float[Array, "w #heads n n"]


def check_implementation(implementation: str, attn_dropout: float) -> None:
    """Raises UserError for an unknown attention `implementation`, or one that cannot do what is asked of it."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention={nearest(implementation, IMPLEMENTATIONS)}")
    if implementation == "cudnn" and attn_dropout:
        raise UserError("attention='cudnn' has no attention dropout: use attention='xla' or attn_dropout=0")


def attend_cudnn(q: Heads, k: Keys, v: Keys, bias: Float[Array, "heads n n"] | None) -> Heads:
    """softmax(q k^T / sqrt(head_dim) + bias) v by cuDNN's flash attention.

    Raises:
        UserError: cuDNN is not there, or takes no inputs of this type or shape.
    """
    bias = None if bias is None else bias[None].astype(q.dtype)
    try:
        return jax.nn.dot_product_attention(q, k, v, bias, implementation="cudnn")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"attention='cudnn' is not possible here, use attention='xla': {error}") from error


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim) + bias) v, then a projection; q, k and v come from one fused matmul.

    Logits and softmax are float32 or better. `jax.nn.dot_product_attention` serves cuDNN; its XLA path always takes the
    softmax in float32, which would spoil float64 models, and has no dropout, so that path is written out here.

    Attributes:
        heads: number of heads; must divide the width.
        grid: rows and columns of patches if there is a relative position bias, else None. The bias of the tokens before
            the patches (class, distillation), as query or key, is zero.
        table_grid: rows and columns that its table is learned for, if they are others: it is resized (bicubic).
        bias_init: initial values of its table.
        qkv_bias: whether the fused projection has a bias.
        attn_dropout: dropout on the attention weights.
        dropout: dropout after the projection.
        implementation: "xla" or "cudnn".
        dtype: type to compute in.
    """

    heads: int
    grid: tuple[int, int] | None = None
    table_grid: tuple[int, int] | None = None
    bias_init: Initializer = nn.initializers.zeros
    qkv_bias: bool = True
    attn_dropout: float = 0.0
    dropout: float = 0.0
    implementation: str = "xla"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], train: bool, mask: Float[Array, "w n n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Attention of each sequence in `x` to itself.

        Args:
            x: sequences; with a mask, b is a multiple of w.
            train: whether dropout acts.
            mask: added to the logits of all heads, `mask[i % w]` to those of sequence i (implementation "xla" alone).
        """
        batch, tokens, width = x.shape
        dense = {"dtype": self.dtype, "kernel_init": normal_02}
        qkv = nn.Dense(3 * width, use_bias=self.qkv_bias, name="qkv", **dense)(x)
        qkv = checkpoint_name(qkv, "qkv")
        # Split before it is reshaped: XLA for TPU copies less.
        q, k, v = (part.reshape(batch, tokens, self.heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        bias = None if self.grid is None else self.relative_bias(tokens)
        if mask is not None:
            bias = mask[:, None] if bias is None else bias + mask[:, None]
        y = attend_cudnn(q, k, v, bias) if self.implementation == "cudnn" else self.attend(q, k, v, bias, train)
        y = checkpoint_name(y.reshape(batch, tokens, width), "attended")
        y = nn.Dense(width, name="proj", **dense)(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y)

    def attend(self, q: Heads, k: Keys, v: Keys, bias: Bias | None, train: bool) -> Heads:
        full = jnp.promote_types(q.dtype, jnp.float32)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=full) / math.sqrt(q.shape[-1])
        if bias is not None:
            logits = (logits.reshape(-1, *bias.shape[:-3], *logits.shape[-3:]) + bias).reshape(logits.shape)
        weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
        weights = nn.Dropout(self.attn_dropout, deterministic=not train)(weights)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    def relative_bias(self, tokens: int) -> Float[Array, "heads n n"]:
        height, width = self.grid
        learned, offsets = ((2 * h - 1, 2 * w - 1) for h, w in (self.table_grid or self.grid, self.grid))
        shape = (math.prod(learned), self.heads)
        table = self.param("relative_position_bias_table", self.bias_init, shape, jnp.float32)
        if learned != offsets:
            table = resize_rows(table, learned, offsets, 0, "bicubic")
        bias = jnp.moveaxis(table[relative_position_index(self.grid)], -1, 0)
        extra = tokens - height * width
        return jnp.pad(bias, ((0, 0), (extra, 0), (extra, 0)))
