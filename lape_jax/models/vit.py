"""Vision Transformer / DeiT with every joining method, plain and distilled."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import Classifier, pair
from lape_jax.nn import choice, position, rope
from lape_jax.nn.block_options import BlockOptions
from lape_jax.nn.encoder import Block, Carry, Encoder
from lape_jax.nn.layers import GELUS, PatchEmbed, layer_norm, normal_02
from lape_jax.nn.pe_norm import PE_NORMS, pe_norm_chain
from lape_jax.nn.peg import PEG, check_pegs, encode_with_pegs

POOLS = ("token", "gap", "seq")


class ViT(Classifier):
    """DeiT's Vision Transformer (Touvron et al. 2021) with a choice of position embedding and joining method.

    Calling it maps images (batch, height, width, channels), normalised, to `(logits, out)`. `out` names what lies
    between: "pos_embed" (the table), "stem" (tokens that enter block 0), "tokens" and "pe" (after and as delivered by
    each block, stacked on a leading layer axis), "encoded" (after the final LayerNorm), "pre_logits" (what the head
    sees). If distilled, also "pre_logits_dist", and "heads", the logits of both heads (class, distillation). Under jit,
    what is not used costs nothing.

    Attributes:
        num_classes: outputs of the head; 0 for no head, the logits being what it would see.
        image_size, patch_size: pixels, one number or (height, width); the patch must divide the image.
        in_channels: channels of the images.
        width, depth, heads, mlp_ratio: size of the encoder.
        pe: position embedding, one of `lape_jax.nn.position.KINDS`.
        peg_blocks: with a `pe` that has "peg", the number of first blocks that are followed by a `lape_jax.nn.peg.PEG`.
        join: joining method, one of `lape_jax.nn.join.JOINS`; None means "lape" if `pe` has an absolute table and
            "default" if it has none.
        pe_norm: the function that LaPE applies to the PE, one of `lape_jax.nn.pe_norm.PE_NORMS`.
        pool: what of the tokens after the final LayerNorm the head sees: "token" (the class token's row), "gap" (no
            class token; the mean over patches) or "seq" (no class token; sum_n a_n x_n, where a is the softmax over
            patches of a learned linear function of x_n: Hassani et al. 2021).
        distilled: adds a distillation token with a head of its own; the logits are the mean of both heads'.
        dist_head: False for a distillation token without that head; the logits are those of the class token then.
        registers: so many more tokens before all others, which the output does not ask (Darcet et al. 2024,
            arXiv:2309.16588). They have no PE, whatever the joining.
        dropout, attn_dropout, drop_path: rates; `drop_path` is that of the last block, rising linearly from 0.
        layer_scale: initial value of the layer scales, or None for none.
        ln_eps: epsilon of all LayerNorms, the PE's included.
        gelu: "erf", the exact function, or "tanh", its approximation.
        unroll, remat: see `lape_jax.nn.encoder.Encoder`.
        attention: "auto", "xla", "blocks", "cudnn" or "pallas", see `lape_jax.nn.attention.Attention`.
        dtype: type to compute in; parameters are float32 and softmax, LayerNorm and logits at least that.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_channels: int = 3
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    pe: str = position.LEARNABLE
    peg_blocks: int = 1
    join: str | None = None
    pe_norm: str = "layernorm"
    pool: str = "token"
    distilled: bool = False
    dist_head: bool = True
    registers: int = 0
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    ln_eps: float = 1e-6
    gelu: str = "erf"
    unroll: int | str = "auto"
    remat: str = "auto"
    attention: str | choice.OnDevices = "auto"
    dtype: DTypeLike = jnp.float32

    # What other families of the same shape do in another way: initial values (of the patch embedding's kernel, None for
    # its default; of the class and distillation token; of learnable position tables), options of the blocks, their
    # class and the encoder's, the pools there are; and `_patch_embed`, the module that makes tokens of images,
    # with `grid`, its rows and columns.
    inits: ClassVar[Mapping[str, Initializer | None]] = {"patch": None, "token": normal_02, "table": normal_02}
    block_options: ClassVar[Mapping[str, Any]] = {}
    block_class: ClassVar[type[Block]] = Block
    encoder_class: ClassVar[type[Encoder]] = Encoder
    pools: ClassVar[tuple[str, ...]] = POOLS

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_h, patch_w) = pair(self.image_size), pair(self.patch_size)
        return height // patch_h, width // patch_w

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: registers, class and distillation token."""
        return self.registers + (self.pool == "token") + self.distilled

    @property
    def class_row(self) -> int | None:
        """Which token is the class token, if there is one: the first behind the registers."""
        return self.registers if self.num_prefix_tokens > self.registers else None

    @property
    def no_embed_tokens(self) -> int:
        """How many prefix tokens have no PE: registers, which folded models give the bias of their first LayerNorm."""
        return self.registers if self.method.norm1_bias else 0

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        self._check_names({"pe_norm": PE_NORMS, "pool": self.pools, "pe": position.KINDS, "gelu": GELUS})
        self._check_sizes()
        self._check_joining()
        if self.distilled and self.pool != "token":
            raise UserError("a distilled model reads its class and distillation tokens: it needs pool='token'")
        if self.registers and type(self) is not ViT:
            raise UserError(f"registers={self.registers}: only a ViT has them, no {type(self).__name__}")
        self._check_numbers()
        check_pegs(self.pe, self.peg_blocks, self.depth)
        choice.check(self.attention, self.attn_dropout)
        self._encoder().check()

    def _check_sizes(self) -> None:
        if self.num_classes or type(self) is not ViT:
            self._check_positive("num_classes")
        self._check_positive("image_size", "in_channels", "width", "depth", "heads")
        if self.registers < 0:
            raise UserError(f"registers={self.registers} is negative")
        self._check_patches()
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not divisible by heads={self.heads}")
        rope.check_heads(self.pe, self.width, self.heads)
        if self.width * self.mlp_ratio < 1:
            raise UserError(f"mlp_ratio={self.mlp_ratio} leaves an MLP without hidden units at width={self.width}")

    def setup(self):
        self.check()
        token = (1, 1, self.width)
        self.patch_embed = self._patch_embed()
        if self.pool == "token":
            self.cls_token = self.param("cls_token", self.inits["token"], token, jnp.float32)
        if self.distilled:
            self.dist_token = self.param("dist_token", self.inits["token"], token, jnp.float32)
        if self.registers:
            shape = (1, self.registers, self.width)
            self.reg_token = self.param("reg_token", nn.initializers.normal(1e-6), shape, jnp.float32)
        self.position_table = self._table()
        if self.method.norms_apart:
            self.pe_norms = pe_norm_chain(self.pe_norm, self.ln_eps, self.no_embed_tokens, self.depth - 1)
        self.pos_dropout = nn.Dropout(self.dropout)
        self.encoder = self._encoder()
        nn.share_scope(self, self.encoder)  # the parameters are `blocks/...`, as in DeiT, not `encoder/blocks/...`
        self.peg = self._pegs()
        self.norm = layer_norm(self.ln_eps, self.dtype, "norm")
        self.pe_norm_last = self._last_pe_norm()
        if self.pool == "seq":
            self.attention_pool = nn.Dense(1, dtype=self.norm.dtype, kernel_init=normal_02)
        head = {"features": self.num_classes, "dtype": self.dtype, "kernel_init": normal_02}
        if self.num_classes:
            self.head = nn.Dense(**head)
        if self.num_classes and self.distilled and self.dist_head:
            self.head_dist = nn.Dense(**head)

    def _patch_embed(self) -> nn.Module:
        return PatchEmbed(self.width, pair(self.patch_size), self.dtype, self.inits["patch"])

    def _table(self) -> Float[Array, "*l n d"] | None:
        absolute, _ = position.parse_pe(self.pe)
        extra = self.num_prefix_tokens - self.no_embed_tokens
        shape = (extra + self.grid[0] * self.grid[1], self.width)
        if absolute is None:
            return None
        if absolute == position.LEARNABLE:
            if self.method.table_per_layer:
                shape = (self.depth, *shape)
            table = self.param("pos_embed", self.inits["table"], shape, jnp.float32)
        else:
            table = position.frozen(absolute, self.grid, self.width, extra)
        table = jnp.asarray(table, jnp.promote_types(self.dtype, jnp.float32))
        bare = [(0, 0)] * (table.ndim - 2) + [(self.no_embed_tokens, 0), (0, 0)]
        return jnp.pad(table, bare) if self.no_embed_tokens else table

    def _pegs(self) -> list[PEG]:
        return [PEG(self.grid, self.dtype) for _ in range(self.peg_blocks if position.has_peg(self.pe) else 0)]

    def _encoder(self) -> Encoder:
        _, relative = position.parse_pe(self.pe)
        block = BlockOptions(
            heads=self.heads,
            mlp_hidden=int(self.width * self.mlp_ratio),
            join=self.method,
            pe_norm=self.pe_norm,
            relative_grid=self.grid if relative else None,
            rope=rope.of(self.pe, self.grid),
            dropout=self.dropout,
            attn_dropout=self.attn_dropout,
            layer_scale=self.layer_scale,
            ln_eps=self.ln_eps,
            gelu=self.gelu,
            no_embed_tokens=self.no_embed_tokens,
            attention=self.attention,
            dtype=self.dtype,
        ).replace(**self.block_options)
        return self.encoder_class(
            self.depth, block, self.drop_path, self.unroll, self.remat, block_class=self.block_class, parent=None
        )

    def embed(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Carry, Float[Array, "l n d"] | None]:
        """The carry that enters block 0, and the tables of all layers for joinings that give each one.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        self.check_images(images.shape)
        tokens = self.patch_embed(images.astype(self.dtype), train)
        rows = [self.reg_token] if self.registers else []
        rows += [self.cls_token] if self.pool == "token" else []
        rows += [self.dist_token] if self.distilled else []
        rows = [jnp.broadcast_to(row.astype(self.dtype), (images.shape[0], *row.shape[1:])) for row in rows]
        tokens = jnp.concatenate([*rows, tokens], axis=1)
        table = self.table_for(images.shape)
        if self.unused_rows and table is not None:
            table = table[..., self.unused_rows :, :]
        tokens, pe = self.method.stem(tokens, table)
        tokens = self.pos_dropout(tokens, deterministic=not train)
        return Carry(tokens, pe), self.tables_of_layers(table)

    def tables_of_layers(self, table: Float[Array, "*l n d"] | None) -> Float[Array, "l n d"] | None:
        """What each block is given as a table of its own, for joinings that give it one."""
        if self.method.norms_apart:
            _, delivered = self.pe_norms(table, None)
            return jnp.concatenate([jnp.zeros_like(delivered[:1]), delivered])
        return table if self.method.table_per_layer else None

    def table_for(self, shape: tuple) -> Float[Array, "*l n d"] | None:
        """The table, or those of all layers, for images of this shape, whose batch may be symbolic (`jax.export`)."""
        return self.position_table

    def encode(
        self,
        carry: Carry,
        layer_pe: Float[Array, "l n d"] | None = None,
        *,
        train: bool = False,
        first: int = 0,
        count: int | None = None,
    ) -> tuple[Carry, dict[str, jax.Array | None]]:
        """Runs the encoder with its PEGs, or a segment of it: see `Encoder.__call__` and `encode_with_pegs`."""
        return encode_with_pegs(self.encoder, self.peg, carry, layer_pe, train=train, first=first, count=count)

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Float[Array, "b k"], dict]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        carry, layer_pe = self.embed(images, train)
        out = {"pos_embed": self.position_table, "stem": carry.tokens}
        carry, layers = self.encode(carry, layer_pe, train=train)
        out |= layers
        x = self._read(carry, layers, train)
        out["encoded"] = x = self._final(x, carry.pe, self.table_for(images.shape))
        out["pre_logits"] = self._pool(x)
        full = jnp.promote_types(self.dtype, jnp.float32)
        logits = (self.head(out["pre_logits"]) if self.num_classes else out["pre_logits"]).astype(full)
        if self.distilled:
            out["pre_logits_dist"] = x[:, self.registers + 1]
        if self.num_classes and self.distilled and self.dist_head:
            out["heads"] = logits, dist_logits = logits, self.head_dist(out["pre_logits_dist"]).astype(full)
            logits = (logits + dist_logits) / 2
        return logits, out

    def _read(self, carry: Carry, layers: Mapping[str, jax.Array | None], train: bool) -> Float[Array, "b n d"]:
        """What the final LayerNorm sees of the tokens that leave the encoder, and of what its `layers` report."""
        return carry.tokens

    def _pool(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        if self.pool == "token":
            return x[:, self.registers]
        if self.registers:
            x = x[:, self.registers :]
        if self.pool == "gap":
            return jnp.mean(x, axis=1)
        return jnp.sum(nn.softmax(self.attention_pool(x), axis=1) * x, axis=1)
