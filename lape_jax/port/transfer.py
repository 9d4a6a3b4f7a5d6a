"""Weights of one model for another: warm starts, such as LaPE from a checkpoint with the default joining."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from lape_jax.errors import UserError, nearest
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.port import files
from lape_jax.port.infer import sources
from lape_jax.port.params import copy, to_flat, unflatten
from lape_jax.port.resize import Grid, resize_bias_table, resize_table
from lape_jax.port.vit_adapter import OWN

TABLES, BIAS_TABLE = ("pos_embed", "pos_embedding"), "relative_position_bias_table"
# What the scales of PE norms start as where the source has none:
#   ones   1, as in training from scratch
#   norm1  that of the block's norm1, through which the PE reached attention in the source
PE_NORM_STARTS = ("ones", "norm1")
NORM1 = ("norm1", "LayerNorm_0")  # big_vision calls it by the latter
# Variables in which the two models may differ: those of the position, of how tokens are pooled, and of the classes.
FREE = re.compile(
    r"(.*/)?(pos_embed(ding|_\d+)?|pe_norm|relative_position_bias_table|peg_\d+"
    r"|cls|cls_token|dist_token|attention_pool|MAPHead_0|pre_logits|head|head_dist|decoder|conv_seg)(/.*)?"
)
# And in which a ViT-Adapter may differ from the classifier that it starts from, besides.
ADAPTED = re.compile(rf"{OWN.pattern}|norm/(scale|bias)|blocks/ls[12]/gamma")


class Transfer(NamedTuple):
    """What became of which path; together all paths of either model."""

    loaded: tuple[str, ...]  # bit for bit
    resized: tuple[str, ...]  # tables, to another grid, set of tokens or number of layers
    initialised: tuple[str, ...]  # what the source has not, or in another shape
    dropped: tuple[str, ...]  # what only the source has

    def lines(self) -> list[str]:
        """One line for each kind that there is, for people."""
        return [f"{kind}: {', '.join(paths)}" for kind, paths in self._asdict().items() if paths]


def warm_start(
    path: str | os.PathLike, model: nn.Module, variables: Mapping[str, Any], pe_norm: str = "ones"
) -> tuple[dict, Transfer]:
    """The `variables` of `model`, with what can be had from a file of weights: see `load` and `transfer`.

    The weights may be those of a model with another joining method, position embedding, image size, size of windows or
    number of classes, with or without distillation token; in all else they must be the model's, to the last name. For a
    Segmenter, a ViT-Adapter or a UperNet, they may also be those of the classifier that has its encoder.

    Raises:
        UserError: as `load` and `transfer`.
    """
    weights, place = files.read(path)
    try:
        source, found = files.fit_first(weights, sources(lambda probe: files.stored_shapes(weights, probe), model))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return transfer(found, source, variables, model, pe_norm)


def transfer(
    weights: Mapping[str, Any],
    source: nn.Module,
    variables: Mapping[str, Any],
    model: nn.Module,
    pe_norm: str = "ones",
) -> tuple[dict, Transfer]:
    """The `variables` of `model`, with all that can be had from the `weights` of the model `source`.

    A variable is taken over if both models have it in the same shape. Position tables and tables of relative biases
    are resized to the model's grid (bicubic; a Segmenter's table by its `pe_resize`); rows of a class or distillation
    token that both have go along, and a row that only the model has keeps its initial value. One table becomes those of
    all layers where the model has one per layer. (Not in a Swin, whose tables per layer are of several grids; they are
    taken over in the same shape only.)
    All else keeps its initial value, and may only be what `FREE` names.

    Args:
        weights: variables of `source`.
        variables: freshly initialised ones of `model`.
        pe_norm: what PE norms start as where the source has none, one of `PE_NORM_STARTS`.

    Raises:
        UserError: an unknown `pe_norm`, variables that are not those of their models, or models that differ in more
            than they may.
    """
    if pe_norm not in PE_NORM_STARTS:
        raise UserError(f"pe_norm={nearest(pe_norm, PE_NORM_STARTS)}")
    theirs, ours = to_flat(weights, source), to_flat(variables, model)
    loaded, resized, result = [], [], dict(ours)
    for path, initial in ours.items():
        if path not in theirs:
            continue
        found = theirs[path] if path not in TABLES else _table(theirs[path], source, initial, model)
        if (
            path.endswith(BIAS_TABLE)
            and found.shape[:-2] == initial.shape[:-2]
            and found.shape[-1] == initial.shape[-1]
        ):
            found = _bias_table(found, initial, source, model)
        if found.shape == initial.shape:
            result[path] = copy(found)
            same = found.shape == theirs[path].shape and np.array_equal(found, theirs[path])
            (loaded if same else resized).append(path)
    initialised = [path for path in ours if path not in loaded and path not in resized]
    dropped = [path for path in theirs if path not in loaded and path not in resized]
    free = [FREE, ADAPTED] if isinstance(model, ViTAdapter) and not isinstance(source, ViTAdapter) else [FREE]
    foreign = sorted({path for path in initialised + dropped if not any(kind.fullmatch(path) for kind in free)})
    if foreign:
        raise UserError(f"the weights are of another kind or size of model, which differs in {', '.join(foreign)}")
    if pe_norm == "norm1":
        _start_pe_norms(result, initialised)
    return unflatten(result), Transfer(*(tuple(sorted(p)) for p in (loaded, resized, initialised, dropped)))


def _table(found: np.ndarray, source: nn.Module, initial: np.ndarray, model: nn.Module) -> np.ndarray:
    """The source's position table with the rows that the model's `initial` one has; as it is if that cannot be."""
    layers = initial.shape[:-2]  # () or the number of layers
    if found.shape[-1] != initial.shape[-1] or found.shape[:-2] not in ((), layers, (1,) * len(layers)):
        return found
    theirs, ours = _extra_rows(source, found), _extra_rows(model, initial)
    method = getattr(model, "pe_resize", "bicubic")
    patches = resize_table(found[..., len(theirs) :, :], source.grid, model.grid, method=method)
    rows = [found[..., theirs.index(name), :] if name in theirs else initial[..., i, :] for i, name in enumerate(ours)]
    parts = [row[..., None, :] for row in rows] + [patches]
    return np.concatenate([np.broadcast_to(part, (*layers, *part.shape[-2:])) for part in parts], axis=-2)


def _extra_rows(model: nn.Module, table: np.ndarray) -> list[str]:
    """What the rows of a model's position table before the patches belong to."""
    return ["class", "distillation"][: table.shape[-2] - math.prod(model.grid)]


def _bias_table(found: np.ndarray, initial: np.ndarray, source: nn.Module, model: nn.Module) -> np.ndarray:
    """The source's table of relative biases, for the model's grid or window."""
    sides = [_bias_grid(table.shape[-2], owner.grid) for table, owner in ((found, source), (initial, model))]
    return resize_bias_table(found, *sides)


def _bias_grid(rows: int, grid: Grid) -> Grid:
    """The grid whose table of relative biases has so many rows: the model's, or else that of a square window."""
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) == rows:
        return grid
    side = (math.isqrt(rows) + 1) // 2
    return side, side


def _start_pe_norms(result: dict[str, np.ndarray], initialised: list[str]) -> None:
    """Sets the scales of new PE norms to those of norm1, or to their mean where a PE norm has a single number."""
    for path in initialised:
        if path.endswith("pe_norm/scale"):
            scale = next(result[norm1] for name in NORM1 if (norm1 := path.replace("pe_norm", name)) in result)
            vector = result[path].shape == scale.shape
            result[path] = copy(scale if vector else scale.mean(axis=-1))
