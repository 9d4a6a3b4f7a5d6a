"""Names of Mask R-CNN with a ViT-Adapter in PyTorch: those of czczup/ViT-Adapter, `detection/`, and MMDetection.

The ViT-Adapter's begin with `backbone.` (vit_adapter.py); `HEADS` has the others.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.nn.detection.heads import BOX_BINS
from lape_jax.port import vit, vit_adapter
from lape_jax.port.ceit import POINTWISE
from lape_jax.port.entries import CONV, LINEAR, SAME, Axes, Entry
from lape_jax.port.vit_adapter import DOUBLING, verify

__all__ = ["constants", "entries", "verify"]

BINS = (BOX_BINS, BOX_BINS)
# Columns are those of a region's features: channel by channel there, bin by bin here.
REGION = Axes(
    lambda x: x.reshape(len(x), -1, *BINS).transpose(2, 3, 1, 0).reshape(-1, len(x)),
    lambda x: x.reshape(*BINS, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
)
BACKBONE = "backbone."
# Our module, PyTorch's, and how the axes of its kernel move.
MODULES = (
    *((f"neck/lateral_convs_{i}", f"neck.lateral_convs.{i}.conv", POINTWISE) for i in range(4)),
    *((f"neck/fpn_convs_{i}", f"neck.fpn_convs.{i}.conv", CONV) for i in range(4)),
    ("rpn_head/rpn_conv", "rpn_head.rpn_conv", CONV),
    ("rpn_head/rpn_cls", "rpn_head.rpn_cls", POINTWISE),
    ("rpn_head/rpn_reg", "rpn_head.rpn_reg", POINTWISE),
    ("roi_head/bbox_head/shared_fcs_0", "roi_head.bbox_head.shared_fcs.0", REGION),
    ("roi_head/bbox_head/shared_fcs_1", "roi_head.bbox_head.shared_fcs.1", LINEAR),
    ("roi_head/bbox_head/fc_cls", "roi_head.bbox_head.fc_cls", LINEAR),
    ("roi_head/bbox_head/fc_reg", "roi_head.bbox_head.fc_reg", LINEAR),
    *((f"roi_head/mask_head/convs_{i}", f"roi_head.mask_head.convs.{i}.conv", CONV) for i in range(4)),
    ("roi_head/mask_head/upsample", "roi_head.mask_head.upsample", DOUBLING),
    ("roi_head/mask_head/conv_logits", "roi_head.mask_head.conv_logits", POINTWISE),
)
HEADS = {f"{ours}/kernel": (f"{theirs}.weight", axes) for ours, theirs, axes in MODULES}
HEADS |= {f"{ours}/bias": (f"{theirs}.bias", SAME) for ours, theirs, _ in MODULES}


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    heads = {path: shape for path, shape in shapes.items() if path in HEADS}
    backbone = {path: shape for path, shape in shapes.items() if path not in HEADS}
    found = vit_adapter.entries(backbone)
    found = [entry._replace(names=tuple(BACKBONE + name for name in entry.names)) for entry in found]
    return found + vit.entries(heads, HEADS, "Mask R-CNN")


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What is in the state dict beside the variables, see vit_adapter.py."""
    return {BACKBONE + name: array for name, array in vit_adapter.constants(model, dtype).items()}
