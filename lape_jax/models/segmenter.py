"""Segmenter (Strudel et al. 2021, "Segmenter: Transformer for Semantic Segmentation", arXiv:2105.05633)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.models.resizable import ResizableViT
from lape_jax.nn import choice
from lape_jax.nn.encoder import Carry, Encoder, at_most
from lape_jax.nn.layers import layer_norm, normal_02
from lape_jax.nn.resize import resize_maps

DECODERS = ("mask", "linear")
UPSAMPLINGS = ("padded", "image")
# Values of the attributes by which the two code bases differ. The first, rstrudel/segmenter, are the defaults; the
# second, open-mmlab/mmsegmentation, are of the one that the LaPE paper used: create(name, **CODE_BASES["mmseg"]).
CODE_BASES = {
    "rstrudel": {
        "ln_eps": 1e-5,
        "pe_resize": "bilinear",
        "decoder_dropout": 0.1,
        "decoder_drop_path": 0.0,
        "projection_std": None,
        "upsample": "padded",
    },
    "mmseg": {
        "ln_eps": 1e-6,
        "pe_resize": "bicubic",
        "decoder_dropout": 0.0,
        "decoder_drop_path": 0.1,
        "projection_std": 0.02,
        "upsample": "image",
    },
}


class Segmenter(ResizableViT):
    """A ViT whose patch tokens a decoder turns into a map of logits for each class.

    Calling it maps images (batch, height, width, channels), normalised and of any size, to `(logits, out)` with logits
    (batch, height, width, num_classes). Images are padded with zeros at the bottom and on the right to whole patches.
    For another grid of patches than that of `image_size`, position tables are fitted as in `ResizableViT`. (The
    reference code bases compare numbers of tokens, and leave a table as it is for another grid of as many.)

    `out` has what a ViT's has up to "encoded" ("pos_embed" is the table as it is learned), and "masks", the logits of
    each patch (batch, rows, columns, num_classes), which are upsampled to the logits; with a mask decoder also
    "decoder_tokens", patches and then classes after each of the decoder's blocks, stacked on a leading layer axis.

    Attributes beside those of `lape_jax.models.resizable.ResizableViT`, of which `pool` is "token", `image_size` that
    of the images which the position tables are learned for, and `distilled` adds the token without a head of its own:
        decoder_type: "mask" for `MaskDecoder`, "linear" for `LinearDecoder`.
        decoder_depth: blocks of a mask decoder; they have as many heads and as wide an MLP as the encoder's.
        decoder_dropout: in a mask decoder's blocks, also on their attention weights.
        decoder_drop_path: stochastic depth rate of its last block, rising linearly from 0 in the first.
        decoder_ln_eps: epsilon of its LayerNorms.
        projection_std: deviation of the initial values of its last two matrices; None for width^-1/2.
        upsample: logits are interpolated (bilinear) to the size of the "padded" images, and the margin cut off; or to
            that of the "image" itself, which squeezes the margin into it. They differ if there is a margin.

    `CODE_BASES` has the values by which two code bases differ. In MMSegmentation's linear variant the decoder's matrix
    starts at a deviation of 0.01 instead of 0.02.

    Source: rstrudel/segmenter, `segm/model/`; open-mmlab/mmsegmentation, `segmenter_mask_head.py`, `vit.py`.
    """

    num_classes: int = 150
    image_size: int | tuple[int, int] = 512
    drop_path: float = 0.1
    ln_eps: float = 1e-5
    pe_resize: str = "bilinear"
    decoder_type: str = "mask"
    decoder_depth: int = 2
    decoder_dropout: float = 0.1
    decoder_drop_path: float = 0.0
    decoder_ln_eps: float = 1e-5
    projection_std: float | None = None
    upsample: str = "padded"

    answers: ClassVar = "pixel"
    pools: ClassVar = ("token",)

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        self._check_names({"decoder_type": DECODERS, "upsample": UPSAMPLINGS})
        self._check_positive("decoder_depth")
        super().check()
        if self.decoder_type == "mask":
            choice.check(self.attention, self.decoder_dropout, "decoder_dropout")

    def _check_numbers(self) -> None:
        super()._check_numbers()
        self._check_rates("decoder_dropout", "decoder_drop_path")
        for field in ("decoder_ln_eps", "projection_std"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise UserError(f"{field}={value} is not a positive number")

    def grid_of(self, shape: tuple) -> tuple[int, int]:
        """Rows and columns of "masks" for images of this shape (batch, height, width, channels): of patches."""
        return self.patches_of(shape)

    def setup(self):
        super().setup()  # its head, which is never called, has no parameters
        if self.decoder_type == "linear":
            self.decoder = LinearDecoder(self.num_classes, self.dtype)
            return
        changed = {"dropout": self.decoder_dropout, "attn_dropout": self.decoder_dropout, "layer_scale": None}
        blocks = {
            "depth": self.decoder_depth,
            "block": self.encoder.block.without_position().replace(**changed, ln_eps=self.decoder_ln_eps),
            "drop_path": self.decoder_drop_path,
            "unroll": at_most(self.unroll, self.decoder_depth),
            "remat": self.remat,
        }
        std = self.width**-0.5 if self.projection_std is None else self.projection_std
        self.decoder = MaskDecoder(self.num_classes, blocks, std, self.decoder_ln_eps, self.dtype)

    def embed(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Carry, Float[Array, "l n d"] | None]:
        """Embeds as `ViT.embed` does, images of any size."""
        self.check_images(images.shape)
        return super().embed(self._pad(images), train)

    def _pad(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        rows, columns = self._padded(images.shape)
        return jnp.pad(images, ((0, 0), (0, rows - images.shape[1]), (0, columns - images.shape[2]), (0, 0)))

    def _padded(self, shape: tuple) -> tuple[int, int]:
        (rows, columns), (height, width) = self.patches_of(shape), pair(self.patch_size)
        return rows * height, columns * width

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, jax.Array | None]]:
        """Logits (float32 or better) and the named intermediates; see the class.

        Raises:
            UserError: the images have other channels, or another size than what a folded model has constants for.
        """
        carry, layer_pe = self.embed(images, train)
        grid = self.grid_of(images.shape)
        out = {"pos_embed": self.position_table, "stem": carry.tokens}
        carry, layers = self.encode(carry, layer_pe, train=train, grid=grid)
        out |= layers
        out["encoded"] = x = self._final(carry.tokens, carry.pe, self.table_for(images.shape))
        masks, found = self.decoder(x[:, self.num_prefix_tokens :], train)
        out |= found
        out["masks"] = masks = masks.reshape(-1, *grid, self.num_classes)
        return self._upsample(masks, images.shape), out

    def _upsample(self, masks: Float[Array, "b rows columns k"], shape: tuple[int, ...]) -> Float[Array, "b h w k"]:
        _, height, width, _ = shape
        size = self._padded(shape) if self.upsample == "padded" else (height, width)
        return resize_maps(masks, size, "bilinear")[:, :height, :width]


class LinearDecoder(nn.Module):
    """A linear function of each patch token.

    Attributes: see `Segmenter`.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> tuple[Float[Array, "b n k"], dict[str, jax.Array]]:
        """Logits of each patch, float32 or better, and no intermediates."""
        logits = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=normal_02, name="head")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32)), {}


class MaskDecoder(nn.Module):
    """Cosines of patch tokens and class tokens that went through blocks of a transformer together.

    [p; c] = LN(blocks([proj_dec(x); cls_emb]));  logits = LN(cos(P p, C c)), with matrices P and C and the last
    LayerNorm over the classes of each patch. There is no position embedding in it.

    Attributes:
        num_classes: k, the number of class tokens.
        blocks: keyword arguments of `Encoder`.
        projection_std: deviation of the initial values of P and C.
        ln_eps: epsilon of the LayerNorms.
        dtype: type to compute in; the cosines are float32 or better.
    """

    num_classes: int
    blocks: Mapping[str, Any]
    projection_std: float
    ln_eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> tuple[Float[Array, "b n k"], dict[str, jax.Array]]:
        """Logits of each patch, and "decoder_tokens", the tokens after each block."""
        batch, patches, width = x.shape
        encoder = Encoder(**self.blocks)
        nn.share_scope(self, encoder)
        class_tokens = self.param("cls_emb", normal_02, (1, self.num_classes, width), jnp.float32)
        x = nn.Dense(width, dtype=self.dtype, kernel_init=normal_02, name="proj_dec")(x)
        class_tokens = jnp.broadcast_to(class_tokens.astype(x.dtype), (batch, self.num_classes, width))
        carry, out = encoder(Carry(jnp.concatenate([x, class_tokens], axis=1), None), train=train)
        x = layer_norm(self.ln_eps, self.dtype, "decoder_norm")(carry.tokens)
        directions = self._direction("proj_patch", x[:, :patches]), self._direction("proj_classes", x[:, patches:])
        masks = jnp.einsum("bnd,bkd->bnk", *directions)
        return layer_norm(self.ln_eps, self.dtype, "mask_norm")(masks), {"decoder_tokens": out["tokens"]}

    def _direction(self, name: str, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        init = nn.initializers.normal(self.projection_std)
        y = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=init, name=name)(x)
        y = y.astype(jnp.promote_types(self.dtype, jnp.float32))
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)
