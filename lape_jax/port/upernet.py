"""Names of UperNet with a ViT-Adapter in PyTorch: those of czczup/ViT-Adapter, `segmentation/`, and MMSegmentation.

The ViT-Adapter's begin with `backbone.`; those of the heads, which are made as its own are (vit_adapter.py), do not.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.port import vit_adapter
from lape_jax.port.entries import Entry
from lape_jax.port.vit_adapter import verify

__all__ = ["constants", "entries", "verify"]

BACKBONE, HEADS = "backbone.", ("decode_head.", "auxiliary_head.")


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    return [entry._replace(names=tuple(map(_full, entry.names))) for entry in vit_adapter.entries(shapes)]


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What is in the state dict beside the variables, see vit_adapter.py."""
    return {_full(name): array for name, array in vit_adapter.constants(model, dtype).items()}


def _full(name: str) -> str:
    return name if name.startswith(HEADS) else BACKBONE + name
