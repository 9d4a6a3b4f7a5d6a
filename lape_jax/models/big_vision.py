"""ViT as google-research/big_vision has it, with every joining method: its maths and its names of parameters.

`lape_jax.models.big_vision_vit` offers the same model to big_vision's own trainer.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.nn.big_vision import AXES, EncoderBlock, LoopTransformer, MapHead, Transformer
from lape_jax.nn.encoder import Block, Carry, Encoder
from lape_jax.nn.join import JOINS

POOLS = ("gap", "map", "tok", "0", "none")
# Width, depth, hidden channels of the MLP, heads. Source: Zhai et al. 2021 (arXiv:2106.04560), Table 2, and big_vision.
SIZES = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}


class BigVisionViT(ViT):
    """big_vision's ViT (Beyer et al. 2022, arXiv:2205.01580). Images are expected in [-1, 1], not with mean 0, std 1.

    It differs from DeiT's in the following.

    - The position table has a row for each patch and none for the class token, which has no PE in any joining: its row
      of what LaPE delivers is zero. With `cls_pe` it has a row of its own, as in files from before 2022: under LaPE
      that row is normalised like the others, so it must not be added to the class token once and for all.
    - GELU is approximated by tanh; query, key and value are three projections.
    - Initial values: position table N(0, 1/D), class token 0, matrices of attention and MLP Xavier-uniform, MLP biases
      N(0, 1e-12), patch kernel LeCun-normal, head 0.

    Calling it, and the attributes, are those of `lape_jax.models.vit.ViT`; "pe='sincos_2d_moco'" is big_vision's
    `sincos2d`. `out` has besides: "patches" (the map that the patch embedding makes), "with_posemb" (stem without class
    token), "attended", "residual" and "transformed" (what attention adds in each block, the sum, what the MLP adds),
    "head_input", "pre_logits_2d" and "logits_2d" (the head applied to each patch), "logits".

    Attributes:
        num_classes: outputs of the head; None for no head, the logits being the pre-logits.
        pool: "gap" (mean over patches), "map" (`MapHead`), "tok" (the class token), "0" (the first patch) or "none".
        rep_size: adds a layer before the head, tanh of a linear function with so many outputs; True means `width`.
        head_zeroinit: whether the head starts with a kernel of zeros, else LeCun-normal.
        cls_pe: whether the position table has a row for the class token.
        scan: whether the blocks' parameters are stacked, `Transformer/encoderblock/...`, as for all other models here;
            else they are `Transformer/encoderblock_0/...` and so on, and `unroll` has no meaning.

    Source: google-research/big_vision, `big_vision/models/vit.py`. Stochastic depth, layer scale, dropout of attention
    weights, relative bias and PEG are not in it, and work here all the same.
    """

    num_classes: int | None = 1000
    pool: str = "gap"
    gelu: str = "tanh"
    rep_size: int | bool = False
    head_zeroinit: bool = True
    cls_pe: bool = False
    scan: bool = True

    pools: ClassVar = POOLS

    @property
    def no_weight_decay(self) -> tuple[str, ...]:
        """As elsewhere, and nothing decays but kernels, as in big_vision's configs."""
        return (*super().no_weight_decay, "cls", "pos_embedding", "MAPHead_0/probe")

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, if there is one."""
        return int(self.pool == "tok")

    @property
    def no_embed_tokens(self) -> int:
        """How many prefix tokens have no PE (timm's `no_embed_class`, as a count)."""
        return self.num_prefix_tokens - self.cls_pe

    @property
    def block_class(self) -> type[Block]:
        """What the encoder is made of."""
        return EncoderBlock

    @property
    def encoder_class(self) -> type[Encoder]:
        """The kind of encoder that has the parameters as `scan` wants them."""
        return Transformer if self.scan else LoopTransformer

    @property
    def block_options(self) -> dict[str, int]:
        """Of the MLP a number of channels that need not be a whole multiple of the width."""
        return {"mlp_hidden": round(self.width * self.mlp_ratio)}

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        absolute, _ = position.parse_pe(self.pe)
        if self.distilled:
            raise UserError("distilled=True: a ViT of big_vision has no distillation token")
        if self.cls_pe and (self.pool != "tok" or absolute != position.LEARNABLE):
            raise UserError(
                f"cls_pe=True is for a class token and a learned table: it needs pool='tok' and pe='learnable', not "
                f"pool={self.pool!r} and pe={self.pe!r}"
            )
        if self.joining in JOINS and self.method.norms_apart:
            raise UserError(f"join={self.join!r} has parameters that big_vision's ViT has no place for: use a deit_*")
        if self.rep_size < 0:
            raise UserError(f"rep_size={self.rep_size} is not positive")
        super().check()

    def _check_positive(self, *fields: str) -> None:
        super()._check_positive(*(field for field in fields if (field, getattr(self, field)) != ("num_classes", None)))

    def setup(self):
        self.check()
        patch, full = pair(self.patch_size), jnp.promote_types(self.dtype, jnp.float32)
        self.embedding = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype)
        if self.pool == "tok":
            self.cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width), jnp.float32)
        self.position_table = self._table()
        self.pos_dropout = nn.Dropout(self.dropout)
        self.Transformer = self._encoder()
        self.pe_norm_last = self._last_pe_norm()
        self.peg = self._pegs()
        if self.pool == "map":
            hidden = self.block_options["mlp_hidden"]
            self.MAPHead_0 = MapHead(self.heads, hidden, self.ln_eps, self.gelu, full)
        if self.rep_size:
            self.pre_logits = nn.Dense(self.width if self.rep_size is True else self.rep_size, dtype=full)
        if self.num_classes:
            init = nn.initializers.zeros if self.head_zeroinit else nn.initializers.lecun_normal()
            self.head = nn.Dense(self.num_classes, dtype=full, kernel_init=init)

    @property
    def encoder(self) -> Encoder:
        """The blocks, by the name that they have elsewhere."""
        return self.Transformer

    @property
    def norm(self) -> nn.LayerNorm:
        """The final LayerNorm, by the name that it has elsewhere."""
        return self.Transformer.encoder_norm

    def _table(self) -> Float[Array, "*l n d"] | None:
        absolute, _ = position.parse_pe(self.pe)
        rows = self.grid[0] * self.grid[1] + self.cls_pe
        if absolute is None:
            return None
        if absolute == position.LEARNABLE:
            per_layer = self.method.table_per_layer
            shape = (self.depth if per_layer else 1, rows, self.width)
            init = nn.initializers.normal(1 / math.sqrt(self.width))
            table = self.param("pos_embedding", init, shape, jnp.float32)
            table = table if per_layer else table[0]
        else:
            table = position.frozen(absolute, self.grid, self.width)
        bare = [(0, 0)] * (table.ndim - 2) + [(self.no_embed_tokens, 0), (0, 0)]
        return jnp.pad(jnp.asarray(table, jnp.promote_types(self.dtype, jnp.float32)), bare)

    def embed(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Carry, Float[Array, "l n d"] | None]:
        """The carry that enters block 0, and the tables of all layers for joinings that have one per layer.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        carry, tables, _ = self._embed(images, train)
        return carry, tables

    def _embed(self, images: jax.Array, train: bool) -> tuple[Carry, jax.Array | None, dict[str, jax.Array]]:
        self.check_images(images.shape)
        patches = self.embedding(images.astype(self.dtype))
        tokens = patches.reshape(images.shape[0], -1, self.width)
        if self.pool == "tok":
            cls = jnp.broadcast_to(self.cls.astype(self.dtype), (images.shape[0], 1, self.width))
            tokens = jnp.concatenate([cls, tokens], axis=1)
        table = self.position_table
        tokens, pe = self.method.stem(tokens, table)
        out = {"patches": patches, "with_posemb": tokens[:, self.num_prefix_tokens :]}
        tokens = self.pos_dropout(nn.with_logical_constraint(tokens, AXES), deterministic=not train)
        return Carry(tokens, pe), table if self.method.table_per_layer else None, out

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Float[Array, "b *n k"], dict]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        carry, layer_pe, out = self._embed(images, train)
        out |= {"pos_embed": self.position_table, "stem": carry.tokens}
        carry, layers = self.encode(carry, layer_pe, train=train)
        out |= layers
        out["encoded"] = x = self._final(carry.tokens, carry.pe, self.position_table)
        maps = x[:, self.num_prefix_tokens :].reshape(images.shape[0], *self.grid, self.width)
        x = out["head_input"] = self._pool(x)
        if self.rep_size:
            x, maps = (nn.tanh(self.pre_logits(y)) for y in (x, maps))
        out["pre_logits"], out["pre_logits_2d"] = x, maps
        if self.num_classes:
            out["logits"], out["logits_2d"] = x, _ = self.head(x), self.head(maps)
        return x, out

    def _pool(self, x: Float[Array, "b n d"]) -> Float[Array, "b *n d"]:
        if self.pool == "map":
            return self.MAPHead_0(x)
        if self.pool == "gap":
            return jnp.mean(x, axis=1)
        return x if self.pool == "none" else x[:, 0]
