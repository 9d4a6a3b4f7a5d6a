"""Equation 7 and the energies measured on images."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lape_jax.analysis import energy, reparam
from lape_jax.analysis.blocks import BlockParams, blocks
from lape_jax.analysis.effective_pe import check_table
from lape_jax.errors import UserError
from lape_jax.models.swin import Swin
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.nn import position
from lape_jax.port.params import to_flat


class Measured(NamedTuple):
    """What one layer makes of tokens and position, over the patches of all images that were shown."""

    lambdas: np.ndarray  # (3, n): means over images of l1, l2 and l3 by patch
    token_energy: float  # mean squares of the two parts of what attention sees
    pe_energy: float

    @property
    def ratio(self) -> float:
        """Energy of the tokens by that of the position; infinite if there is none of it."""
        return self.token_energy / self.pe_energy if self.pe_energy else float("inf")


class Entering(NamedTuple):
    """What a block is given, with the rows of class and distillation token."""

    stream: jax.Array  # (b, n, d), what its first LayerNorm is given
    placed: jax.Array | None  # (n, d), of it the position; None where it cannot be told from the tokens
    beside: jax.Array | None  # (n, d), what is added behind that LayerNorm


def unmeasurable(model: nn.Module) -> str:
    """Why a model with a position table cannot be measured on images; "" if it can."""
    if isinstance(model, ViTAdapter):
        return "a ViT-Adapter adds to the tokens between its blocks: their position cannot be told apart there"
    return ""


def measure(
    model: nn.Module, variables: Mapping[str, Any], images: Iterable[jax.Array | np.ndarray], eps: float = 0.0
) -> list[Measured | None]:
    """What each layer makes of tokens and position; means over images.

    None stands for layers where the two cannot be told apart: those behind the first `PatchMerging` of a Swin that
    has its PE in the residual stream.

    Args:
        model: with an absolute position table.
        variables: the variables of `model`.
        images: batches (b, h, w, c), normalised; of few sizes, as each is compiled for.
        eps: what is added to variances in the lambdas; in energies it is what the LayerNorms have.

    Raises:
        UserError: the model has no table or is a ViT-Adapter, `variables` are not its own, or there are no images.
    """
    check_table(model)
    if reason := unmeasurable(model):
        raise UserError(reason)
    norms = [_norm1(block) for block in blocks(model, to_flat(variables, model))]
    step = jax.jit(functools.partial(_sums, model, eps))
    total, count = None, 0
    for batch in images:
        sums = jax.device_get(step(variables, norms, batch))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        count += len(batch)
    if total is None:
        raise UserError("there are no images to measure on")
    means = jax.tree.map(lambda x: np.asarray(x, np.float64) / count, total)
    return [None if layer is None else Measured(layer[0], float(layer[1]), float(layer[2])) for layer in means]


def layer_inputs(model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "b h w c"]) -> list[Entering]:
    """Lists what enters each layer. With joinings that keep the position out of the stream, `placed` is 0."""
    join, (_, out) = model.method, model.apply(variables, images, train=False)
    staged = (lambda stages: stages) if isinstance(model, Swin) else (lambda stack: (stack,))
    stream, found = out["stem"], []
    table = out["pos_embed"][0] if isinstance(out["pos_embed"], tuple) else out["pos_embed"]
    placed = None if table is None else join.stem(jnp.zeros((1, *stream.shape[1:]), table.dtype), table)[0][0]
    for stage, after in enumerate(staged(out["tokens"])):
        if stage:
            placed = None if join.in_stream else jnp.zeros(after.shape[-2:], table.dtype)
            stream = model.apply(
                variables, stream, method=lambda module, x, stage=stage: module.downsample[stage - 1](x)
            )
        for layer, tokens in enumerate(after):
            delivered = None if out["pe"] is None else staged(out["pe"])[stage][layer]
            if delivered is not None and not join.delivers:
                stream = stream + delivered
                placed = None if placed is None else placed + delivered
            found.append(Entering(stream, placed, delivered if join.delivers else None))
            stream = _through_peg(model, variables, len(found), tokens)
    return found


def _through_peg(model: nn.Module, variables: Mapping[str, Any], layer: int, tokens: jax.Array) -> jax.Array:
    """The tokens behind block `layer`, counted from 1, as they enter the next one."""
    if not position.has_peg(model.pe) or layer > model.peg_blocks:
        return tokens
    return model.apply(variables, tokens, method=lambda module, x: module.peg[layer - 1](x))


def _norm1(block: BlockParams) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias; of a folded model, whose bias is in its table, 0."""
    scale = block.params["norm1/scale"]
    return scale, block.params.get("norm1/bias", np.zeros_like(scale))


def _sums(
    model: nn.Module, eps: float, variables: Mapping[str, Any], norms: list[tuple], images: jax.Array
) -> list[tuple | None]:
    """Over images, by layer: the lambdas of each patch, and the mean squares of both parts of all patches."""
    sums = []
    for (stream, placed, beside), (scale, bias) in zip(layer_inputs(model, variables, images), norms, strict=True):
        if placed is None:
            sums.append(None)
            continue
        full = jnp.promote_types(stream.dtype, jnp.float32)
        stream, placed = stream.astype(full)[:, model.num_prefix_tokens :], placed[model.num_prefix_tokens :]
        tokens, position_part = energy.parts(stream, placed, scale, bias, model.ln_eps)
        if model.method.in_stream:
            factors = reparam.lambdas(stream, placed, eps)
        else:
            one = jnp.ones(stream.shape[:-1], full)
            factors, position_part = reparam.Lambdas(one, one, 0 * one), jnp.zeros_like(tokens)
        if beside is not None:
            position_part = position_part + beside[model.num_prefix_tokens :]
        squares = [jnp.sum(jnp.mean(part**2, axis=(-2, -1))) for part in (tokens, position_part)]
        sums.append((jnp.sum(jnp.stack(factors), axis=1), *squares))
    return sums
