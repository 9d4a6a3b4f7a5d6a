"""A ViT for images of any size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lape_jax.errors import UserError
from lape_jax.models.base import pair
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.nn.encoder import Carry
from lape_jax.nn.peg import encode_with_pegs
from lape_jax.nn.resize import METHODS, resize_rows


class ResizableViT(ViT):
    """A ViT whose position tables, learned for the patches of `grid`, are fitted to those of each image.

    Learned position tables are resized, before any norm acts on them (class and distillation rows stay as they are;
    relative biases always by bicubic interpolation), and sinusoids computed anew. All of this happens while tracing:
    each size of images is a program of its own under jit.

    Attributes beside those of `lape_jax.models.vit.ViT`:
        pe_resize: "bicubic" or "bilinear".
    """

    pe_resize: str = "bicubic"

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        self._check_names({"pe_resize": METHODS})
        super().check()

    def check_images(self, shape: tuple) -> None:
        """Raises UserError unless the model takes images of this shape (batch, height, width, channels)."""
        if shape[-1] != self.in_channels or min(shape[1:]) < 1:
            raise UserError(f"the model takes images of {self.in_channels} channels, and not of shape {shape[1:]}")

    def classifier(self) -> ViT:
        """The classifier with this encoder, for images of the same size: what the encoder is pre-trained as."""
        fields = (field.name for field in dataclasses.fields(ViT) if field.name not in ("parent", "name"))
        return ViT(**{field: getattr(self, field) for field in fields}, parent=None)

    def patches_of(self, shape: tuple) -> tuple[int, int]:
        """Rows and columns of patches in images of this shape (batch, height, width, channels), begun ones too."""
        rows, columns = (-(-side // patch) for side, patch in zip(shape[1:3], pair(self.patch_size), strict=True))
        return rows, columns

    def table_for(self, shape: tuple) -> Float[Array, "*l n d"] | None:
        """The table, or those of all layers, for images of this shape, whose batch may be symbolic (`jax.export`)."""
        table, grid = self.position_table, self.patches_of(shape)
        if table is None or grid == self.grid:
            return table
        if not self.method.trainable:
            raise UserError(
                f"join={self.joining!r} has constants for {self.grid[0]} x {self.grid[1]} patches and the images have "
                f"{grid[0]} x {grid[1]}: fold a model whose image_size is theirs"
            )
        absolute, _ = position.parse_pe(self.pe)
        if absolute != position.LEARNABLE:
            return jnp.asarray(position.frozen(absolute, grid, self.width, self.num_prefix_tokens), table.dtype)
        return resize_rows(table, self.grid, grid, self.num_prefix_tokens, self.pe_resize)

    def encode(
        self,
        carry: Carry,
        layer_pe: Float[Array, "l n d"] | None = None,
        *,
        train: bool = False,
        first: int = 0,
        count: int | None = None,
        grid: tuple[int, int] | None = None,
        **changed: Any,
    ) -> tuple[Carry, dict[str, jax.Array | None]]:
        """Encodes as `ViT.encode` does; `grid` is that of images that are not of `image_size` (see `patches_of`)."""
        options = {"train": train, "first": first, "count": count, "grid": None if grid == self.grid else grid}
        return encode_with_pegs(self.encoder, self.peg, carry, layer_pe, **options, **changed)
