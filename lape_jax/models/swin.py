"""Swin Transformer (Liu et al. 2021) with every joining method."""

import itertools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import Classifier, pair
from lape_jax.nn import choice, position
from lape_jax.nn.block_options import BlockOptions
from lape_jax.nn.encoder import Carry, Encoder, at_most, check_unroll
from lape_jax.nn.join import JOINS, Joining
from lape_jax.nn.layers import PatchEmbed, layer_norm, normal_02
from lape_jax.nn.merging import PatchMerging, merge_pe
from lape_jax.nn.pe_norm import PE_NORMS
from lape_jax.nn.windows import WindowBlock, Windows


class NormedPatchEmbed(nn.Module):
    """LN(Linear(patch)); attributes as in `PatchEmbed`."""

    width: int
    patch_size: tuple[int, int]
    ln_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        patches = PatchEmbed(self.width, self.patch_size, self.dtype)
        nn.share_scope(self, patches)
        return layer_norm(self.ln_eps, self.dtype, "norm")(patches(images)).astype(self.dtype)


class Swin(Classifier):
    """Stages of blocks with attention in windows, shifted in every second block, each stage half as fine as the last.

    LN after the patch embedding; blocks as in DeiT's ViT; between two stages, `PatchMerging` halves rows and columns
    and doubles the width; final LN, mean over tokens, head. The relative position bias is one of the window, with a
    table in each block. An absolute table is one of the first stage's tokens. The PE that blocks are given passes from
    stage to stage by `lape_jax.nn.merging.merge_pe`: what the last block handed on (join "lape"), or the table itself
    ("lape_sharing", "shared"); with "unshared", each block has a table of its stage's size. "pvg" has a PE norm in
    every block, the first included, as the published counts have it (28.598 million for Swin-T; 28.599 for "mpvg",
    whose last PE norm gets the table by `merge_pe`, too: how it crosses the stages is not published).

    Calling it maps images (batch, height, width, channels), normalised, to `(logits, out)`. `out` names what lies
    between: "pos_embed" (the table, or a tuple of the stages' tables), "stem" (tokens that enter the first block),
    "tokens" and "pe" (tuples by stage: after and as delivered by each of its blocks, stacked on a leading layer axis;
    "pe" is None if blocks are given none), "encoded" (after the final LayerNorm), "pre_logits" (what the head sees).
    Under jit, what is not used costs nothing.

    Attributes:
        num_classes: outputs of the head.
        image_size, patch_size: pixels, one number or (height, width).
        in_channels: channels of the images.
        width: channels in the first stage.
        depths, heads: by stage.
        window_size: side of the windows in tokens. A grid with a side that is no longer is cut into windows of that
            side, without shifts; longer ones must be divisible by it.
        mlp_ratio: hidden channels of the MLPs by those of their stage.
        pe: position embedding, one of `Swin.pes`.
        join: joining method, one of `lape_jax.nn.join.JOINS`; None means "lape" if `pe` has an absolute table and
            "default" if it has none.
        pe_norm: the function that LaPE applies to the PE, one of `lape_jax.nn.pe_norm.PE_NORMS`.
        dropout, attn_dropout, drop_path: rates; `drop_path` is that of the last block of all, rising linearly from 0.
        ln_eps: epsilon of all LayerNorms, the PE's included.
        unroll: blocks per iteration of each stage's scan, 1 to the depth of the deepest, or "auto".
        remat: see `lape_jax.nn.encoder.Encoder`.
        attention: see `lape_jax.nn.attention.Attention`.
        dtype: type to compute in; parameters are float32 and softmax, LayerNorm and logits at least that.

    Source: microsoft/Swin-Transformer, `models/swin_transformer.py`.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 4
    in_channels: int = 3
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    pe: str = f"{position.LEARNABLE}+{position.RELATIVE}"
    join: str | None = None
    pe_norm: str = "layernorm"
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    ln_eps: float = 1e-5
    unroll: int | str = "auto"
    remat: str = "auto"
    attention: str | choice.OnDevices = "auto"
    dtype: DTypeLike = jnp.float32

    pes: ClassVar[tuple[str, ...]] = tuple(
        pe for pe in position.KINDS if not position.has_peg(pe) and not position.parse_rope(pe)
    )
    num_prefix_tokens: ClassVar[int] = 0  # tokens before the patches

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_h, patch_w) = pair(self.image_size), pair(self.patch_size)
        return height // patch_h, width // patch_w

    @property
    def method(self) -> Joining:
        """The joining method itself, as it is in several stages."""
        return JOINS[self.joining].in_stages or JOINS[self.joining]

    @property
    def windows(self) -> list[Windows]:
        """Grid, size and shift of each stage's windows."""
        found = []
        for stage in range(len(self.depths)):
            grid = (self.grid[0] >> stage, self.grid[1] >> stage)
            size = min(*grid, self.window_size)
            found.append(Windows(grid, size, 0 if size == min(grid) else size // 2))
        return found

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        self._check_names({"pe_norm": PE_NORMS, "pe": self.pes})
        self._check_positive("num_classes", "image_size", "in_channels", "width", "depths", "heads", "window_size")
        self._check_patches()
        self._check_stages()
        self._check_grids()
        self._check_joining()
        if self.method.norms_apart:
            raise UserError(f"join={self.join!r} does not say how it is in several stages (`in_stages`), as a Swin has")
        self._check_numbers()
        choice.check(self.attention, self.attn_dropout)
        check_unroll(self.unroll, max(self.depths), f"the depth of the deepest stage in {self.depths}")
        self._encoders()[0].check()

    def _check_stages(self) -> None:
        if len(self.depths) != len(self.heads):
            raise UserError(f"depths={self.depths} and heads={self.heads} are not of as many stages")
        for stage, heads in enumerate(self.heads):
            if (self.width << stage) % heads:
                raise UserError(f"width={self.width << stage} of stage {stage} is not divisible by its heads={heads}")
        if self.width * self.mlp_ratio < 1:
            raise UserError(f"mlp_ratio={self.mlp_ratio} leaves an MLP without hidden units at width={self.width}")

    def _check_grids(self) -> None:
        halvings = len(self.depths) - 1
        whole = [patch * self.window_size << halvings for patch in pair(self.patch_size)]
        advice = f"multiples of {whole[0]} x {whole[1]} pixels always can"
        if any(side % (1 << halvings) for side in self.grid):
            raise UserError(
                f"image_size={self.image_size}: {self.grid[0]} x {self.grid[1]} patches cannot be halved {halvings} "
                f"times; {advice}"
            )
        for grid, size, _ in self.windows:
            if any(side % size for side in grid):
                raise UserError(
                    f"image_size={self.image_size}: a grid of {grid[0]} x {grid[1]} tokens cannot be cut into windows "
                    f"of {size} x {size} (window_size={self.window_size}); {advice}"
                )

    def setup(self):
        self.check()
        self.patch_embed = NormedPatchEmbed(self.width, pair(self.patch_size), self.ln_eps, self.dtype)
        self.position_tables = self._tables()
        self.pos_dropout = nn.Dropout(self.dropout)
        self.layers = self._encoders()  # parameters as in the official code: `layers_0/blocks/...`
        self.downsample = [PatchMerging(windows.grid, self.ln_eps, self.dtype) for windows in self.windows[:-1]]
        self.norm = layer_norm(self.ln_eps, self.dtype, "norm")
        self.pe_norm_last = self._last_pe_norm()
        self.head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=normal_02)

    def _tables(self) -> tuple[Float[Array, "*l n d"] | None, ...]:
        """One for each stage if the joining has a table for each block, else one."""
        absolute, _ = position.parse_pe(self.pe)
        full = jnp.promote_types(self.dtype, jnp.float32)
        rows = self.grid[0] * self.grid[1]
        if absolute is None:
            return (None,)
        if absolute != position.LEARNABLE:
            return (jnp.asarray(position.frozen(absolute, self.grid, self.width), full),)
        shapes = {"pos_embed": (rows, self.width)}
        if self.method.table_per_layer:
            shapes = {
                f"pos_embed_{stage}": (depth, rows >> 2 * stage, self.width << stage)
                for stage, depth in enumerate(self.depths)
            }
        return tuple(self.param(name, normal_02, shape, jnp.float32).astype(full) for name, shape in shapes.items())

    def _encoders(self) -> list[Encoder]:
        _, relative = position.parse_pe(self.pe)
        rates = iter(np.linspace(0, self.drop_path, self.depth).tolist())
        encoders = []
        for stage, (depth, heads, windows) in enumerate(zip(self.depths, self.heads, self.windows, strict=True)):
            width = self.width << stage
            block = BlockOptions(
                heads=heads,
                mlp_hidden=int(width * self.mlp_ratio),
                join=self.method,
                pe_norm=self.pe_norm,
                relative_grid=(windows.size, windows.size) if relative else None,
                dropout=self.dropout,
                attn_dropout=self.attn_dropout,
                ln_eps=self.ln_eps,
                attention=self.attention,
                dtype=self.dtype,
                windows=windows,
            )
            rate, unroll = tuple(itertools.islice(rates, depth)), at_most(self.unroll, depth)
            encoders.append(Encoder(depth, block, rate, unroll, self.remat, block_class=WindowBlock, parent=None))
        return encoders

    def embed(self, images: Float[Array, "b h w c"], train: bool = False) -> Carry:
        """The carry that enters the first block.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        self.check_images(images.shape)
        tokens, pe = self.method.stem(self.patch_embed(images.astype(self.dtype)), self.position_tables[0])
        return Carry(self.pos_dropout(tokens, deterministic=not train), pe)

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Float[Array, "b k"], dict]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: the images do not have the model's `input_shape`.
        """
        carry = self.embed(images, train)
        per_layer = self.method.table_per_layer
        out = {"pos_embed": self.position_tables if per_layer else self.position_tables[0], "stem": carry.tokens}
        stages = []
        for stage, encoder in enumerate(self.layers):
            if stage:
                carry = self.next_stage(carry, stage)
            carry, layers = encoder(carry, self.position_tables[stage] if per_layer else None, train=train)
            stages.append(layers)
        out["tokens"] = tuple(layers["tokens"] for layers in stages)
        out["pe"] = None if stages[0]["pe"] is None else tuple(layers["pe"] for layers in stages)
        out["encoded"] = x = self._final(carry.tokens, carry.pe, self._last_table())
        out["pre_logits"] = jnp.mean(x, axis=1)
        return self.head(out["pre_logits"]).astype(jnp.promote_types(self.dtype, jnp.float32)), out

    def _last_table(self) -> Float[Array, "*l n d"] | None:
        """The table, or those of its blocks, as the last stage has it."""
        table = self.position_tables[-1]
        if table is not None and not self.method.table_per_layer:
            for windows in self.windows[:-1]:
                table = merge_pe(table, windows.grid)
        return table

    def next_stage(self, carry: Carry, stage: int) -> Carry:
        """What leaves stage - 1 as it enters `stage`."""
        pe = None if carry.pe is None else merge_pe(carry.pe, self.windows[stage - 1].grid)
        return Carry(self.downsample[stage - 1](carry.tokens), pe)
