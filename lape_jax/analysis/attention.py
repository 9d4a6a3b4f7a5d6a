"""Where the heads of each layer look, and what makes them: tokens, positions, or both.

With x the input of a layer's attention, query and key are linear in it (and turned by RoPE, which is linear, too), so
that with x = t + p, p being what is seen of the position (`lape_jax.analysis.energy`), the logits are sums of

    tokens      q(t) . k(t)            both     q(t) . k(p) + q(p) . k(t)            positions    q(p) . k(p) + bias

where a bias of query and key belongs to t, and a relative position bias to the positions. What is the same for all keys
the softmax ignores; so a term's share of the logits z is its covariance with z over keys, over the variance of z, both
summed over queries, heads and images. The three shares make 1; one below 0 works against the others.

Rollout (Abnar and Zuidema 2020, arXiv:2005.00928): the product of (A_l + 1) / 2 over layers, A_l being the mean of all
heads' attention.
"""

import csv
import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lape_jax.analysis import energy, plots
from lape_jax.analysis.activations import layer_inputs
from lape_jax.analysis.blocks import BlockParams, blocks, check_family
from lape_jax.analysis.correlation import relative_biases
from lape_jax.errors import UserError
from lape_jax.models.swin import Swin
from lape_jax.models.vit_adapter import ViTAdapter
from lape_jax.nn import position, rope
from lape_jax.port.params import to_flat

if TYPE_CHECKING:
    import matplotlib.figure

HIGHEST = jax.lax.Precision.HIGHEST
TERMS = ("tokens", "both", "positions")
CLASS, CENTRE, AUTO = "class", "centre", "auto"


class Shares(NamedTuple):
    """The shares that tokens, positions and both together have in the logits of one layer."""

    tokens: float
    both: float
    positions: float


class Layer(NamedTuple):
    """What makes the queries and keys of one layer, as arrays."""

    norm1: tuple[jax.Array, jax.Array]  # scale and bias
    query: tuple[jax.Array, jax.Array]  # (d, d) and (d,)
    key: tuple[jax.Array, jax.Array]
    freqs: jax.Array | None  # of RoPE, if they are learned
    bias: jax.Array | None  # (heads, n, n), relative, with zeros for tokens before the patches


def check(model: nn.Module) -> None:
    """Raises UserError unless all tokens of the model attend to all in each of its layers."""
    check_family(model)
    if isinstance(model, Swin | ViTAdapter):
        raise UserError(f"a {type(model).__name__} attends in windows, or to maps: its attention is not shown")


def layers(model: nn.Module, variables: Mapping[str, Any]) -> list[Layer]:
    """The parameters of all layers that logits are made of.

    Raises:
        UserError: see `check`; or `variables` are not the model's.
    """
    check(model)
    relative = position.parse_pe(model.pe)[1]
    margin = ((0, 0), (model.num_prefix_tokens, 0), (model.num_prefix_tokens, 0))
    biases = relative_biases(model, variables) if relative else [None] * model.depth
    found = []
    for block, bias in zip(blocks(model, to_flat(variables, model)), biases, strict=True):
        scale = jnp.asarray(block.params["norm1/scale"])
        norm = scale, jnp.asarray(block.params.get("norm1/bias", np.zeros_like(scale)))
        freqs = block.params.get("attn/freqs")
        bias = None if bias is None else jnp.pad(jnp.asarray(bias), margin)
        found.append(Layer(norm, *_query_and_key(block), None if freqs is None else jnp.asarray(freqs), bias))
    return found


def attention(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "b h w c"]
) -> Float[np.ndarray, "b l heads n n"]:
    """The weights of all layers and heads for normalised images, class and distillation token included."""
    made, run = layers(model, variables), jax.jit(functools.partial(_weights, model))
    return np.stack([np.asarray(run(made, variables, image[None])) for image in images])


def rollout(weights: Float[np.ndarray, "l heads n n"]) -> Float[np.ndarray, "n n"]:
    """How much of each token of the image there is in each that leaves the last layer."""
    total = np.eye(weights.shape[-1])
    for layer in weights.mean(axis=1, dtype=np.float64):
        total = (layer + np.eye(len(layer))) / 2 @ total
    return total


def shares(model: nn.Module, variables: Mapping[str, Any], images: Iterable[jax.Array]) -> list[Shares]:
    """Measures the shares in the logits of each layer, over batches of normalised images.

    Raises:
        UserError: see `layers`; or there are no images.
    """
    made, total = layers(model, variables), None
    step = jax.jit(functools.partial(_covariances, model))
    for batch in images:
        sums = np.asarray(jax.device_get(step(made, variables, batch)), np.float64)
        total = sums if total is None else total + sums
    if total is None:
        raise UserError("there are no images to measure on")
    return [Shares(*(layer / layer.sum()).tolist()) for layer in total]


def row_of(model: nn.Module, query: str) -> int:
    """The row of the token that is meant: "class", "centre", the number of a patch; "auto" is the first that there is.

    Raises:
        UserError: there is no such token.
    """
    rows, columns = model.grid
    if query == CLASS and model.class_row is None:
        raise UserError(f"--attention={query}: the model has no class token: use centre, or the number of a patch")
    if query in (CLASS, AUTO) and model.class_row is not None:
        return model.class_row
    if query in (CENTRE, AUTO):
        return model.num_prefix_tokens + (rows - 1) // 2 * columns + (columns - 1) // 2
    if not query.isdecimal() or int(query) >= rows * columns:
        raise UserError(f"--attention={query}: it must be class, centre, or a patch from 0 to {rows * columns - 1}")
    return model.num_prefix_tokens + int(query)


def figure(
    model: nn.Module,
    weights: Float[np.ndarray, "l heads n n"],
    pixels: Float[np.ndarray, "h w c"],
    row: int,
    numbers: Sequence[int] | None = None,
) -> "matplotlib.figure.Figure":
    """The image, the rollout, and a row of maps for each layer, one for each head; each relative to its largest value.

    Args:
        weights: the attention weights of one image, see `attention`.
        pixels: that image.
        row: the row of the token that looks.
        numbers: the layers that are drawn, counted from 1; None for all.
    """
    extra = model.num_prefix_tokens
    mark = divmod(row - extra, model.grid[1]) if row >= extra else None
    panel = functools.partial(_panel, model, mark=mark)
    lines = {"image": [plots.Panel(pixels.mean(-1), "", None), panel(rollout(weights)[row], "rollout")]}
    for number, heads in enumerate(weights, start=1):
        if numbers is None or number in numbers:
            lines[f"layer {number}"] = [panel(head[row], f"head {i}") for i, head in enumerate(heads, start=1)]
    what = "the class token" if row < extra else f"patch {row - extra}"
    return plots.maps(lines, f"Where {what} looks")


def shares_figure(models: Mapping[str, Sequence[Shares]]) -> "matplotlib.figure.Figure":
    """A panel for each term, a line for each model, by layer."""
    panels = {
        f"share of the logits: {term}": {
            label: (range(1, len(found) + 1), [getattr(one, term) for one in found]) for label, found in models.items()
        }
        for term in TERMS
    }
    return plots.curves(panels, "layer", "What makes the attention logits", columns=3)


def shares_table(models: Mapping[str, Sequence[Shares]]) -> str:
    """CSV, a line for each model and layer."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "layer", *TERMS])
    for label, found in models.items():
        writer.writerows([label, layer, *one] for layer, one in enumerate(found, start=1))
    return file.getvalue()


def _panel(model: nn.Module, looked: np.ndarray, title: str, mark: tuple[int, int] | None) -> plots.Panel:
    patches = looked[model.num_prefix_tokens :]
    most = patches.max() or 1.0
    return plots.Panel((patches / most).reshape(model.grid), f"{title} (max {most:.2g})", (0.0, 1.0), mark)


def _query_and_key(block: BlockParams) -> list[tuple[jax.Array, jax.Array]]:
    if "attn/qkv/kernel" in block.params:
        kernel = block.params["attn/qkv/kernel"]
        bias = block.params.get("attn/qkv/bias", np.zeros(kernel.shape[-1], kernel.dtype))
        kernels, biases = np.split(kernel, 3, axis=-1), np.split(bias, 3)
        return [(jnp.asarray(kernels[i]), jnp.asarray(biases[i])) for i in (0, 1)]
    parts = [(block.params[f"attn/{name}/kernel"], block.params[f"attn/{name}/bias"]) for name in ("query", "key")]
    return [(jnp.asarray(kernel.reshape(len(kernel), -1)), jnp.asarray(bias.reshape(-1))) for kernel, bias in parts]


def _terms(model: nn.Module, made: list[Layer], variables: Mapping[str, Any], images: jax.Array) -> list[tuple]:
    """Lists the three terms of the logits of each layer, (b, heads, n, n)."""
    found = []
    turning = rope.of(model.pe, model.grid)
    for entering, layer in zip(layer_inputs(model, variables, images), made, strict=True):
        full = jnp.promote_types(entering.stream.dtype, jnp.float32)
        stream = entering.stream.astype(full)
        norm = nn.LayerNorm(epsilon=model.ln_eps, dtype=full, use_fast_variance=False)
        tokens = norm.apply({"params": dict(zip(("scale", "bias"), layer.norm1, strict=True))}, stream)
        placed = jnp.zeros_like(tokens)
        if model.method.in_stream and entering.placed is not None:
            placed = energy.parts(stream, entering.placed, *layer.norm1, model.ln_eps)[1]
            tokens = tokens - placed
        if entering.beside is not None:
            placed = placed + entering.beside
        (q, qp), (k, kp) = (
            [
                _heads(jnp.matmul(x, kernel, precision=HIGHEST) + shift, turning, layer.freqs, model.heads)
                for x, shift in ((tokens, bias), (placed, jnp.zeros_like(bias)))
            ]
            for kernel, bias in (layer.query, layer.key)
        )
        product = functools.partial(jnp.einsum, "bqhd,bkhd->bhqk", precision=HIGHEST)
        scale = 1 / math.sqrt(q.shape[-1])
        by_place = product(qp, kp) * scale
        by_place = by_place if layer.bias is None else by_place + layer.bias
        found.append((product(q, k) * scale, (product(q, kp) + product(qp, k)) * scale, by_place))
    return found


def _weights(
    model: nn.Module, made: list[Layer], variables: Mapping[str, Any], image: jax.Array
) -> Float[Array, "l heads n n"]:
    return jax.nn.softmax(jnp.stack([sum(terms)[0] for terms in _terms(model, made, variables, image)]), axis=-1)


def _heads(
    x: Float[Array, "b n d"], turning: rope.Rope | None, freqs: jax.Array | None, heads: int
) -> Float[Array, "b n heads hd"]:
    x = x if turning is None else rope.turn(x, turning, freqs, heads)
    return x.reshape(*x.shape[:2], heads, -1)


def _covariances(
    model: nn.Module, made: list[Layer], variables: Mapping[str, Any], images: jax.Array
) -> Float[Array, "l 3"]:
    """Of each term with the logits over keys, summed."""
    sums = []
    for terms in _terms(model, made, variables, images):
        centred = [term - term.mean(-1, keepdims=True) for term in terms]
        sums.append(jnp.stack([jnp.sum(term * sum(centred)) for term in centred]))
    return jnp.stack(sums)
