"""Names of CeiT in PyTorch: those of coeusguo/ceit, `ceit_model.py`, and LaPE's for what it adds.

Axes, blocks and frozen tables are as in vit.py. Mean and variance of BatchNorms are variables of the collection
"batch_stats"; their counters of training steps are dropped when read, and written as 0.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.port import regnet, vit
from lape_jax.port.entries import CONV, ROWS, SAME, Axes, Entry

POINTWISE = Axes(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # (out, in, 1, 1) <-> (in, out)
LEFF = "blocks.{i}.leff."
NAMES = {
    **{path: vit.NAMES[path] for path in vit.NAMES if not path.startswith(("patch_embed/", "blocks/mlp/"))},
    "patch_embed/conv/kernel": ("i2t.backbone.conv.weight", CONV),
    "patch_embed/proj/kernel": ("i2t.proj.weight", CONV),
    "patch_embed/proj/bias": ("i2t.proj.bias", SAME),
    "blocks/mlp/fc1/kernel": (LEFF + "conv1.weight", POINTWISE),
    "blocks/mlp/fc1/bias": (LEFF + "conv1.bias", SAME),
    "blocks/mlp/conv/kernel": (LEFF + "conv2.weight", CONV),
    "blocks/mlp/conv/bias": (LEFF + "conv2.bias", SAME),
    "blocks/mlp/fc2/kernel": (LEFF + "conv3.weight", POINTWISE),
    "blocks/mlp/fc2/bias": (LEFF + "conv3.bias", SAME),
    "pos_layer_embed": ("pos_layer_embed", ROWS),
}
# The BatchNorms by path, and the leaves of each.
NORMS = {"patch_embed/bn": "i2t.backbone.bn", **{f"blocks/mlp/bn{n}": f"{LEFF}bn{n}" for n in (1, 2, 3)}}
LEARNED, STATISTICS = {"scale": "weight", "bias": "bias"}, {"mean": "running_mean", "var": "running_var"}
NAMES |= {
    f"{collection}{path}/{ours}": (f"{name}.{theirs}", SAME)
    for collection, leaves in (("", LEARNED), ("batch_stats/", STATISTICS))
    for path, name in NORMS.items()
    for ours, theirs in leaves.items()
}
# The block over the class tokens of all layers, whose MLP is an MLP.
NAMES |= {
    path.replace("blocks", "lca"): (name.replace("blocks.{i}", "lca").replace("mlp", "feedforward"), axes)
    for path, (name, axes) in vit.NAMES.items()
    if path.startswith("blocks/")
}


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    return vit.entries(shapes, NAMES, "CeiT")


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What is in the state dict beside the variables: see vit.py, and each BatchNorm's counter of training steps."""
    counters = [f"{name}.{regnet.COUNTER}" for name in NORMS.values()]
    names = {name.format(i=layer) for name in counters for layer in range(model.depth)}
    return vit.constants(model, dtype) | {name: np.zeros((), np.int64) for name in names}


def verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array` is the model's `constant`, or any integer in place of a counter."""
    (regnet if name.endswith(regnet.COUNTER) else vit).verify(name, array, constant)
