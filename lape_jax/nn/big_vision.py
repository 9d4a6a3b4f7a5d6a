"""Block, encoder and attention pooling with the parameters that google-research/big_vision has for them."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.nn.attention import Attention
from lape_jax.nn.encoder import Block, Carry, Encoder, LayerInputs, with_remat
from lape_jax.nn.layers import GELUS, layer_norm

AXES = ("act_batch", "act_len", "act_emb")  # what big_vision's sharding rules call the axes of tokens
xavier = nn.initializers.xavier_uniform()


class EncoderBlock(Block):
    """`Block` with big_vision's names, and what big_vision reports of a block."""

    norm_names: ClassVar = ("LayerNorm_0", "LayerNorm_1")
    reported: ClassVar = ("attended", "residual", "transformed", "tokens", "pe")

    def self_attention(self, x: jax.Array, layer: LayerInputs) -> jax.Array:
        """The block's self-attention of `x`, the sum of normalised tokens and PE."""
        options = self.options
        attention = HeadwiseAttention(
            options.heads,
            grid=options.relative_grid,
            rope=options.rope,
            attn_dropout=options.attn_dropout,
            dropout=options.dropout,
            implementation=options.attention,
            dtype=options.dtype,
            name="MultiHeadDotProductAttention_0",
        )
        return nn.with_logical_constraint(attention(x, self.train), AXES)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The block's MLP of `x`, the tokens after the second LayerNorm."""
        options = self.options
        mlp = MlpBlock(options.mlp_hidden, options.dropout, options.gelu, options.dtype, name="MlpBlock_0")
        return nn.with_logical_constraint(mlp(x, self.train), AXES)


class Transformer(Encoder):
    """`Encoder` with the final LayerNorm `encoder_norm` among its parameters, and big_vision's name of the stack."""

    stack_name: ClassVar[str] = "encoderblock"

    def setup(self):
        self.encoder_norm = layer_norm(self.block.ln_eps, self.block.dtype, "encoder_norm")


class LoopTransformer(Transformer):
    """The same blocks one after the other, each with parameters of its own under `encoderblock_0` and so on."""

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer_pe: Float[Array, "l n d"] | None = None,
        *,
        train: bool,
        first: int = 0,
        count: int | None = None,
    ) -> tuple[Carry, dict[str, jax.Array | None]]:
        """Runs blocks first .. first+count-1 (all by default): see `Encoder.__call__`."""
        inputs, outs = self.inputs(layer_pe), []
        block = with_remat(self.block_class, self.remat)
        for index in range(first, self.stop(first, count)):
            run = block(self.block, any(self.rates), train, name=f"{self.stack_name}_{index}")
            carry, out = run(carry, jax.tree.map(lambda leaf, index=index: leaf[index], inputs))
            outs.append(out)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outs)


class HeadwiseAttention(Attention):
    """`Attention` whose query, key, value and `out` are projections of their own, kernels (D, heads, D / heads).

    Attributes: see `Attention`. The biases cannot be left out.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], train: bool, source: Float[Array, "b m d"] | None = None
    ) -> Float[Array, "b n d"]:
        """Attention of each row of `x` to those of `source`, by default to `x` itself."""
        width = x.shape[-1]
        dense = {"dtype": self.dtype, "kernel_init": xavier}
        given = {"query": x, "key": x if source is None else source, "value": x if source is None else source}
        shape = (self.heads, width // self.heads)
        q, k, v = (
            checkpoint_name(nn.DenseGeneral(shape, name=name, **dense)(rows), "qkv") for name, rows in given.items()
        )
        if self.rope is not None:
            turned = self.turned(*(part.reshape(*part.shape[:2], -1) for part in (q, k)))
            q, k = (part.reshape(q.shape) for part in turned)
        y = checkpoint_name(self.attend(q, k, v, train), "attended")
        y = nn.DenseGeneral(width, axis=(-2, -1), name="out", **dense)(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y)


class MlpBlock(nn.Module):
    """Dense_1(gelu(Dense_0(x))), and dropout after both.

    Attributes: see `lape_jax.nn.layers.Mlp`.
    """

    hidden: int
    dropout: float = 0.0
    gelu: str = "tanh"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        dense = {"dtype": self.dtype, "kernel_init": xavier, "bias_init": nn.initializers.normal(1e-6)}
        y = checkpoint_name(nn.Dense(self.hidden, **dense)(x), "fc1")
        y = nn.Dropout(self.dropout, deterministic=not train)(GELUS[self.gelu](y))
        y = nn.Dense(x.shape[-1], **dense)(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y)


class MapHead(nn.Module):
    """Attention pooling: with a = attention of a learned probe to the tokens, a + Mlp(LN(a)) (arXiv:2106.04560).

    Attributes: see `lape_jax.models.vit.ViT`; `hidden` channels in the MLP.
    """

    heads: int
    hidden: int
    ln_eps: float
    gelu: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        width = x.shape[-1]
        probe = self.param("probe", xavier, (1, 1, width), jnp.float32)
        attention = HeadwiseAttention(self.heads, dtype=self.dtype, name="MultiHeadDotProductAttention_0")
        a = attention(jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, width)), False, x)
        normed = layer_norm(self.ln_eps, self.dtype, "LayerNorm_0")(a)
        return (a + MlpBlock(self.hidden, gelu=self.gelu, dtype=self.dtype, name="MlpBlock_0")(normed, False))[:, 0]
