"""The transformer block, and the scan over blocks that carries tokens and position embedding."""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from lape_jax.errors import UserError, nearest
from lape_jax.nn.attention import Attention
from lape_jax.nn.block_options import BlockOptions
from lape_jax.nn.choice import AUTO
from lape_jax.nn.layers import LayerScale, Mlp, drop_path, layer_norm
from lape_jax.nn.pe_norm import PENorm

KEPT_BY_ATTENTION = ("qkv", "attended", "residual", "fc1")  # named in the modules by `checkpoint_name`
# What the backward pass may keep of a block, beside what enters it; it computes the rest again. From least to most:
#   full                nothing, which makes a step about a quarter more work
#   attention           q, k and v, what attention returns, the residual stream before the MLP, and the MLP before its
#                       GELU, all in the compute type. Computed again are the attention weights, of which "none" keeps
#                       float32 maps of (batch, heads, n, n), and otherwise only what has no matrix product in it.
#   dots_without_batch  the products with parameters; both products in attention are computed again
#   dots                all matrix products, with the attention logits
#   none                whatever differentiation asks for; and so does "auto", unless a run chooses another
REMAT_POLICIES = {
    AUTO: None,
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(*KEPT_BY_ATTENTION),
}


def with_remat(kind: type[nn.Module], remat: str, **options: Any) -> type[nn.Module]:
    """`kind`, of which the backward pass keeps what `remat` says; `options` are those of `flax.linen.remat`."""
    policy = REMAT_POLICIES[remat]
    return kind if policy is None else nn.remat(kind, policy=policy, **options)


def check_unroll(unroll: int | str, depth: int, shown: str) -> None:
    """Raises UserError unless so many of `depth` blocks, which is `shown`, can be unrolled."""
    if unroll != AUTO and not (isinstance(unroll, int) and 1 <= unroll <= depth):
        raise UserError(f"unroll={unroll!r} is neither 'auto' nor between 1 and {shown}")


def at_most(unroll: int | str, depth: int) -> int | str:
    """`unroll`, or `depth` if that is less."""
    return unroll if unroll == AUTO else min(unroll, depth)


class Carry(NamedTuple):
    """What passes from block to block."""

    tokens: Float[Array, "b n d"]
    pe: Float[Array, "n d"] | None


class LayerInputs(NamedTuple):
    """What differs from block to block but is not learned by it."""

    drop_path: Float[Array, "*l"]  # stochastic depth rate
    pe: Float[Array, "*l n d"] | None  # this block's own table, for joinings that give each one
    index: Int[Array, "*l"]  # which block it is, from 0


class Block(nn.Module):
    """Pre-norm transformer block whose attention is fed by a joining method.

    x <- x + DropPath(LS(Attention(join(x, pe))));  x <- x + DropPath(LS(Mlp(LN2(x)))).

    With `norm2_on_residual` the second line is z = LN2(x); x <- z + DropPath(LS(Mlp(z))), as in Compact Transformers.
    Families with another attention or MLP override `self_attention` or `feed_forward`.

    Attributes:
        options: settings of the block, see `BlockOptions`.
        stochastic_depth: whether some block of the stack has a rate.
        train: whether dropout and stochastic depth act.
    """

    options: BlockOptions
    stochastic_depth: bool
    train: bool

    norm_names: ClassVar[tuple[str, str]] = ("norm1", "norm2")
    reported: ClassVar[tuple[str, ...]] = ("tokens", "pe")  # of all that `__call__` knows, what it returns

    @nn.compact
    def __call__(self, carry: Carry, layer: LayerInputs) -> tuple[Carry, dict[str, jax.Array | None]]:
        x, pe, options = *carry, self.options
        join, eps, dtype = options.join, options.ln_eps, options.dtype
        first, second = self.norm_names
        norm1 = layer_norm(eps, dtype, first, bias=join.norm1_bias)
        pe_norm = PENorm(options.pe_norm, eps, options.no_embed_tokens, name="pe_norm") if join.normalises_pe else None
        x, attention_input, delivered, pe = join.block(x, pe if layer.pe is None else layer.pe, norm1, pe_norm)
        attended = self.self_attention(attention_input, layer)
        x = x + self.branch(attended, layer.drop_path, "ls1")
        x = residual = checkpoint_name(x, "residual")
        normed = layer_norm(eps, dtype, second)(x)
        if options.norm2_on_residual:
            x = normed.astype(x.dtype)
        transformed = self.feed_forward(normed)
        x = x + self.branch(transformed, layer.drop_path, "ls2")
        handed_on = None if join.table_per_layer else pe
        known = {"attended": attended, "residual": residual, "transformed": transformed, "tokens": x, "pe": delivered}
        return Carry(x, handed_on), {name: known[name] for name in self.reported}

    def self_attention(self, x: jax.Array, layer: LayerInputs) -> jax.Array:
        """The block's self-attention of `x`, the sum of normalised tokens and PE."""
        return self.attention_layer()(x, self.train)

    def attention_layer(self, kind: type[Attention] = Attention, **options: Any) -> Attention:
        """The layer `attn`, with `options` beside or instead of the block's own."""
        ours = self.options
        own = {
            "heads": ours.heads,
            "grid": ours.relative_grid and (ours.grid or ours.relative_grid),
            "table_grid": ours.relative_grid,
            "rope": ours.rope and ours.rope._replace(grid=ours.grid or ours.rope.grid),
            "qkv_bias": ours.qkv_bias,
            "attn_dropout": ours.attn_dropout,
            "dropout": ours.dropout,
            "implementation": ours.attention,
            "dtype": ours.dtype,
            "name": "attn",
        }
        return kind(**{**own, **options})

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The block's MLP of `x`, the tokens after the second LayerNorm."""
        options = self.options
        return Mlp(options.mlp_hidden, options.dropout, options.dtype, options.gelu, name="mlp")(x, self.train)

    def branch(self, y: jax.Array, rate: jax.Array, scale_name: str) -> jax.Array:
        if self.options.layer_scale is not None:
            y = LayerScale(self.options.layer_scale, name=scale_name)(y)
        if self.train and self.stochastic_depth:
            y = drop_path(y, rate, self.make_rng("dropout"))
        return y


class Encoder(nn.Module):
    """`depth` blocks as one `nn.scan`: parameters stacked on a leading layer axis, tokens and PE carried.

    May be run in segments: `encoder(carry, first=3, count=3)` enters block 3 with a carry and leaves after block 5 with
    another. Segments in sequence equal one full run (stochastic layers draw other samples).

    Attributes:
        depth: number of blocks.
        block: options of the blocks.
        drop_path: stochastic depth rate of the last block (the rates rise linearly from 0), or the rates of all blocks.
        unroll: blocks per iteration of the scan, 1 to `depth`. "auto" is 1, unless a run finds that its devices like
            it otherwise, see `lape_jax.parallel.fit`.
        remat: which residuals the backward pass keeps, one of `REMAT_POLICIES`; "auto" is "none" in the same way.
        block_class: `Block`, or what a family makes of it.

    Neither `unroll` nor `remat` changes parameters or results.
    """

    depth: int
    block: BlockOptions
    drop_path: float | tuple[float, ...] = 0.0
    unroll: int | str = "auto"
    remat: str = "auto"
    block_class: type[Block] = Block

    stack_name: ClassVar[str] = "blocks"

    @property
    def rates(self) -> tuple[float, ...]:
        """The stochastic depth rate of each block."""
        if isinstance(self.drop_path, tuple):
            return self.drop_path
        return tuple(np.linspace(0, self.drop_path, self.depth).tolist())

    def check(self) -> None:
        """Raises UserError if a knob is out of range."""
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"remat={nearest(self.remat, REMAT_POLICIES)}")
        check_unroll(self.unroll, self.depth, f"depth={self.depth}")

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer_pe: Float[Array, "l n d"] | None = None,
        *,
        train: bool,
        first: int = 0,
        count: int | None = None,
        **changed: Any,
    ) -> tuple[Carry, dict[str, jax.Array | None]]:
        """Runs blocks first .. first+count-1 (all by default).

        Args:
            carry: tokens and PE that enter block `first`.
            layer_pe: tables of all `depth` layers, for joinings that have one per layer.
            train: whether dropout and stochastic depth act.
            first, count: which blocks.
            changed: options of the blocks that are others in this run, such as `grid`.

        Returns:
            The carry that leaves, and per layer (leading axis) the tokens after the block and the PE it delivered.
        """
        stop = self.stop(first, count)
        blocks = self.stack(train, **changed)
        inputs = self.inputs(layer_pe)
        if (first, stop) == (0, self.depth):
            return blocks(carry, inputs)
        if self.is_initializing() and not self.has_variable("params", self.stack_name):
            blocks(carry, inputs)  # creates the parameters of all layers, which a segment's run could not

        def cut(tree):
            return jax.tree.map(lambda leaf: leaf[first:stop], tree)

        before: dict[str, Any] = {}  # the statistics of all layers, where training puts back those of the segment

        def cut_statistics(tree):
            before.update(tree)
            return cut(tree)

        def put_back(tree):
            return jax.tree.map(lambda whole, part: whole.at[first:stop].set(part), before, dict(tree))

        segment = nn.map_variables(lambda stack, *args: stack(*args), "params", trans_in_fn=cut)
        segment = nn.map_variables(segment, "batch_stats", cut_statistics, put_back, mutable=train)
        return segment(blocks, carry, cut(inputs))

    def stop(self, first: int, count: int | None) -> int:
        """One more than the last block of a segment.

        Raises:
            UserError: there is no such segment.
        """
        stop = self.depth if count is None else first + count
        if not 0 <= first < stop <= self.depth:
            raise UserError(f"blocks {first} to {stop - 1} are not a segment of the {self.depth} blocks there are")
        return stop

    def inputs(self, layer_pe: Float[Array, "l n d"] | None) -> LayerInputs:
        """What differs between the blocks, on a leading layer axis."""
        return LayerInputs(jnp.asarray(self.rates, jnp.float32), layer_pe, jnp.arange(self.depth))

    def stack(self, train: bool, **changed: Any) -> nn.Module:
        """The blocks as one module, over whose leading axes it runs."""
        unroll = 1 if self.unroll == AUTO else self.unroll
        # Inside a rolled loop nothing can be merged with the forward pass, and the guard against it costs time.
        block = with_remat(self.block_class, self.remat, prevent_cse=unroll > 1)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            unroll=unroll,
        )
        return scanned(self.block.replace(**changed), any(self.rates), train, name=self.stack_name)
