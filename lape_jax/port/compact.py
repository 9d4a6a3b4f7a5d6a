"""Names of ViT-Lite, CVT and CCT in PyTorch: those of SHI-Labs/Compact-Transformers, and LaPE's for what it adds.

Axes, blocks and frozen tables are as in vit.py. Note the names of the LayerNorms of a block: what is `norm1` and
`norm2` here is `pre_norm` and `norm1` there.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.port import vit
from lape_jax.port.entries import CONV, LINEAR, ROWS, SAME, Entry

BLOCK = "classifier.blocks.{i}."
NAMES = {
    "patch_embed/proj/kernel": ("tokenizer.conv_layers.0.0.weight", CONV),
    "patch_embed/proj/bias": ("tokenizer.conv_layers.0.0.bias", SAME),
    "cls_token": ("classifier.class_emb", SAME),
    "pos_embed": ("classifier.positional_emb", ROWS),
    "attention_pool/kernel": ("classifier.attention_pool.weight", LINEAR),
    "attention_pool/bias": ("classifier.attention_pool.bias", SAME),
    "blocks/pe_norm/scale": (BLOCK + "pe_norm.weight", SAME),
    "blocks/pe_norm/bias": (BLOCK + "pe_norm.bias", SAME),
    "pe_norms/scale": ("classifier.blocks.{next}.pe_norm.weight", SAME),
    "pe_norms/bias": ("classifier.blocks.{next}.pe_norm.bias", SAME),
    "blocks/norm1/scale": (BLOCK + "pre_norm.weight", SAME),
    "blocks/norm1/bias": (BLOCK + "pre_norm.bias", SAME),
    "blocks/attn/relative_position_bias_table": (BLOCK + "self_attn.relative_position_bias_table", SAME),
    "blocks/attn/qkv/kernel": (BLOCK + "self_attn.qkv.weight", LINEAR),
    "blocks/attn/proj/kernel": (BLOCK + "self_attn.proj.weight", LINEAR),
    "blocks/attn/proj/bias": (BLOCK + "self_attn.proj.bias", SAME),
    "blocks/norm2/scale": (BLOCK + "norm1.weight", SAME),
    "blocks/norm2/bias": (BLOCK + "norm1.bias", SAME),
    "blocks/mlp/fc1/kernel": (BLOCK + "linear1.weight", LINEAR),
    "blocks/mlp/fc1/bias": (BLOCK + "linear1.bias", SAME),
    "blocks/mlp/fc2/kernel": (BLOCK + "linear2.weight", LINEAR),
    "blocks/mlp/fc2/bias": (BLOCK + "linear2.bias", SAME),
    "norm/scale": ("classifier.norm.weight", SAME),
    "norm/bias": ("classifier.norm.bias", SAME),
    "pe_norm_last/scale": ("classifier.pe_norm_last.weight", SAME),
    "pe_norm_last/bias": ("classifier.pe_norm_last.bias", SAME),
    "head/kernel": ("classifier.fc.weight", LINEAR),
    "head/bias": ("classifier.fc.bias", SAME),
}
TABLE = "classifier.positional_emb"  # if frozen
INDEX = BLOCK + "self_attn.relative_position_index"
verify = vit.verify


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    layers = sum(path.startswith("patch_embed/conv") for path in shapes)
    convolutions = {
        f"patch_embed/conv{layer}/kernel": (f"tokenizer.conv_layers.{layer}.0.weight", CONV) for layer in range(layers)
    }
    return vit.entries(shapes, NAMES | convolutions, "Compact Transformers")


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """The frozen sinusoid, and the indices of a relative position bias: see vit.py."""
    return vit.fixed(model, dtype, TABLE, INDEX)
