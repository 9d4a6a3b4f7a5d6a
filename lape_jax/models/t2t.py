"""T2T-ViT (Yuan et al. 2021, "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet")."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lape_jax.errors import UserError, nearest
from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.nn.layers import normal_02
from lape_jax.nn.tokens import TokenPerformer, TokenTransformer, unfold

TOKEN_ATTENTIONS = {"performer": TokenPerformer, "transformer": TokenTransformer}
UNFOLDINGS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding
PATCH = math.prod(stride for _, stride, _ in UNFOLDINGS)


class T2TViT(ViT):
    """A ViT whose tokens are unfolded from overlapping windows, three times, with self-attention in between.

    The encoder is DeiT's, without a bias in the qkv projection. LaPE acts in its blocks; the attentions of the tokens
    before it know no position embedding. Random features of the Performer are the collection "constants".

    Calling it, and the attributes, are those of `lape_jax.models.vit.ViT`, and beside them:
        token_attention: between the unfoldings, "performer" (T2T-ViT) or "transformer" (T2T-ViT_t).
        token_dim: channels of these attentions.
        token_dropout: their dropout, after projection and MLP. It is 0.1 in the Performers of all published models.
        patch_size: 16, the product of the strides; it cannot be chosen.

    Source: yitu-opensource/T2T-ViT, `models/t2t_vit.py`. (The factor `qk_scale` that it gives to pretrained models is
    not used: the released weights are evaluated without.)
    """

    width: int = 256
    depth: int = 7
    heads: int = 4
    mlp_ratio: float = 2.0
    pe: str = position.SINCOS_1D
    ln_eps: float = 1e-5
    patch_size: int | tuple[int, int] = PATCH
    token_attention: str = "performer"
    token_dim: int = 64
    token_dropout: float = 0.1

    block_options: ClassVar = {"qkv_bias": False}

    def check(self) -> None:
        """Raises UserError if the settings name something unknown, do not divide, or contradict each other."""
        if self.token_attention not in TOKEN_ATTENTIONS:
            raise UserError(f"token_attention={nearest(self.token_attention, TOKEN_ATTENTIONS)}")
        if self.token_dim < 2:
            raise UserError(f"token_dim={self.token_dim} is not at least 2")
        if not 0 <= self.token_dropout < 1:
            raise UserError(f"token_dropout={self.token_dropout} is not a rate in [0, 1)")
        super().check()

    def _check_patches(self) -> None:
        if self.patch_size not in (PATCH, (PATCH, PATCH)):
            raise UserError(f"patch_size={self.patch_size}: the strides of a T2T-ViT make it {PATCH}: leave it out")
        super()._check_patches()

    def _patch_embed(self) -> nn.Module:
        attention = {
            "width": self.token_dim,
            "dropout": self.token_dropout,
            "ln_eps": self.ln_eps,
            "gelu": self.gelu,
            "attention": self.attention,
            "dtype": self.dtype,
        }
        return TokensToToken(self.width, TOKEN_ATTENTIONS[self.token_attention], attention, self.dtype)


class TokensToToken(nn.Module):
    """Unfold, attend, unfold, attend, unfold, project: an image of h x w pixels to h/16 x w/16 tokens, row by row.

    Attributes:
        width: D, channels of a token.
        attention_class, attention: what attends between the unfoldings, and its keyword arguments.
        dtype: type to compute in.
    """

    width: int
    attention_class: type[TokenTransformer]
    attention: Mapping[str, Any]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b n d"]:
        windows = unfold(images, *UNFOLDINGS[0])
        for number, window in enumerate(UNFOLDINGS[1:], start=1):
            attention = self.attention_class(**self.attention, name=f"attention{number}")
            tokens = attention(_flat(windows), train)
            windows = unfold(tokens.reshape(*windows.shape[:3], -1), *window)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=normal_02, name="project")(_flat(windows))


def _flat(windows: Float[Array, "b rows columns f"]) -> Float[Array, "b rows*columns f"]:
    batch, _, _, features = windows.shape
    return windows.reshape(batch, -1, features)
