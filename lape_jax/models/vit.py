"""Vision Transformer / DeiT with every joining method, plain and distilled."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError, nearest
from lape_jax.nn import position
from lape_jax.nn.attention import check_implementation
from lape_jax.nn.encoder import Block, Carry, Encoder
from lape_jax.nn.join import JOINS, PE_NORMS
from lape_jax.nn.layers import PatchEmbed, layer_norm, normal_02

POOLS = ("token", "gap")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class ViT(nn.Module):
    """DeiT's Vision Transformer (Touvron et al. 2021) with a choice of position embedding and joining method.

    Calling it maps images (batch, height, width, channels), normalised, to `(logits, out)`. `out` names what lies
    between: "pos_embed" (the table), "stem" (tokens that enter block 0), "tokens" and "pe" (after and as delivered by
    each block, stacked on a leading layer axis), "encoded" (after the final LayerNorm), "pre_logits" (what the head
    sees, and "pre_logits_dist" if distilled). Under jit, what is not used costs nothing.

    Attributes:
        num_classes: outputs of the head.
        image_size, patch_size: pixels, one number or (height, width); the patch must divide the image.
        in_channels: channels of the images.
        width, depth, heads, mlp_ratio: size of the encoder.
        pe: position embedding, one of `lape_jax.nn.position.KINDS`.
        join: joining method, one of `lape_jax.nn.join.JOINS`; None means "lape" if `pe` has an absolute table and
            "default" if it has none.
        pe_norm: the function that LaPE applies to the PE, one of `lape_jax.nn.join.PE_NORMS`.
        pool: "token" (the class token's row) or "gap" (no class token; mean over patches after the final LayerNorm).
        distilled: adds a distillation token with a head of its own. In training the logits are the pair (class,
            distillation); in evaluation their mean.
        dropout, attn_dropout, drop_path: rates; `drop_path` is that of the last block, rising linearly from 0.
        layer_scale: initial value of the layer scales, or None for none.
        ln_eps: epsilon of all LayerNorms, the PE's included.
        unroll, remat: see `lape_jax.nn.encoder.Encoder`.
        attention: "xla" or "cudnn".
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
    join: str | None = None
    pe_norm: str = "layernorm"
    pool: str = "token"
    distilled: bool = False
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    ln_eps: float = 1e-6
    unroll: int = 1
    remat: str = "none"
    attention: str = "xla"
    dtype: DTypeLike = jnp.float32

    # What other families of the same shape do in another way: initial values (of the patch embedding's kernel, None for
    # its default; of the class and distillation token; of learnable position tables), arguments of `Block`, its class;
    # and `_patch_embed`, the module that makes tokens of images, with `grid`, its rows and columns.
    inits: ClassVar[Mapping[str, Initializer | None]] = {"patch": None, "token": normal_02, "table": normal_02}
    block_options: ClassVar[Mapping[str, Any]] = {}
    block_class: ClassVar[type[Block]] = Block

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_h, patch_w) = _pair(self.image_size), _pair(self.patch_size)
        return height // patch_h, width // patch_w

    @property
    def extra_rows(self) -> int:
        """Tokens before the patches: class and distillation token."""
        return (self.pool == "token") + self.distilled

    @property
    def joining(self) -> str:
        """The joining method, with `join=None` resolved."""
        absolute, _ = position.parse_pe(self.pe)
        return ("lape" if absolute else "default") if self.join is None else self.join

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*_pair(self.image_size), self.in_channels)

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        for field, choices in (("pe_norm", PE_NORMS), ("pool", POOLS), ("pe", position.KINDS)):
            if getattr(self, field) not in choices:
                raise UserError(f"{field}={nearest(getattr(self, field), choices)}")
        self._check_sizes()
        self._check_joining()
        if self.distilled and self.pool != "token":
            raise UserError("a distilled model reads its class and distillation tokens: it needs pool='token'")
        for field in ("dropout", "attn_dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not a rate in [0, 1)")
        if not self.ln_eps > 0:
            raise UserError(f"ln_eps={self.ln_eps} is not a positive number")
        check_implementation(self.attention, self.attn_dropout)
        self._encoder().check()

    def _check_sizes(self) -> None:
        for field in ("num_classes", "image_size", "patch_size", "in_channels", "width", "depth", "heads"):
            if min(_pair(getattr(self, field))) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive")
        if any(side % patch for side, patch in zip(_pair(self.image_size), _pair(self.patch_size), strict=True)):
            raise UserError(f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}")
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not divisible by heads={self.heads}")
        if self.width * self.mlp_ratio < 1:
            raise UserError(f"mlp_ratio={self.mlp_ratio} leaves an MLP without hidden units at width={self.width}")

    def _check_joining(self) -> None:
        absolute, _ = position.parse_pe(self.pe)
        if self.joining not in JOINS:
            raise UserError(f"join={nearest(self.join, JOINS)}")
        join = JOINS[self.joining]
        if absolute is None and self.joining != "default":
            raise UserError(
                f"join={self.join!r} delivers an absolute position table, and pe={self.pe!r} has none: "
                f"use join='default', or a table such as pe='learnable{'+relative' if self.pe == 'relative' else ''}'"
            )
        if join.table_per_layer and absolute != position.LEARNABLE:
            raise UserError(f"join={self.join!r} learns a table per layer: it needs pe='learnable', not {self.pe!r}")
        if not join.normalises_pe and self.pe_norm != "layernorm":
            raise UserError(f"pe_norm={self.pe_norm!r} acts in join='lape' and 'lape_sharing', not in {self.joining!r}")
        if absolute == position.SINCOS_2D and self.width % 4:
            raise UserError(f"pe={self.pe!r} needs a width divisible by 4, not {self.width}")

    def setup(self):
        self.check()
        token = (1, 1, self.width)
        self.patch_embed = self._patch_embed()
        if self.pool == "token":
            self.cls_token = self.param("cls_token", self.inits["token"], token, jnp.float32)
        if self.distilled:
            self.dist_token = self.param("dist_token", self.inits["token"], token, jnp.float32)
        self.position_table = self._table()
        self.pos_dropout = nn.Dropout(self.dropout)
        self.encoder = self._encoder()
        nn.share_scope(self, self.encoder)  # the parameters are `blocks/...`, as in DeiT, not `encoder/blocks/...`
        self.norm = layer_norm(self.ln_eps, self.dtype, "norm")
        head = {"features": self.num_classes, "dtype": self.dtype, "kernel_init": normal_02}
        self.head = nn.Dense(**head)
        if self.distilled:
            self.head_dist = nn.Dense(**head)

    def _patch_embed(self) -> nn.Module:
        return PatchEmbed(self.width, _pair(self.patch_size), self.dtype, self.inits["patch"])

    def _table(self) -> Float[Array, "*l n d"] | None:
        absolute, _ = position.parse_pe(self.pe)
        rows = self.extra_rows + self.grid[0] * self.grid[1]
        shape = (rows, self.width)
        if absolute is None:
            return None
        if absolute == position.LEARNABLE:
            if JOINS[self.joining].table_per_layer:
                shape = (self.depth, *shape)
            table = self.param("pos_embed", self.inits["table"], shape, jnp.float32)
        elif absolute == position.SINCOS_1D:
            table = position.sincos_1d(rows, self.width)
        else:
            table = position.sincos_2d(self.grid, self.width, self.extra_rows)
        return jnp.asarray(table, jnp.promote_types(self.dtype, jnp.float32))

    def _encoder(self) -> Encoder:
        _, relative = position.parse_pe(self.pe)
        block = {
            "heads": self.heads,
            "mlp_hidden": int(self.width * self.mlp_ratio),
            "join": self.joining,
            "pe_norm": self.pe_norm,
            "relative_grid": self.grid if relative else None,
            "dropout": self.dropout,
            "attn_dropout": self.attn_dropout,
            "layer_scale": self.layer_scale,
            "ln_eps": self.ln_eps,
            "attention": self.attention,
            "dtype": self.dtype,
            **self.block_options,
        }
        return Encoder(
            self.depth, block, self.drop_path, self.unroll, self.remat, block_class=self.block_class, parent=None
        )

    def embed(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Carry, Float[Array, "l n d"] | None]:
        """The carry that enters block 0, and the tables of all layers for joinings that have one per layer.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        if images.shape[1:] != self.input_shape:
            raise UserError(f"the model takes images of shape {self.input_shape}, not {images.shape[1:]}")
        tokens = self.patch_embed(images.astype(self.dtype))
        rows = [self.cls_token] if self.pool == "token" else []
        rows += [self.dist_token] if self.distilled else []
        rows = [jnp.broadcast_to(row.astype(self.dtype), (images.shape[0], 1, self.width)) for row in rows]
        tokens = jnp.concatenate([*rows, tokens], axis=1)
        table, pe = self.position_table, None
        join = JOINS[self.joining]
        if table is not None and not join.table_per_layer:
            tokens, pe = join.stem(tokens, table)
        tokens = self.pos_dropout(tokens, deterministic=not train)
        return Carry(tokens, pe), table if join.table_per_layer else None

    def encode(
        self,
        carry: Carry,
        layer_pe: Float[Array, "l n d"] | None = None,
        *,
        train: bool = False,
        first: int = 0,
        count: int | None = None,
    ) -> tuple[Carry, dict[str, jax.Array | None]]:
        """Runs the encoder, or a segment of it: see `Encoder.__call__`."""
        return self.encoder(carry, layer_pe, train=train, first=first, count=count)

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b k"] | tuple[Float[Array, "b k"], ...], dict]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        carry, layer_pe = self.embed(images, train)
        out = {"pos_embed": self.position_table, "stem": carry.tokens}
        carry, layers = self.encode(carry, layer_pe, train=train)
        out |= layers
        out["encoded"] = x = self.norm(carry.tokens)
        out["pre_logits"] = x[:, 0] if self.pool == "token" else jnp.mean(x, axis=1)
        full = jnp.promote_types(self.dtype, jnp.float32)
        logits = self.head(out["pre_logits"]).astype(full)
        if self.distilled:
            out["pre_logits_dist"] = x[:, 1]
            dist_logits = self.head_dist(x[:, 1]).astype(full)
            logits = (logits, dist_logits) if train else (logits + dist_logits) / 2
        return logits, out

    def param_shapes(self) -> dict:
        """Shapes and types of the parameters, as a tree of `jax.ShapeDtypeStruct`, without computing anything."""
        images = jax.ShapeDtypeStruct((1, *self.input_shape), self.dtype)
        return jax.eval_shape(self.init, jax.random.key(0), images)["params"]
