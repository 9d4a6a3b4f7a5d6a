"""Names of the ViT family in PyTorch: those of official LaPE, DeiT and timm.

`NAMES` is the whole story: which parameter is which entry, and how its axes move. Blocks are separate in PyTorch
(`blocks.0`, `blocks.1`, ...) and stacked on a leading layer axis here: {i} is the number of a layer, {next} one more.
Families that are made of the same parts have
tables of their own for the same functions.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lape_jax.errors import UserError
from lape_jax.nn import position
from lape_jax.port import rope
from lape_jax.port.entries import CONV, LINEAR, ROWS, SAME, Axes, Entry, torch_shape
from lape_jax.port.params import FLOATS

NAMES = {
    "cls_token": ("cls_token", SAME),
    "dist_token": ("dist_token", SAME),
    "reg_token": ("reg_token", SAME),  # timm's
    "pos_embed": ("pos_embed", ROWS),
    "patch_embed/proj/kernel": ("patch_embed.proj.weight", CONV),
    "patch_embed/proj/bias": ("patch_embed.proj.bias", SAME),
    # LayerNorm and the kinds of pe_norm that have a vector (D,) or a scalar () to multiply with
    "blocks/pe_norm/scale": ("blocks.{i}.pe_norm.weight", SAME),
    "blocks/pe_norm/bias": ("blocks.{i}.pe_norm.bias", SAME),
    "pe_norms/scale": ("blocks.{next}.pe_norm.weight", SAME),  # of joining methods without one in block 0
    "pe_norms/bias": ("blocks.{next}.pe_norm.bias", SAME),
    "blocks/norm1/scale": ("blocks.{i}.norm1.weight", SAME),
    "blocks/norm1/bias": ("blocks.{i}.norm1.bias", SAME),
    "blocks/attn/relative_position_bias_table": ("blocks.{i}.attn.relative_position_bias_table", SAME),
    # Rows of the PyTorch weight are [q; k; v], each head by head, and so are our columns: a transpose is all it takes.
    "blocks/attn/qkv/kernel": ("blocks.{i}.attn.qkv.weight", LINEAR),
    "blocks/attn/qkv/bias": ("blocks.{i}.attn.qkv.bias", SAME),
    "blocks/attn/proj/kernel": ("blocks.{i}.attn.proj.weight", LINEAR),
    "blocks/attn/proj/bias": ("blocks.{i}.attn.proj.bias", SAME),
    "blocks/ls1/gamma": ("blocks.{i}.gamma_1", SAME),
    "blocks/norm2/scale": ("blocks.{i}.norm2.weight", SAME),
    "blocks/norm2/bias": ("blocks.{i}.norm2.bias", SAME),
    "blocks/mlp/fc1/kernel": ("blocks.{i}.mlp.fc1.weight", LINEAR),
    "blocks/mlp/fc1/bias": ("blocks.{i}.mlp.fc1.bias", SAME),
    "blocks/mlp/fc2/kernel": ("blocks.{i}.mlp.fc2.weight", LINEAR),
    "blocks/mlp/fc2/bias": ("blocks.{i}.mlp.fc2.bias", SAME),
    "blocks/ls2/gamma": ("blocks.{i}.gamma_2", SAME),
    "norm/scale": ("norm.weight", SAME),
    "norm/bias": ("norm.bias", SAME),
    "pe_norm_last/scale": ("pe_norm_last.weight", SAME),  # of joining methods that have one behind the blocks
    "pe_norm_last/bias": ("pe_norm_last.bias", SAME),
    "head/kernel": ("head.weight", LINEAR),
    "head/bias": ("head.bias", SAME),
    "head_dist/kernel": ("head_dist.weight", LINEAR),
    "head_dist/bias": ("head_dist.bias", SAME),
}
# The generators of `pe="peg"` are named as in Meituan-AutoML/Twins; the i-th follows block i.
PEG = {"kernel": ("pos_block.{i}.proj.0.weight", CONV), "bias": ("pos_block.{i}.proj.0.bias", SAME)}
# Read, and never written: timm's, and DINOv2's.
TIMM = {"blocks/ls1/gamma": "blocks.{i}.ls1.gamma", "blocks/ls2/gamma": "blocks.{i}.ls2.gamma"}
TIMM |= {"reg_token": "register_tokens"}

# Entries that are no parameters here: compared when read, and written for PyTorch code that asks for them.
FROZEN_TABLE = "pos_embed"
INDEX = "blocks.{i}.attn.relative_position_index"
TABLE_TOLERANCE = 1e-5


def entries(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, tuple[str, Axes]] = NAMES, family: str = "ViT"
) -> list[Entry]:
    """All entries that the state dict has, without those of `constants`, for variables of these `shapes`."""
    found = []
    names = {**names, **_peg_names(shapes)}
    for path, shape in shapes.items():
        if path == rope.PATH:  # of all layers
            axes = rope.axes(shape[-2])
            found.append(Entry((rope.NAME,), torch_shape(shape, axes), path, None, axes))
            continue
        if path not in names:
            raise UserError(f"the parameter {path} of this model has no counterpart in PyTorch's {family}")
        name, axes = names[path]
        if path == "pos_embed" and len(shape) == 3:  # each layer has a table of its own
            name += "{i}"
        patterns = (name, TIMM[path]) if path in TIMM else (name,)
        stacked = "{i}" in name or "{next}" in name
        expected = torch_shape(shape[1:] if stacked else shape, axes)
        for layer in range(shape[0]) if stacked else (None,):
            numbers = {} if layer is None else {"i": layer, "next": layer + 1}
            found.append(Entry(tuple(p.format(**numbers) for p in patterns), expected, path, layer, axes))
    return found


def _peg_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, Axes]]:
    pegs = (path.split("/") for path in shapes if path.startswith("peg_"))
    return {"/".join(path): (PEG[path[-1]][0].format(i=path[0][4:]), PEG[path[-1]][1]) for path in pegs}


def constants(model: nn.Module, dtype: DTypeLike = np.float64) -> dict[str, np.ndarray]:
    """What PyTorch models keep in their state dict though nobody learns it: tables of type `dtype`, int64 indices."""
    found = fixed(model, dtype, FROZEN_TABLE, INDEX)
    if position.parse_pe(model.pe)[0] == position.SINCOS_1D:
        found[FROZEN_TABLE] = found[FROZEN_TABLE][0]  # without the leading axis that all others have
    return found | rope.places(model, dtype)


def fixed(model: nn.Module, dtype: DTypeLike, table: str, index: str) -> dict[str, np.ndarray]:
    """The frozen `table` (1, rows, D) of `model`, and the `index` of its relative bias in every block, by name."""
    absolute, relative = position.parse_pe(model.pe)
    found = {}
    if absolute not in (None, position.LEARNABLE):
        rows = model.num_prefix_tokens - model.no_embed_tokens
        found[table] = position.frozen(absolute, model.grid, model.width, rows)[None].astype(dtype)
    if relative:
        rows_of_pairs = position.relative_position_index(model.grid).astype(np.int64)
        found |= {index.format(i=layer): rows_of_pairs.copy() for layer in range(model.depth)}
    return found


def verify(name: str, array: np.ndarray, constant: np.ndarray) -> None:
    """Raises UserError unless `array`, with or without a leading axis of 1, is the model's `constant`.

    Indices must be equal. Tables may be off by `TABLE_TOLERANCE` (or by 2^-24 of the last position, if that is more:
    float32 code rounds the angle), and by the rounding of the type that they are stored in.
    """
    expected = constant.reshape(constant.shape[-2:])
    if array.shape not in (expected.shape, (1, *expected.shape)):
        raise UserError(f"{name} is {array.shape} and should be {constant.shape}")
    is_index = constant.dtype.kind == "i"
    if array.dtype.kind not in "iu" if is_index else array.dtype not in FLOATS:
        raise UserError(f"{name} is {array.dtype} and should be {'an integer' if is_index else 'floating point'}")
    tolerance = 0.0
    if not is_index:
        tolerance = max(TABLE_TOLERANCE, len(expected) * 2.0**-24) + float(jnp.finfo(array.dtype).eps)
    error = np.abs(array.astype(np.float64) - expected).max()
    if not error <= tolerance:  # so that NaN is refused
        raise UserError(f"{name} differs by up to {error:.2g} from the one that this model has fixed")
