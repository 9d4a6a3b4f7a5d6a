"""Weights of one model for another: warm starts, such as LaPE from a checkpoint with the default joining."""

import math
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from lape_jax.errors import UserError, nearest
from lape_jax.models.segmenter import Segmenter
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.port import files, hub, huggingface
from lape_jax.port.backbone import ON_TOP, alone
from lape_jax.port.big_vision import canonical
from lape_jax.port.checkpoint import Part, choose, parts, pattern
from lape_jax.port.infer import STEMS, cuts_patches, sources
from lape_jax.port.params import copy, first_few, flatten, shapes, to_flat, unflatten
from lape_jax.port.resize import Grid, recolour_kernel, resize_bias_table, resize_kernel, resize_table
from lape_jax.port.segmenter import ENCODER
from lape_jax.port.vit_adapter import OWN

TABLES, BIAS_TABLE = ("pos_embed", "pos_embedding"), "relative_position_bias_table"
# What the scales of PE norms start as where the source has none:
#   ones   1, as in training from scratch
#   norm1  that of the block's norm1, through which the PE reached attention in the source; of a last one, that of the
#          final norm
PE_NORM_STARTS = ("ones", "norm1")
NORM1 = ("norm1", "LayerNorm_0")  # big_vision calls it by the latter
LAST_NORM = ("norm/scale", "Transformer/encoder_norm/scale")  # likewise
# Variables in which the two models may differ: those of the position, of how tokens are pooled, and of the classes.
# (The model may have registers where the source has none, and not the reverse.)
FREE = re.compile(
    r"(.*/)?(pos_embed(ding|_\d+)?|pe_norms?|pe_norm_last|relative_position_bias_table|freqs|peg_\d+"
    r"|cls|cls_token|dist_token|reg_token|attention_pool|MAPHead_0|pre_logits|head|head_dist|decoder|conv_seg"
    r"|fc_cls|fc_reg|conv_logits)(/.*)?"
)
# And in which a ViT-Adapter may differ from the classifier that it starts from, besides.
ADAPTED = re.compile(rf"{OWN.pattern}|(neck|rpn_head|roi_head)/.*|norm/(scale|bias)|blocks/ls[12]/gamma")

# What has an entry for each class.
HEAD = re.compile(r"(.*/)?(head|head_dist|cls_emb|conv_seg|fc_cls|fc_reg|conv_logits)(/.*)?")


class Transfer(NamedTuple):
    """What became of which path; together all paths of either model."""

    loaded: tuple[str, ...]  # bit for bit
    resized: tuple[str, ...]  # tables, to another grid, set of tokens or number of layers; kernels, see `notes`
    initialised: tuple[str, ...]  # what the source has not, or in another shape
    dropped: tuple[str, ...]  # what only the source has
    notes: tuple[str, ...] = ()  # what else was done, a line each

    def lines(self) -> list[str]:
        """The notes, and one line for each kind of path that there is, for people."""
        paths = {kind: paths for kind, paths in self._asdict().items() if kind != "notes" and paths}
        return [*self.notes, *(f"{kind}: {', '.join(names)}" for kind, names in paths.items())]


def without_head(
    result: Mapping[str, Any], moved: Transfer, variables: Mapping[str, Any], why: str
) -> tuple[dict, Transfer]:
    """The `result` of `transfer`, in which what belongs to classes keeps its initial value, as in `variables`.

    Args:
        why: a note, which is added if that makes a difference.
    """
    heads = [path for path in moved.loaded if HEAD.fullmatch(path)]
    if not heads:
        return dict(result), moved
    kept, fresh = flatten(result), flatten(variables)
    kept |= {path: fresh[path] for path in heads}
    return unflatten(kept), moved._replace(
        loaded=tuple(path for path in moved.loaded if path not in heads),
        initialised=(*moved.initialised, *heads),
        notes=(*moved.notes, why),
    )


def warm_start(
    path: str | os.PathLike, model: nn.Module, variables: Mapping[str, Any], pe_norm: str = "ones"
) -> tuple[dict, Transfer]:
    """The `variables` of `model`, with what can be had from a file of weights: see `load` and `transfer`.

    The weights may be those of a model with another joining method, position embedding, image size, size of patches or
    windows, number of classes, or grey instead of RGB images; with or without distillation token, and without a head.
    In all else they must be the model's, to the last name, but for what pre-training has beside a backbone (`BESIDE`,
    and what is not behind the backbone's prefix). For a Segmenter, a ViT-Adapter, a UperNet or a Mask R-CNN,
    they may also be those of the classifier that has its encoder.

    Raises:
        UserError: as `load` and `transfer`.
    """
    path = hub.local(path)
    weights, place = files.read(path)
    with files.speaking_of(place):
        part, (source, found) = choose(weights, files.known(model), lambda part: _backbone(part, model))
        result, moved = transfer(found.variables, source, variables, model, pe_norm, found.absent)
    other = huggingface.difference(path, model)
    notes = (*part.notes, *found.notes, *([other] if other else []), *moved.notes)
    return result, moved._replace(notes=notes)


class _Backbone(NamedTuple):
    variables: dict
    absent: frozenset[str]  # paths
    notes: tuple[str, ...]


def _backbone(part: Part, model: nn.Module) -> tuple[nn.Module, _Backbone]:
    """The model that weights to start from are for, and what they have of its variables.

    Raises:
        UserError: they lack other variables than what is on top of a backbone, or have more than what is beside one.
    """
    arrays = part.arrays
    if files.format_of(arrays) == "big_vision":
        arrays = canonical(arrays)
    if isinstance(model, Segmenter):  # its encoder alone, under the names that a Segmenter has for it
        encoder = parts(arrays, files.known(model.classifier()))[0]
        arrays = encoder.arrays if encoder.prefix == ENCODER and not encoder.outside else arrays

    def attempt(source: nn.Module) -> _Backbone:
        stored, paths = files.stored_shapes(arrays, source), shapes(source)
        absent = frozenset(path for path in paths if path not in stored and ON_TOP.fullmatch(path))
        kept, notes = alone(arrays, part.outside, files.known(source) | frozenset(map(pattern, paths)))
        return _Backbone(files.fit(kept, source, absent), absent, notes)

    return files.fit_first(sources(lambda probe: files.stored_shapes(arrays, probe), model), attempt)


def transfer(
    weights: Mapping[str, Any],
    source: nn.Module,
    variables: Mapping[str, Any],
    model: nn.Module,
    pe_norm: str = "ones",
    absent: Collection[str] = (),
) -> tuple[dict, Transfer]:
    """The `variables` of `model`, with all that can be had from the `weights` of the model `source`.

    A variable is taken over if both models have it in the same shape. Position tables and tables of relative biases
    are resized to the model's grid (bicubic; a Segmenter's table by its `pe_resize`); rows of a class or distillation
    token that both have go along, and a row that only the model has keeps its initial value. One table becomes those of
    all layers where the model has one per layer. (Not in a Swin, whose tables per layer are of several grids; they are
    taken over in the same shape only.) Kernels of patches are resized to the model's, and summed or spread over the
    channels where one takes grey images and the other RGB: see `resize_kernel` and `recolour_kernel`.
    All else keeps its initial value, and may only be what `FREE` names.

    Args:
        weights: variables of `source`.
        variables: freshly initialised ones of `model`.
        pe_norm: what PE norms start as where the source has none, one of `PE_NORM_STARTS`.
        absent: paths of variables of `source` that are not among `weights`.

    Raises:
        UserError: an unknown `pe_norm`, variables that are not those of their models, or models that differ in more
            than they may.
    """
    if pe_norm not in PE_NORM_STARTS:
        raise UserError(f"pe_norm={nearest(pe_norm, PE_NORM_STARTS)}")
    theirs, ours = to_flat(weights, source, absent), to_flat(variables, model)
    loaded, resized, notes, result = [], [], [], dict(ours)
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
        if path in STEMS and found.shape != initial.shape:
            found, said = _kernel(found, initial, source, model)
            notes += [f"{path}: {line}" for line in said]
        if found.shape == initial.shape:
            result[path] = copy(found)
            same = found.shape == theirs[path].shape and np.array_equal(found, theirs[path])
            (loaded if same else resized).append(path)
    initialised = [path for path in ours if path not in loaded and path not in resized]
    dropped = [path for path in theirs if path not in loaded and path not in resized]
    free = [FREE, ADAPTED] if isinstance(model, ViTAdapter) and not isinstance(source, ViTAdapter) else [FREE]
    moved = [path for path in initialised + dropped if path not in absent]
    foreign = sorted({path for path in moved if not any(kind.fullmatch(path) for kind in free)})
    foreign += [path for path in dropped if path == "reg_token"]  # which the others have learned to lean on
    if foreign:
        raise UserError(f"the weights are of another kind or size of model, which differs in {first_few(foreign)}")
    if pe_norm == "norm1":
        _start_pe_norms(result, initialised)
    kinds = (tuple(sorted(paths)) for paths in (loaded, resized, initialised, dropped))
    return unflatten(result), Transfer(*kinds, tuple(notes))


def _kernel(
    found: np.ndarray, initial: np.ndarray, source: nn.Module, model: nn.Module
) -> tuple[np.ndarray, list[str]]:
    """The source's first kernel for patches and channels as the `initial` one has them, and what was done."""
    notes, (old, new) = [], (found.shape, initial.shape)
    if old[3:] != new[3:] or (old[:2] != new[:2] and not (cuts_patches(source) and cuts_patches(model))):
        return found, notes
    if old[:2] != new[:2]:
        found = resize_kernel(found, new[:2])
        notes.append(f"resized from {old[0]} x {old[1]} to {new[0]} x {new[1]} pixels (PI-resize, as in FlexiViT)")
    if old[2] != new[2] and (old[2], new[2]) == (source.in_channels, model.in_channels):
        found = recolour_kernel(found, new[2])
        notes.append("summed over RGB, for grey images" if new[2] == 1 else "spread evenly over RGB, from grey")
    return found, notes


def _table(found: np.ndarray, source: nn.Module, initial: np.ndarray, model: nn.Module) -> np.ndarray:
    """The source's position table with the rows that the model's `initial` one has; as it is if that cannot be."""
    layers = initial.shape[:-2]  # () or the number of layers
    if found.shape[-1] != initial.shape[-1] or found.shape[:-2] not in ((), layers, (1,) * len(layers)):
        return found
    theirs, ours = _prefix_rows(source, found), _prefix_rows(model, initial)
    method = getattr(model, "pe_resize", "bicubic")
    patches = resize_table(found[..., len(theirs) :, :], source.grid, model.grid, method=method)
    rows = [found[..., theirs.index(name), :] if name in theirs else initial[..., i, :] for i, name in enumerate(ours)]
    parts = [row[..., None, :] for row in rows] + [patches]
    return np.concatenate([np.broadcast_to(part, (*layers, *part.shape[-2:])) for part in parts], axis=-2)


def _prefix_rows(model: nn.Module, table: np.ndarray) -> list[str]:
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
    """Sets the scales of new PE norms as `PE_NORM_STARTS` says, or to their mean where one has a single number."""
    for path in initialised:
        scale = None
        if path.endswith("pe_norm/scale"):
            scale = next(result[norm1] for name in NORM1 if (norm1 := path.replace("pe_norm", name)) in result)
        elif path == "pe_norms/scale":
            scale = result["blocks/norm1/scale"][1:]
        elif path == "pe_norm_last/scale":
            scale = next(result[norm] for norm in LAST_NORM if norm in result)
        if scale is not None:
            vector = result[path].shape == scale.shape
            result[path] = copy(scale if vector else scale.mean(axis=-1))
