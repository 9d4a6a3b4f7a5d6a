"""Names of T2T-ViT in PyTorch: those of yitu-opensource/T2T-ViT, and LaPE's for what it adds.

Axes, blocks and frozen tables are as in vit.py. The random features of the Performers, `tokens_to_token.attention1.w`
and `attention2.w`, are variables of the collection "constants".
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.port import vit
from lape_jax.port.entries import LINEAR, SAME, Axes, Entry

# The parts of `tokens_to_token.attention{n}` in both kinds, and those whose names differ.
NORMS = {
    f"{norm}/{ours}": (f"{norm}.{theirs}", SAME)
    for norm in ("norm1", "norm2")
    for ours, theirs in (("scale", "weight"), ("bias", "bias"))
}
PERFORMER = {
    "w": ("w", SAME),
    "kqv/kernel": ("kqv.weight", LINEAR),  # rows [k; q; v]
    "kqv/bias": ("kqv.bias", SAME),
    "proj/kernel": ("proj.weight", LINEAR),
    "proj/bias": ("proj.bias", SAME),
    "mlp/fc1/kernel": ("mlp.0.weight", LINEAR),
    "mlp/fc1/bias": ("mlp.0.bias", SAME),
    "mlp/fc2/kernel": ("mlp.2.weight", LINEAR),
    "mlp/fc2/bias": ("mlp.2.bias", SAME),
}
TRANSFORMER = {
    "qkv/kernel": ("attn.qkv.weight", LINEAR),  # rows [q; k; v]
    "proj/kernel": ("attn.proj.weight", LINEAR),
    "proj/bias": ("attn.proj.bias", SAME),
    "mlp/fc1/kernel": ("mlp.fc1.weight", LINEAR),
    "mlp/fc1/bias": ("mlp.fc1.bias", SAME),
    "mlp/fc2/kernel": ("mlp.fc2.weight", LINEAR),
    "mlp/fc2/bias": ("mlp.fc2.bias", SAME),
}
verify = vit.verify


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    parts = PERFORMER if any("kqv" in path for path in shapes) else TRANSFORMER
    return vit.entries(shapes, _names(NORMS | parts), "T2T-ViT")


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """The frozen sinusoid, and the indices of a relative position bias: see vit.py."""
    return vit.fixed(model, dtype, vit.FROZEN_TABLE, vit.INDEX)


def _names(parts: Mapping[str, tuple[str, Axes]]) -> dict[str, tuple[str, Axes]]:
    names = {path: entry for path, entry in vit.NAMES.items() if not path.startswith("patch_embed")}
    for number in (1, 2):
        for path, (name, axes) in parts.items():
            collection = "constants/" if path == "w" else ""
            ours = f"{collection}patch_embed/attention{number}/{path}"
            names[ours] = (f"tokens_to_token.attention{number}.{name}", axes)
    names["patch_embed/project/kernel"] = ("tokens_to_token.project.weight", LINEAR)
    names["patch_embed/project/bias"] = ("tokens_to_token.project.bias", SAME)
    return names
