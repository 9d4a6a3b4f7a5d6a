"""Names of Swin in PyTorch: those of microsoft/Swin-Transformer, and LaPE's for what it adds; timm's can be read, too.

What is in a block is named as in vit.py, under `layers.{stage}`. Official files also hold `relative_position_index`,
and `attn_mask` in blocks with shifted windows.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.port import vit
from lape_jax.port.entries import LINEAR, ROWS, SAME, Axes, Entry
from lape_jax.port.params import FLOATS

TABLE = "absolute_pos_embed"
NAMES = {
    "pos_embed": (TABLE, ROWS),
    "patch_embed/norm/scale": ("patch_embed.norm.weight", SAME),
    "patch_embed/norm/bias": ("patch_embed.norm.bias", SAME),
    **{path: vit.NAMES[path] for path in ("patch_embed/proj/kernel", "patch_embed/proj/bias")},
    **{path: vit.NAMES[path] for path in ("norm/scale", "norm/bias", "pe_norm_last/scale", "pe_norm_last/bias")},
    "head/kernel": ("head.weight", LINEAR),
    "head/bias": ("head.bias", SAME),
}
MERGING = {
    "norm/scale": ("norm.weight", SAME),
    "norm/bias": ("norm.bias", SAME),
    "reduction/kernel": ("reduction.weight", LINEAR),
}
TIMM = {"head/kernel": ("head.fc.weight",), "head/bias": ("head.fc.bias",)}  # read, never written
INDEX, MASK = "layers.{s}.blocks.{i}.attn.relative_position_index", "layers.{s}.blocks.{i}.attn_mask"
_STAGE = re.compile(r"(layers\.)(\d{1,6})\.(blocks|downsample)(\..*)")


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    found = vit.entries(shapes, _names(shapes), "Swin")
    return [entry._replace(names=entry.names + TIMM.get(entry.path, ())) for entry in found]


def _names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, Axes]]:
    names = dict(NAMES)
    for stage in {path.split("/")[0].removeprefix("layers_") for path in shapes if path.startswith("layers_")}:
        for path, (name, axes) in vit.NAMES.items():
            if path.startswith("blocks/"):
                names[f"layers_{stage}/{path}"] = (f"layers.{stage}.{name}", axes)
        for path, (name, axes) in MERGING.items():
            names[f"downsample_{stage}/{path}"] = (f"layers.{stage}.downsample.{name}", axes)
        names[f"pos_embed_{stage}"] = (f"layers.{stage}.{TABLE}{{i}}", ROWS)  # a table for each block
    return names


def official(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` by official names of the merging between stages, which timm (0.9 and later) has in the later stage."""
    parts = {name: match.groups() for name in arrays if (match := _STAGE.fullmatch(name))}
    stages = {kind: {int(n) for _, n, k, _ in parts.values() if k == kind} for kind in ("blocks", "downsample")}
    if not stages["downsample"] or max(stages["downsample"]) != max(stages["blocks"], default=-1):
        return dict(arrays)

    def renamed(name):
        start, stage, kind, rest = parts.get(name, ("", "", "", ""))
        return f"{start}{int(stage) - 1}.{kind}{rest}" if kind == "downsample" else name

    return {renamed(name): array for name, array in arrays.items()}


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What official models keep in their state dict though nobody learns it: tables and masks, and int64 indices."""
    absolute, relative = position.parse_pe(model.pe)
    found = {}
    if absolute not in (None, position.LEARNABLE):
        found[TABLE] = position.frozen(absolute, model.grid, model.width)[None].astype(dtype)
    for stage, (windows, depth) in enumerate(zip(model.windows, model.depths, strict=True)):
        index = position.relative_position_index((windows.size, windows.size)).astype(np.int64)
        for block in range(depth):
            if relative:
                found[INDEX.format(s=stage, i=block)] = index.copy()
            if block % 2 and windows.shift:
                found[MASK.format(s=stage, i=block)] = windows.mask().astype(dtype)
    return found


def verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array` is the model's `constant`: see vit.py; masks must be equal."""
    if not name.endswith("attn_mask"):
        return vit.verify(name, array, constant)
    if array.shape != constant.shape or array.dtype not in FLOATS:
        raise UserError(f"{name} is {array.dtype} {array.shape} and should be floating point {constant.shape}")
    if not np.array_equal(array.astype(np.float64), constant):
        raise UserError(f"{name} masks other pairs of tokens than this model does, or by another number than -100")
