"""The position as the attention of each layer sees it, for every joining and every table.

With w the table, g_l, b_l the affine of the first LayerNorm of block l, gp_l, bp_l that of its PE norm, and LN0 a
LayerNorm without affine, layer l sees the rows of

    lape           p_l = gp_l LN0(p_{l-1}) + bp_l, p_0 = w           what is added to the normalised tokens
    lape_sharing   gp_l LN0(w) + bp_l                                 likewise
    folded         c_l = b_l + p_l                                    likewise: folding has added b_l (see below)
    default        g_l LN0(w) + b_l                                   Eq. 7: LN_l(x~ + w) = ... + lambda_2 LN_l(w) + ...
    shared         the same                                           the residual stream has w l times, x~ + l w
    unshared       g_l LN0(mean of w^(1) .. w^(l)) + b_l              the stream has the tables of all blocks so far
    pvg, mpvg      as lape from the second layer on, and the first as default. (It is in the stream of the others, too.)

Default, shared and unshared are seen up to a positive factor per token (lambda_2), which no cosine notices, but which
any size does (`lape_jax.analysis.energy`). PE norms other than LayerNorm take the place of gp LN0 + bp. Of a folded
model p_l cannot be had any more: its maps contain b_l, as those of the default do; for the maps of LaPE look at the
model before it is folded.

LN0 has an eps of its own, by default 1e-5, as in `similarity_visualize.py` of the reference code, whatever the model
has (DeiT 1e-6): figures are then those of that script. `eps=model.ln_eps` gives what the model computes.

Swin: the PE that is handed from block to block shrinks with the grid by `merge_pe`, in "default" the table in the
residual stream by the very `PatchMerging` of the model (Linear(LN(its four neighbours)), as Eq. 7 has it for that
LayerNorm); "shared" and "unshared" count the tables that the blocks of a stage add.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lape_jax.analysis.blocks import BlockParams, blocks, check_family
from lape_jax.errors import UserError
from lape_jax.models.swin import Swin
from lape_jax.nn import position
from lape_jax.nn.merging import merge_pe
from lape_jax.nn.pe_norm import PENorm
from lape_jax.port.params import to_flat

SCRIPT_EPS = 1e-5  # of `similarity_visualize.py` in Ingrid725/LaPE


class Seen(NamedTuple):
    """The position as one layer sees it: a row for each patch."""

    grid: tuple[int, int]  # rows and columns of patches
    table: np.ndarray  # (n, d)


def tables(model: nn.Module, variables: Mapping[str, Any]) -> list[Seen]:
    """The position tables themselves: one, or with join="unshared" and "folded" one for each layer.

    Raises:
        UserError: there is none, or `variables` are not the model's.
    """
    check_table(model)
    flat = to_flat(variables, model)
    stored = _stored(model, jax.tree.map(jnp.asarray, variables))
    if not model.method.table_per_layer:
        return [Seen(model.grid, _patches(model, stored[0]))]
    rows = [table for stage in stored for table in stage]
    return [Seen(block.grid, _patches(model, table)) for block, table in zip(blocks(model, flat), rows, strict=True)]


def seen(model: nn.Module, variables: Mapping[str, Any], eps: float = SCRIPT_EPS) -> list[Seen]:
    """Lists the effective PE of each layer, as the docstring of this module defines it.

    Args:
        model: any classifier or Segmenter with an absolute position table.
        variables: the variables of `model`.
        eps: the eps of LN0 and of the PE norms.

    Raises:
        UserError: the model has no table, or `variables` are not its own.
    """
    check_table(model)
    layers = blocks(model, to_flat(variables, model))
    variables = jax.tree.map(jnp.asarray, variables)
    stored = _stored(model, variables)
    found = _in_stream(model, variables, layers, stored, eps) if model.method.in_stream else []
    if model.method.delivers:
        delivered = _delivered(model, variables, layers, stored, eps)
        found = [new if new.any() or not found else found[layer] for layer, new in enumerate(delivered)]
    return [Seen(block.grid, _patches(model, table)) for block, table in zip(layers, found, strict=True)]


def check_table(model: nn.Module) -> None:
    """Raises UserError unless the model has an absolute position table."""
    check_family(model)
    if position.parse_pe(model.pe)[0] is None:
        raise UserError(f"pe={model.pe!r} has no position table: {', '.join(position.ABSOLUTE)} are tables")


def layer_norm(
    x: Float[np.ndarray, "*n d"], scale: Float[np.ndarray, " d"], bias: Float[np.ndarray, " d"] | float, eps: float
) -> Float[np.ndarray, "*n d"]:
    """scale (x - mean) / sqrt(var + eps) + bias over the last axis, biased variance, in float64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return scale * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + bias


def _stored(model: nn.Module, variables: Mapping[str, Any]) -> list[np.ndarray]:
    """The tables by stage, (n, d), or (l, n, d) if there is one for each layer."""
    if isinstance(model, Swin):
        found = model.apply(variables, method=lambda module: module.position_tables)
    else:
        found = [model.apply(variables, method=lambda module: module.position_table)]
    return [np.asarray(jax.device_get(table)) for table in found]


def _delivered(
    model: nn.Module,
    variables: Mapping[str, Any],
    layers: list[BlockParams],
    stored: list[np.ndarray],
    eps: float,
) -> list[np.ndarray]:
    """What the joining method adds to the normalised tokens of each layer."""
    join, norm = model.method, PENorm(model.pe_norm, eps, model.no_embed_tokens)
    own, pe, found, before = _of_layers(model, variables, stored, eps), jnp.asarray(stored[0]), [], layers[0]
    for layer, block in enumerate(layers):
        if own:
            pe = own[layer]
        elif block.stage > before.stage:
            pe = merge_pe(pe, before.grid)
        params = {path.removeprefix("pe_norm/"): x for path, x in block.params.items() if path.startswith("pe_norm/")}
        deliver = lambda w, params=params: norm.apply({"params": params}, w)  # noqa: E731
        joined = join.block(jnp.zeros((1, *pe.shape), pe.dtype), pe, lambda x: x, deliver)
        found.append(np.asarray(joined.delivered))
        pe, before = joined.handed_on, block
    return found


def _in_stream(
    model: nn.Module,
    variables: Mapping[str, Any],
    layers: list[BlockParams],
    stored: list[np.ndarray],
    eps: float,
) -> list[np.ndarray]:
    """LN_l, with another eps, of the table in the residual stream of each layer."""
    found, parts = [], iter(_parts(model, variables, layers, stored))
    for block in layers:
        scale, bias = block.params["norm1/scale"], block.params["norm1/bias"]
        found.append(layer_norm(next(parts), scale, bias, eps))
    return found


def _parts(
    model: nn.Module, variables: Mapping[str, Any], layers: list[BlockParams], stored: list[np.ndarray]
) -> list[np.ndarray]:
    """What stem and blocks have added to the residual stream of each layer: the mean of it, which is up to a factor.

    Where blocks add, what those of an earlier stage have added does not count.
    """
    join, own, found, before = model.method, _of_layers(model, variables, stored, model.ln_eps), [], layers[0]
    nothing = jnp.zeros((1, *stored[0].shape[-2:]), stored[0].dtype)
    stream, pe = join.stem(nothing, jnp.asarray(stored[0]))
    times, added = int(stream is not nothing), None
    for layer, block in enumerate(layers):
        if block.stage > before.stage:
            pe = None if pe is None else merge_pe(pe, before.grid)
            if added is None:
                merge = lambda module, x, stage=before.stage: module.downsample[stage](x)  # noqa: E731
                stream = model.apply(variables, stream, method=merge)
            else:
                stream, times = jnp.zeros((1, *(own[layer] if own else pe).shape), stream.dtype), 0
        joined = join.block(stream, own[layer] if own else pe, jnp.asarray, jnp.asarray)
        added = None if joined.tokens is stream else joined.delivered
        stream, times, pe, before = joined.tokens, times + (added is not None), joined.handed_on, block
        found.append(np.asarray(stream[0]) / times)
    return found


def _of_layers(model: nn.Module, variables: Mapping[str, Any], stored: list[np.ndarray], eps: float) -> list[jax.Array]:
    """The table that each layer is given, if each is given its own."""
    if model.method.norms_apart:
        tables = lambda module: module.tables_of_layers(jnp.asarray(stored[0]))  # noqa: E731
        return list(model.clone(ln_eps=eps).apply(variables, method=tables))
    return [jnp.asarray(table) for stage in stored for table in stage] if model.method.table_per_layer else []


def _patches(model: nn.Module, table: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
    return table[model.num_prefix_tokens :]
