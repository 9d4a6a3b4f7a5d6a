"""Cosine similarity of the positions of any two tokens in each layer: the paper's equation 12, figures 1, 3 and 4.

s_ij = <w_i, w_j> / (max(|w_i|, 1e-8) max(|w_j|, 1e-8)), where the rows w_i are those of a table or what a layer sees of
it (`lape_jax.analysis.effective_pe`). A map is (n, n) over the patches of a grid, row by row.

A relative position bias has no table. What stands for w_i in its maps is the bias of query i on all keys j, in one
head, less its mean over j, which the softmax ignores: two positions are alike if the head looks from both at the same
places. (The paper has no such map.)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from lape_jax.analysis.blocks import blocks, check_family
from lape_jax.analysis.effective_pe import SCRIPT_EPS, seen, tables
from lape_jax.errors import UserError
from lape_jax.models.swin import Swin
from lape_jax.nn import position
from lape_jax.port.params import to_flat

FLOOR = 1e-8  # of norms, as in the reference code


class Map(NamedTuple):
    """The similarity of each position to each other one."""

    grid: tuple[int, int]  # rows and columns of patches
    values: np.ndarray  # (n, n), in [-1, 1]


def cosine(table: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """s_ij of equation 12 for the rows of a table, in float64."""
    rows = np.asarray(table, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), FLOOR)
    return rows @ rows.T


def maps(model: nn.Module, variables: Mapping[str, Any], eps: float = SCRIPT_EPS) -> list[Map]:
    """The map of what each layer sees of the position: of the table if there is one, else of the relative bias.

    Of the relative bias it is the mean over heads of `relative_maps`, and in a Swin a map of the tokens of a window.

    Args:
        model: a classifier of any family, with any joining.
        variables: the variables of `model`.
        eps: the eps of the LayerNorms that the table goes through, see `lape_jax.analysis.effective_pe`.

    Raises:
        UserError: the model has neither, or `variables` are not its own.
    """
    check_family(model)
    absolute, relative = position.parse_pe(model.pe)
    if absolute is None and not relative:
        raise UserError(
            f"pe={model.pe!r} has no map: tables have ({', '.join(position.ABSOLUTE)}, with any join), and so has a "
            f"bias on pairs of patches (relative)"
        )
    if absolute is None:
        return [Map(found.grid, found.values.mean(0)) for found in relative_maps(model, variables)]
    return [Map(found.grid, cosine(found.table)) for found in seen(model, variables, eps)]


def table_maps(model: nn.Module, variables: Mapping[str, Any]) -> list[Map]:
    """The map of the table itself, or of each layer's where each has its own.

    Raises:
        UserError: the model has none, or `variables` are not its own.
    """
    return [Map(found.grid, cosine(found.table)) for found in tables(model, variables)]


def relative_biases(model: nn.Module, variables: Mapping[str, Any]) -> list[Float[np.ndarray, "heads n n"]]:
    """Lists what each layer adds to the attention logits of each head, from query (second axis) to key.

    Raises:
        UserError: the model has no relative bias, or `variables` are not its own.
    """
    check_family(model)
    if not position.parse_pe(model.pe)[1]:
        raise UserError(f"pe={model.pe!r} has no relative position bias: pe='relative' has, alone or beside a table")
    flat = to_flat(variables, model)
    found = []
    for block in blocks(model, flat):
        index = position.relative_position_index(_window(model, block.stage))
        found.append(np.moveaxis(block.params["attn/relative_position_bias_table"][index], -1, 0))
    return found


def relative_maps(model: nn.Module, variables: Mapping[str, Any]) -> list[Map]:
    """Lists a map of all heads for each layer, (heads, n, n): cosines of rows of the bias less their means.

    A head whose bias is the same for all pairs looks at no place more than at others: its map is 0.

    Raises:
        UserError: the model has no relative bias, or `variables` are not its own.
    """
    biases = relative_biases(model, variables)
    stages = [block.stage for block in blocks(model, {})]
    centred = [np.asarray(bias, np.float64) - bias.mean(-1, keepdims=True, dtype=np.float64) for bias in biases]
    return [
        Map(_window(model, stage), np.stack([cosine(head) for head in heads]))
        for stage, heads in zip(stages, centred, strict=True)
    ]


def token_map(found: Map, token: int) -> Float[np.ndarray, "rows columns"]:
    """The similarity of one token to all, on their grid.

    Raises:
        UserError: there is no such token.
    """
    if not 0 <= token < len(found.values):
        raise UserError(f"token={token} is not one of the {len(found.values)} patches, 0 to {len(found.values) - 1}")
    return found.values[token].reshape(found.grid)


def centre(grid: tuple[int, int]) -> int:
    """The token in the middle of a grid, above and left of it if it has none: 90, at (6, 6), of 14 x 14.

    (The paper speaks of the 96th row, which would be at (6, 12); its figures are of 90.)
    """
    rows, columns = grid
    return max(rows // 2 - 1, 0) * columns + max(columns // 2 - 1, 0)


def _window(model: nn.Module, stage: int) -> tuple[int, int]:
    """Rows and columns of tokens that attend to one another."""
    return 2 * (model.windows[stage].size,) if isinstance(model, Swin) else model.grid
