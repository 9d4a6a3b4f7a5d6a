"""The parameters of one block at a time, under the same names whichever family the model is of."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from lape_jax.errors import UserError
from lape_jax.models.base import Classifier
from lape_jax.models.big_vision import BigVisionViT
from lape_jax.models.swin import Swin

NAMES = {"LayerNorm_0/": "norm1/", "MultiHeadDotProductAttention_0/": "attn/"}  # big_vision's, and ours for them


class BlockParams(NamedTuple):
    """The parameters of one block, and where it stands."""

    stage: int  # 0 but in a Swin
    grid: tuple[int, int]  # rows and columns of its tokens
    params: dict[str, np.ndarray]  # by path within the block, such as "norm1/scale"


def check_family(model: nn.Module) -> None:
    """Raises UserError unless the model is of a family that has position embeddings."""
    if not isinstance(model, Classifier):
        raise UserError(f"a {type(model).__name__} has no position embedding to look at: a ViT, CCT, CeiT or Swin has")


def blocks(model: nn.Module, flat: Mapping[str, np.ndarray]) -> list[BlockParams]:
    """The blocks of `model` in sequence, from its variables by path (`lape_jax.port.params.to_flat`)."""
    found = []
    for stage, grid, prefix, index in _places(model):
        params = {}
        for path, array in flat.items():
            if not path.startswith(prefix):
                continue
            name = path.removeprefix(prefix)
            for theirs, ours in NAMES.items():
                name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
            params[name] = array if index is None else array[index]
        found.append(BlockParams(stage, grid, params))
    return found


def _places(model: nn.Module) -> Iterator[tuple[int, tuple[int, int], str, int | None]]:
    """Stage, grid, path and position on the layer axis (None: there is no such axis) of each block."""
    if isinstance(model, Swin):
        for stage, depth in enumerate(model.depths):
            for layer in range(depth):
                yield stage, model.windows[stage].grid, f"layers_{stage}/blocks/", layer
        return
    for layer in range(model.depth):
        if isinstance(model, BigVisionViT):
            stacked = model.scan
            name = "Transformer/encoderblock/" if stacked else f"Transformer/encoderblock_{layer}/"
            yield 0, model.grid, name, layer if stacked else None
        else:
            yield 0, model.grid, "blocks/", layer
