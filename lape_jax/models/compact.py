"""Compact Transformers (Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers"): ViT-Lite."""

from typing import ClassVar

import flax.linen as nn

from lape_jax.models.vit import ViT


class ViTLite(ViT):
    """A ViT for small images, which differs from DeiT's in the following.

    - Block: y = x + DropPath(Attention(join(norm1(x), pe))); z = norm2(y); x <- z + DropPath(Mlp(z)): the second
      LayerNorm lies on the residual stream. (The reference calls the two `pre_norm` and `norm1`.)
    - The qkv projection has no bias; LayerNorm's eps is 1e-5.
    - In training the attention weights drop out with probability 0.1, and stochastic depth rises to 0.1: what the
      reference's constructors set, whatever its command line says.
    - Initial values: position table N(0, 0.2^2), class token 0, patch kernel N(0, 2 / fan-in).

    Calling it, and the attributes, are those of `lape_jax.models.vit.ViT`. Source: SHI-Labs/Compact-Transformers,
    `src/utils/transformers.py` and `src/vit.py`.
    """

    image_size: int | tuple[int, int] = 32
    patch_size: int | tuple[int, int] = 4
    width: int = 256
    depth: int = 7
    heads: int = 4
    mlp_ratio: float = 2.0
    attn_dropout: float = 0.1
    drop_path: float = 0.1
    ln_eps: float = 1e-5

    inits: ClassVar = {
        "patch": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
        "token": nn.initializers.zeros,
        "table": nn.initializers.normal(0.2),
    }
    block_options: ClassVar = {"qkv_bias": False, "norm2_on_residual": True}
