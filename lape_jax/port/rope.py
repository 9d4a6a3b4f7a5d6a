"""What rotary position embeddings add to the state dict of a ViT: names of naver-ai/rope-vit, and those of timm.

    here                             naver-ai/rope-vit                   timm
    blocks/attn/freqs                freqs                               rope.freqs
    (layers, 2, heads, hd/2)         (2, layers, heads * hd/2)           (2, layers, heads, hd/2)
    -                                freqs_t_x, freqs_t_y                -

The latter two of "rope_mixed" are places of patches: dropped when read, and written for code that asks for them. All
that a table is learned for beside RoPE are patches there: it has no row for the class token, see `with_class_row`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike

from lape_jax.models.vit import ViT
from lape_jax.nn import position
from lape_jax.port.entries import Axes

PATH, NAME, PLACES = "blocks/attn/freqs", "freqs", ("freqs_t_x", "freqs_t_y")
TABLE, CLS = "pos_embed", "cls_token"
TIMM, BUFFER = re.compile(r"(.*\.)?rope\.freqs"), re.compile(r"(.*\.)?freqs_t_[xy]")


def axes(heads: int) -> Axes:
    """(2, layers, heads * hd/2) <-> (layers, 2, heads, hd/2)"""
    return Axes(
        lambda x: x.reshape(*x.shape[:2], math.gcd(heads, x.shape[2]), -1).swapaxes(0, 1),
        lambda x: x.swapaxes(0, 1).reshape(2, x.shape[0], -1),
    )


def places(model: nn.Module, dtype: DTypeLike) -> dict[str, np.ndarray]:
    """Column and row of each patch, as a state dict has them beside learned frequencies."""
    if position.parse_rope(model.pe) != position.ROPE_MIXED:
        return {}
    rows, columns = (axis.reshape(-1).astype(dtype) for axis in np.indices(model.grid))
    return dict(zip(PLACES, (columns, rows), strict=True))


def official(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` by the names of naver-ai/rope-vit, where they are timm's, without places."""
    found = {}
    for name, array in arrays.items():
        if TIMM.fullmatch(name) and len(array.shape) == 4:
            found[f"{name.removesuffix('rope.freqs')}{NAME}"] = array.reshape(*array.shape[:2], -1)
        elif not BUFFER.fullmatch(name):
            found[name] = array
    return found


def with_class_row(arrays: Mapping[str, Any], model: nn.Module, any_joining: bool = False) -> Mapping[str, Any]:
    """`arrays` whose table, if it is one of patches alone, has rows of zeros for a ViT's tokens before the patches.

    To add nothing is what they do there. A joining that would normalise the row has no such table; with `any_joining`
    it is as if the model had another one.
    """
    table = arrays.get(TABLE)
    if not _lacks_row(model) or len(getattr(table, "shape", ())) != 3:
        return arrays
    if model.method.normalises_pe and not any_joining:
        return arrays
    rows, own = table.shape[1], math.prod(model.grid)
    if rows != own and (rows == own + _rows(model) or math.isqrt(rows) ** 2 != rows):
        return arrays
    return {**arrays, TABLE: np.pad(np.asarray(table), ((0, 0), (_rows(model), 0), (0, 0)))}


def without_class_row(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, np.ndarray]:
    """The inverse: what the table adds to the class token is added to it once and for all."""
    found = dict(state_dict)
    if _lacks_row(model) and model.method.stem_only and TABLE in found:
        table = found[TABLE]
        for index, name in enumerate((CLS, "dist_token")[: _rows(model)]):
            found[name] = found[name] + table[:, index : index + 1]
        found[TABLE] = np.array(table[:, _rows(model) :])
    return found


def to_timm(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, np.ndarray]:
    """A state dict in the names of naver-ai/rope-vit in those of timm."""
    found = {name: array for name, array in state_dict.items() if not BUFFER.fullmatch(name)}
    if NAME in found:
        array = found.pop(NAME)
        found[f"rope.{NAME}"] = array.reshape(*array.shape[:2], model.heads, -1)
    return found


def _lacks_row(model: nn.Module) -> bool:
    """Whether the other code's tables have fewer rows than those of such a model."""
    if type(model) is not ViT or not _rows(model):
        return False
    learned = position.parse_pe(model.pe)[0] == position.LEARNABLE
    return learned and position.parse_rope(model.pe) in (position.ROPE_AXIAL, position.ROPE_MIXED)


def _rows(model: nn.Module) -> int:
    """Rows of its table before those of the patches."""
    return model.num_prefix_tokens - model.no_embed_tokens
