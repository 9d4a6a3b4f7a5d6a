"""What the blocks of an encoder have in common, as one value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from lape_jax.nn.choice import AUTO, OnDevices
from lape_jax.nn.join import BASELINE, JOINS, Joining
from lape_jax.nn.rope import Rope


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Options of all blocks of an encoder.

    Attributes: see `lape_jax.models.vit.ViT`, and:
        mlp_hidden: channels between the layers of the MLP.
        relative_grid: the grid (rows, columns) of a relative bias, if there is one.
        norm2_on_residual: whether the second LayerNorm lies on the residual stream, see `Block`.
        no_embed_tokens: so many of the first tokens have no PE.
        grid: that of the patches, if not that of `rope`; a relative bias is resized to it from `relative_grid`.
        window, windows: see `lape_jax.nn.padded_windows` and `lape_jax.nn.windows`.
    """

    heads: int
    mlp_hidden: int
    join: Joining
    pe_norm: str = "layernorm"
    relative_grid: tuple[int, int] | None = None
    rope: Rope | None = None
    dropout: float = 0.0
    attn_dropout: float = 0.0
    layer_scale: float | None = None
    ln_eps: float = 1e-6
    attention: str | OnDevices = AUTO
    dtype: DTypeLike = jnp.float32
    qkv_bias: bool = True
    norm2_on_residual: bool = False
    gelu: str = "erf"
    no_embed_tokens: int = 0
    grid: tuple[int, int] | None = None
    window: int | None = None
    windows: Any = None

    def replace(self, **changed: Any) -> "BlockOptions":
        """The same with other values of some."""
        return dataclasses.replace(self, **changed)

    def without_position(self) -> "BlockOptions":
        """The same for tokens that have no place."""
        return self.replace(
            join=JOINS[BASELINE], pe_norm="layernorm", relative_grid=None, rope=None, no_embed_tokens=0, grid=None
        )
