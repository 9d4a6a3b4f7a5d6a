"""What classifiers with a choice of position embedding and joining method have in common."""

import functools
from collections.abc import Iterable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from lape_jax.errors import UserError, nearest
from lape_jax.nn import position
from lape_jax.nn.join import BASELINE, JOINS, PUBLISHED, Joining, those
from lape_jax.nn.pe_norm import PENorm


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what may be given as one number."""
    return (size, size) if isinstance(size, int) else tuple(size)


@functools.lru_cache(maxsize=64)
def _variable_shapes(model: "Classifier", x64: bool) -> dict:
    """See there. Kept, because tracing takes up to a second and weights are checked again and again; x64 matters."""
    images = jax.ShapeDtypeStruct((1, *model.input_shape), model.dtype)
    return jax.eval_shape(model.init, jax.random.key(0), images)


class Classifier(nn.Module):
    """Properties and checks of a family with fields pe, join, pe_norm, image_size, patch_size, in_channels, dtype."""

    answers: ClassVar[str] = "image"  # what it gives a class to each of
    class_row: ClassVar[int | None] = None  # which token is the class token, if there is one
    no_embed_tokens: ClassVar[int] = 0  # of the tokens before the patches, those that have no PE at all
    unused_rows: ClassVar[int] = 0  # of the rows of a position table before the patches, those that no token has
    least_batch: ClassVar[int] = 1  # images that it can be trained on at a time

    @property
    def joining(self) -> str:
        """The joining method, with `join=None` resolved."""
        if self.join is not None:
            return self.join
        absolute, _ = position.parse_pe(self.pe)
        return PUBLISHED if absolute else BASELINE

    @property
    def method(self) -> Joining:
        """The joining method itself."""
        return JOINS[self.joining]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*pair(self.image_size), self.in_channels)

    def param_shapes(self) -> dict:
        """Shapes and types of the parameters, as a tree of `jax.ShapeDtypeStruct`, without computing anything."""
        return self.variable_shapes()["params"]

    def variable_shapes(self) -> dict:
        """The same of all variables: the parameters under "params", and the other collections if there are any."""
        return jax.tree.map(lambda leaf: leaf, _variable_shapes(self, jax.config.jax_enable_x64))

    @property
    def no_weight_decay(self) -> tuple[str, ...]:
        """Patterns of whole names of parameters that do not decay, beside biases and scales: timm's `no_weight_decay`.

        The class token, a position table, what `pe="peg"` adds, kernels included (as in Twins' `CPVTV2`), and the
        frequencies of `pe="rope_mixed"` (as in naver-ai/rope-vit). Everything else decays, also `dist_token`,
        `relative_position_bias_table`, and the tables of join="unshared": the official code calls those `pos_embed0`,
        `pos_embed1`, ..., which its list misses. Source: `no_weight_decay` in Ingrid725/LaPE vision_transformer.py.
        """
        tables = () if self.method.table_per_layer else ("pos_embed",)
        return ("cls_token", *tables, r"peg_\d+/.*", r"(.*/)?freqs")

    def check_images(self, shape: tuple) -> None:
        """Raises UserError unless the model takes images of this shape (batch, height, width, channels)."""
        if shape[1:] != self.input_shape:
            raise UserError(f"the model takes images of shape {self.input_shape}, not {shape[1:]}")

    def _last_pe_norm(self) -> PENorm | None:
        """The PE norm behind the last block, if the joining method has one."""
        return PENorm(self.pe_norm, self.ln_eps, self.no_embed_tokens) if self.method.last_norm else None

    def _final(
        self, x: Float[Array, "b n d"], pe: Float[Array, "_n d"] | None, table: Float[Array, "*_l _n _d"] | None
    ) -> Float[Array, "b n d"]:
        """What the joining method makes of the tokens and the PE that leave the last block, and of the table."""
        return self.method.final(x, pe, table, self.norm, self.pe_norm_last)

    def _check_names(self, choices: Mapping[str, Iterable[str]]) -> None:
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise UserError(f"{field}={nearest(getattr(self, field), known)}")

    def _check_positive(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise UserError(f"{field}={value} is not positive")

    def _check_patches(self) -> None:
        self._check_positive("patch_size")
        if any(side % patch for side, patch in zip(pair(self.image_size), pair(self.patch_size), strict=True)):
            raise UserError(f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}")

    def _check_numbers(self) -> None:
        self._check_rates("dropout", "attn_dropout", "drop_path")
        if not self.ln_eps > 0:
            raise UserError(f"ln_eps={self.ln_eps} is not a positive number")

    def _check_rates(self, *fields: str) -> None:
        for field in fields:
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not a rate in [0, 1)")

    def _check_joining(self) -> None:
        absolute, _ = position.parse_pe(self.pe)
        if self.joining not in JOINS:
            raise UserError(f"join={nearest(self.join, JOINS)}")
        join = self.method
        if absolute is None and not join.stem_only:
            raise UserError(
                f"join={self.join!r} delivers an absolute position table, and pe={self.pe!r} has none: "
                f"use join={BASELINE!r}, or a table such as pe='learnable{f'+{self.pe}' if self.pe != 'none' else ''}'"
            )
        pools = getattr(self, "pools", ())
        if join.pools and pools and self.pool not in join.pools:
            asked = f"it needs pool={' or '.join(map(repr, join.pools))}, not {self.pool!r}"
            if not set(join.pools) & set(pools):
                asked = f"how it would pool the tokens of a {type(self).__name__} is not published"
            raise UserError(f"join={self.join!r} has no class token: {asked}")
        if join.norms_apart and self.depth < 2:
            raise UserError(f"join={self.join!r} gives its PE to the blocks behind the first, and depth={self.depth}")
        if join.table_per_layer and absolute != position.LEARNABLE:
            raise UserError(f"join={self.join!r} learns a table per layer: it needs pe='learnable', not {self.pe!r}")
        if not join.has_norms and self.pe_norm != "layernorm":
            normed = those(lambda method: method.has_norms)
            raise UserError(f"pe_norm={self.pe_norm!r} acts in join={normed}, not in {self.joining!r}")
        if absolute not in (None, position.LEARNABLE):
            position.frozen(absolute, self.grid, self.width)
