"""Names, shapes and initial spreads of the tensors of Mask R-CNN on ViT-Adapter, and random values: numpy only.

Names, shapes and order are those of the state dict of czczup/ViT-Adapter's detector (MMDetection 2.22).
"""

import dataclasses
import math
import re

import numpy as np

from tests.reference import vit_adapter_states
from tests.reference.vit_adapter_states import Shapes, random_state, vit_adapter_shapes

RATIOS = 3  # anchors of a cell
BOX_SIDE, MASK_SIDE = 7, 14  # of the RoI features of the two heads


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes depend on; the defaults are COCO's Mask R-CNN on ViT-Adapter-Ti."""

    backbone: vit_adapter_states.Sizes = dataclasses.field(default_factory=vit_adapter_states.Sizes)
    channels: int = 256  # of the pyramid, the RPN and the mask head
    hidden: int = 1024  # of the box head's two layers
    classes: int = 80


def tiny(join: str = "default", depth: int = 4) -> Sizes:
    """`depth` blocks; `random_values` gives its deformable attentions two heads."""
    backbone = dataclasses.replace(vit_adapter_states.tiny(join), depth=depth, table_grid=(4, 4))
    return Sizes(backbone=backbone, channels=8, hidden=12, classes=5)


def mask_rcnn_shapes(sizes: Sizes) -> Shapes:
    """The whole detector's tensors, batch statistics of the back-bone included."""
    channels, hidden = sizes.channels, sizes.hidden
    found = {f"backbone.{name}": shape for name, shape in vit_adapter_shapes(sizes.backbone).items()}
    for level in range(4):
        found |= _layer(f"neck.lateral_convs.{level}.conv", channels, sizes.backbone.width, 1, 1)
    for level in range(4):
        found |= _layer(f"neck.fpn_convs.{level}.conv", channels, channels, 3, 3)
    found |= _layer("rpn_head.rpn_conv", channels, channels, 3, 3)
    found |= _layer("rpn_head.rpn_cls", RATIOS, channels, 1, 1)
    found |= _layer("rpn_head.rpn_reg", 4 * RATIOS, channels, 1, 1)
    found |= _layer("roi_head.bbox_head.fc_cls", sizes.classes + 1, hidden)
    found |= _layer("roi_head.bbox_head.fc_reg", 4 * sizes.classes, hidden)
    found |= _layer("roi_head.bbox_head.shared_fcs.0", hidden, channels * BOX_SIDE**2)
    found |= _layer("roi_head.bbox_head.shared_fcs.1", hidden, hidden)
    for conv in range(4):
        found |= _layer(f"roi_head.mask_head.convs.{conv}.conv", channels, channels, 3, 3)
    found |= _layer("roi_head.mask_head.upsample", channels, channels, 2, 2)
    return found | _layer("roi_head.mask_head.conv_logits", sizes.classes, channels, 1, 1)


def _layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


# ---- How the heads start: (distribution, its standard deviation) of a weight; all biases are zero.

_FIXED = {"rpn_head.": 0.01, "roi_head.bbox_head.fc_cls.": 0.01, "roi_head.bbox_head.fc_reg.": 0.001}


def initial(name: str, shape: tuple[int, ...]) -> tuple[str, float]:
    """Of a weight outside of the back-bone. Xavier: uniform, of variance 2 / (fan_in + fan_out), with the kernel."""
    if name.startswith("neck.") or ".shared_fcs." in name:
        return "uniform", math.sqrt(2 / (math.prod(shape[1:]) + shape[0] * math.prod(shape[2:])))
    for prefix, deviation in _FIXED.items():
        if name.startswith(prefix):
            return "normal", deviation
    assert name.startswith("roi_head.mask_head."), name
    return "normal", math.sqrt(2 / (math.prod(shape[2:]) * (shape[1] if ".upsample." in name else shape[0])))


# ---- Random values

GAINS = {r"rpn_head\.rpn_conv\.weight": 0.3, r"rpn_head\.rpn_reg\.weight": 0.2, r".*\.shared_fcs\.0\.weight": 0.3}
GAINS |= {r".*\.conv_logits\.weight": 8.0}


def random_values(sizes: Sizes, grid: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """`random_state` for images of `grid` patches, with gains that keep scores and boxes apart."""
    state = random_state(mask_rcnn_shapes(sizes), grid, seed, sizes.backbone.deform_heads)
    for pattern, gain in GAINS.items():
        for name in [name for name in state if re.fullmatch(pattern, name)]:
            state[name] *= gain
    # Where all channels of a layer are dead, scores are equal; these are not.
    state["rpn_head.rpn_conv.bias"] += 1
    for layer in (0, 1):
        state[f"roi_head.bbox_head.shared_fcs.{layer}.bias"] += 0.5
    # Of what all have, some class would have most: these are nearly even.
    weight = state["roi_head.bbox_head.fc_cls.weight"]
    weight -= weight.mean(axis=1, keepdims=True)
    state["roi_head.bbox_head.fc_cls.bias"][[1, 4]] -= 0.4, 2.2
    return state
