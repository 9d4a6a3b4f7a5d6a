"""Names of ViT-Adapter in PyTorch: those of czczup/ViT-Adapter, `mmdet_custom/models/backbones/`.

Blocks, position tables and what LaPE adds have the names of a ViT (vit.py), but for the layer scales. All other names
are made of ours. Mean and variance of BatchNorms are variables of the collection "batch_stats"; their counters of
training steps are dropped when read, and written as 0.
"""

import re
from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.port import regnet, vit
from lape_jax.port.ceit import POINTWISE
from lape_jax.port.entries import CONV, LINEAR, SAME, Axes, Entry
from lape_jax.port.params import shapes as shapes_of

DOUBLING = Axes(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))  # IOHW <-> HWIO
SCALES = {f"blocks/ls{n}/gamma": (f"blocks.{{i}}.gamma{n}", SAME) for n in (1, 2)}
OWN = re.compile(r"(batch_stats/)?(level_embed|spm|interactions_\d+|up|norm\d|decode_head|auxiliary_head)(/.*)?")
STATISTICS = "batch_stats/"
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Parts of our paths, one after the other, and what they are there. Containers of PyTorch count all that is in them.
RENAMED = (
    (r"spm/stem_(\d)/conv", lambda found: f"spm/stem/{3 * int(found[1])}"),
    (r"spm/stem_(\d)/bn", lambda found: f"spm/stem/{3 * int(found[1]) + 1}"),
    (r"spm/(conv\d)/conv", r"spm/\1/0"),
    (r"spm/(conv\d)/bn", r"spm/\1/1"),
    (r"dwconv", "dwconv/dwconv"),
    (r"(interactions|extra_extractors|lateral_convs|fpn_convs|convs)_(\d+)", r"\1/\2"),
    (r"psp_modules_(\d+)", r"psp_modules/\1/1"),
)


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    own = {path: (name(path), _axes(path, shape)) for path, shape in shapes.items() if OWN.fullmatch(path)}
    return vit.entries(shapes, {**vit.NAMES, **SCALES, **own}, "ViT-Adapter")


def name(path: str) -> str:
    """The entry of a variable beside the blocks, the patch embedding and the position table."""
    *parts, leaf = path.removeprefix(STATISTICS).split("/")
    module = "/".join(parts)
    for pattern, theirs in RENAMED:
        module = re.sub(rf"(?<![^/]){pattern}(?![^/])", theirs, module)
    return ".".join([*filter(None, module.split("/")), LEAVES.get(leaf, leaf)])


def _axes(path: str, shape: tuple[int, ...]) -> Axes:
    *_, module, leaf = ("", *path.split("/"))
    if leaf != "kernel":
        return SAME
    if module == "up":
        return DOUBLING
    if module == "conv_seg" or re.fullmatch(r"spm/fc\d/kernel", path):
        return POINTWISE
    return CONV if len(shape) == 4 else LINEAR


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What is in the state dict beside the variables: see vit.py, and each BatchNorm's counter of training steps."""
    means = [path for path in shapes_of(model) if path.startswith(STATISTICS) and path.endswith("/mean")]
    counters = [name(path).removesuffix("running_mean") + regnet.COUNTER for path in means]
    return vit.constants(model, dtype) | {counter: np.zeros((), np.int64) for counter in counters}


def verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array` is the model's `constant`, or any integer in place of a counter."""
    (regnet if name.endswith(regnet.COUNTER) else vit).verify(name, array, constant)
