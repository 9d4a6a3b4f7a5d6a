"""ViT-Adapter (Chen et al. 2023, "Vision Transformer Adapter for Dense Predictions", arXiv:2205.08534)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.models.resizable import ResizableViT
from lape_jax.models.vit import ViT
from lape_jax.nn.adapter import Interaction, SpatialPrior, as_maps, as_tokens
from lape_jax.nn.batch_norm import BatchNorm
from lape_jax.nn.convolution import Doubling
from lape_jax.nn.padded_windows import PaddedWindowBlock
from lape_jax.nn.resize import resize_maps

VARIANTS = ("detection", "segmentation")
STRIDE = 32  # of the last map


class ViTAdapter(ResizableViT):
    """A ViT with maps at its side, with which it exchanges what each has found.

    Calling it maps images (batch, height, width, channels), normalised and of any height and width that are multiples
    of 32, to `(maps, out)`: four maps at strides 4, 8, 16 and 32, (batch, rows, columns, width).

    - Maps: `SpatialPrior` makes four of the image. Those at strides 8, 16 and 32, each with a learned `level_embed`
      added, are a sequence of tokens c.
    - Interactions: the blocks, all of one encoder, are run in as many segments. Before each the patches read from c
      (`Injector`), and behind it c reads from the patches (`Extractor`), behind the last three times.
    - Output: c as maps again, the first doubled (`up`) and added to the map at stride 4; to each the patches as a map,
      resized (bilinear); then BatchNorm, `norm1` to `norm4`.

    There are no class token, no final norm and no head. Position tables have the row of a class token nonetheless, as
    it comes with pre-trained ones: it is not used. LaPE's chain of PE norms runs through all segments, as if they were
    one. BatchNorms (collection "batch_stats") see all images of a batch, on however many devices.

    `out` has "pos_embed" (the table as it is learned), "stem" (the patches before the first interaction), "tokens" and
    "pe" (after and as delivered by each block, stacked on a leading layer axis).

    Attributes beside those of `lape_jax.models.resizable.ResizableViT`:
        variant: the two that there are of the official code differ in two things.
            "detection": all blocks of a segment but the last attend within windows of 14 x 14 patches, see
            `PaddedWindowAttention`; the patches that leave the last block are added to all four maps.
            "segmentation": all blocks attend to all patches; those that leave segment i are added to map i.
        interactions: segments, of as many blocks each; four of them for "segmentation".
        spatial_width: channels of the first convolutions of `SpatialPrior`.
        deform_heads, deform_points: heads and points of `lape_jax.nn.deformable.DeformableAttention`.
        ffn_ratio: hidden channels of the extractors' `ConvFFN`, relative to the width.
        image_size: size of the images that the position tables are learned for.
        drop_path: stochastic depth of the last block, rising linearly from 0 in the first, and that of all extractors.
        layer_scale: initial LayerScale of the blocks; on by default.
        patch_size, pool, distilled, num_classes: 16, "maps", False, and of no meaning.

    Initial values are those of DeiT in the blocks and the table (official training always starts from a pre-trained
    ViT), and the official ones in all else.

    Source: czczup/ViT-Adapter, `detection/mmdet_custom/models/backbones/`, and the same in `segmentation/`.
    """

    variant: str = "detection"
    interactions: int = 4
    spatial_width: int = 64
    deform_heads: int = 6
    deform_points: int = 4
    ffn_ratio: float = 0.25
    drop_path: float = 0.1
    layer_scale: float | None = 1.0
    pool: str = "maps"

    pools: ClassVar = ("maps",)
    num_prefix_tokens: ClassVar = 1
    unused_rows: ClassVar = 1
    answers: ClassVar = "nothing"
    block_class: ClassVar = PaddedWindowBlock
    window: ClassVar[int] = 14

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        self._check_names({"variant": VARIANTS})
        if self.distilled:
            raise UserError("distilled=True: a ViT-Adapter has neither class nor distillation token")
        super().check()

    def _check_sizes(self) -> None:
        self._check_positive("interactions", "spatial_width", "deform_heads", "deform_points")
        super()._check_sizes()
        if self.depth % self.interactions:
            raise UserError(f"depth={self.depth} is not divisible by interactions={self.interactions}")
        if self.variant == "segmentation" and self.interactions != 4:
            raise UserError(
                f"interactions={self.interactions}: variant='segmentation' adds the patches after each of 4 to one map"
            )
        if self.width % self.deform_heads:
            raise UserError(f"width={self.width} is not divisible by deform_heads={self.deform_heads}")
        if self.width * self.ffn_ratio < 1:
            raise UserError(f"ffn_ratio={self.ffn_ratio} leaves no hidden channels at width={self.width}")

    def _check_patches(self) -> None:
        if pair(self.patch_size) != (16, 16):
            raise UserError(f"patch_size={self.patch_size}: the maps of a ViT-Adapter fit patches of 16 x 16 pixels")
        if any(side % STRIDE for side in pair(self.image_size)):
            raise UserError(f"image_size={self.image_size} is not divisible by {STRIDE}, the stride of the last map")

    def check_images(self, shape: tuple) -> None:
        """Raises UserError unless the model takes images of this shape (batch, height, width, channels)."""
        super().check_images(shape)
        if any(side % STRIDE for side in shape[1:3]):
            raise UserError(
                f"the model takes images whose sides are multiples of {STRIDE}, not {shape[1]} x {shape[2]}"
            )

    def classifier(self) -> ViT:
        """The classifier with this encoder, for images of the size of its tables: what the encoder is pre-trained as.

        It has a class token, and no layer scales.
        """
        size = tuple(16 * side for side in self.grid)
        changed = {"pool": "token", "layer_scale": None, "attn_dropout": 0.0, "image_size": size}
        fields = (field.name for field in dataclasses.fields(ViT) if field.name not in ("parent", "name"))
        return ViT(**{**{field: getattr(self, field) for field in fields}, **changed}, parent=None)

    @property
    def block_options(self) -> Mapping[str, Any]:
        """Options of the blocks that are other than a ViT's."""
        return {"grid": self.grid}

    def setup(self):
        super().setup()  # its norm and its head, which are never called, have no parameters
        self.spm = SpatialPrior(self.spatial_width, self.width, self.dtype)
        self.level_embed = self.param("level_embed", nn.initializers.normal(1.0), (3, self.width), jnp.float32)
        options = {
            "heads": self.deform_heads,
            "points": self.deform_points,
            "hidden": int(self.width * self.ffn_ratio),
            "drop_path": self.drop_path,
            "ln_eps": self.ln_eps,
            "gelu": self.gelu,
            "dtype": self.dtype,
        }
        last = self.interactions - 1
        self.exchanges = [
            Interaction(options, 2 * (i == last), self.remat, name=f"interactions_{i}") for i in range(last + 1)
        ]
        self.up = Doubling(self.width, self.dtype)
        self.map_norms = [BatchNorm(self.dtype, name=f"norm{i}") for i in (1, 2, 3, 4)]

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[list[Float[Array, "b _h _w d"]], dict[str, Any]]:
        """The four maps, and the named intermediates; see the class.

        Raises:
            UserError: the images have other channels, a side that is no multiple of 32, or another size than what a
                folded model has constants for.
        """
        carry, layer_pe = self.embed(images, train)
        grid, out = self.patches_of(images.shape), {"pos_embed": self.position_table, "stem": carry.tokens}
        finest, *maps = self.spm(images, train)
        levels = self.level_embed.astype(self.dtype)
        c = as_tokens([map_ + level for map_, level in zip(maps, levels, strict=True)])
        seen, parts, count = [], [], self.depth // self.interactions
        for index, exchange in enumerate(self.exchanges):
            carry = carry._replace(tokens=exchange.inject(carry.tokens, c, grid))
            for first, length, window in self._runs(index * count, count):
                carry, part = self.encode(
                    carry, layer_pe, train=train, first=first, count=length, grid=grid, window=window
                )
                parts.append(part)
            c = exchange.extract(c, carry.tokens, grid, train)
            seen.append(carry.tokens)
        out |= jax.tree.map(lambda *layers: jnp.concatenate(layers), *parts)
        maps = as_maps(c, grid)
        return self._output([finest + self.up(maps[0]), *maps], seen, grid, train), out

    def _runs(self, first: int, count: int) -> list[tuple[int, int, int | None]]:
        """The blocks of a segment as (first, count, side of their windows or None)."""
        if self.variant == "segmentation" or count == 1:
            return [(first, count, None)]
        return [(first, count - 1, self.window), (first + count - 1, 1, None)]

    def _output(self, maps: list, seen: list[Float[Array, "b n d"]], grid: tuple[int, int], train: bool) -> list:
        found = []
        for index, (map_, norm) in enumerate(zip(maps, self.map_norms, strict=True)):
            tokens = seen[-1 if self.variant == "detection" else index]
            patches = tokens.reshape(tokens.shape[0], *grid, -1)
            found.append(norm(map_ + resize_maps(patches, map_.shape[1:3], "bilinear"), train))
        return found
