"""Names of RegNet in PyTorch: those of timm, in which DeiT's teacher `regnety_160-a5fe301d.pth` is published too.

Modules have the same names there and here (`s1.b1.conv1` is `s1/b1/conv1`); `NAMES` says what the last two parts of a
variable's path are.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.errors import UserError
from lape_jax.port.entries import CONV, LINEAR, SAME, Entry, torch_shape
from lape_jax.port.params import shapes as variable_shapes

NAMES = {
    "conv/kernel": ("conv.weight", CONV),
    "bn/scale": ("bn.weight", SAME),
    "bn/bias": ("bn.bias", SAME),
    "bn/mean": ("bn.running_mean", SAME),
    "bn/var": ("bn.running_var", SAME),
    "fc1/kernel": ("fc1.weight", CONV),
    "fc1/bias": ("fc1.bias", SAME),
    "fc2/kernel": ("fc2.weight", CONV),
    "fc2/bias": ("fc2.bias", SAME),
    "head/kernel": ("head.fc.weight", LINEAR),
    "head/bias": ("head.fc.bias", SAME),
}
COUNTER = "num_batches_tracked"  # of each BatchNorm, for training it


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    found = []
    for path, shape in shapes.items():
        *modules, layer, leaf = path.removeprefix("batch_stats/").split("/")
        name, axes = NAMES[f"{layer}/{leaf}"]
        found.append(Entry((".".join([*modules, name]),), torch_shape(shape, axes), path, None, axes))
    return found


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What PyTorch keeps in the state dict beside the variables: each BatchNorm's counter of training steps, at 0."""
    del dtype  # of what is not an integer
    found = [path.removeprefix("batch_stats/") for path in variable_shapes(model)]
    norms = [path.removesuffix("/mean") for path in found if path.endswith("bn/mean")]
    return {f"{norm.replace('/', '.')}.{COUNTER}": np.zeros((), np.int64) for norm in norms}


def verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array` is a counter, whatever it has counted to."""
    if array.shape != constant.shape or array.dtype.kind not in "iu":
        raise UserError(f"{name} is {array.dtype} {array.shape} and should be one integer")
