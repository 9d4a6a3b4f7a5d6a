"""Attention of short sequences on a TPU, in one kernel: no logits, weights or transposed heads ever reach its memory.

A turn of the kernel has a few whole sequences on the chip, as the fused projection lays them out, (tokens, 3 heads hd):
it reads queries, keys and values once and writes the result once. The backward pass makes the weights again, and keeps
nothing but what went in. (`jax.experimental.pallas.ops.tpu.flash_attention` wants heads before tokens, tokens by 128
and, for a bias, one of the whole batch: for sequences that fit whole, all of that is traffic.)
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

ROWS = 512  # tokens of all sequences of a turn, about
PRODUCT_OF_ROWS = (((1,), (1,)), ((), ()))  # a b^T
PRODUCT_OF_COLUMNS = (((0,), (0,)), ((), ()))  # a^T b
PRODUCT = (((1,), (0,)), ((), ()))  # a b


def attend_short(
    heads: int, qkv: Float[Array, "b n qkv"], bias: Float[Array, "w {heads} n n"] | None, interpret: bool = False
) -> Float[Array, "b n d"]:
    """softmax(q k^T / sqrt(head_dim) + bias) v of each head, side by side.

    Products add up in float32, and so do softmax and its gradient; weights enter the product in the type of `qkv`.

    Args:
        heads: how many.
        qkv: queries, keys and values of all heads, one after the other.
        bias: `bias[i % w]` for sequence i.
        interpret: without a TPU: what the kernel does, step by step.
    """
    return _attend(heads, interpret, qkv, bias if bias is None else bias.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(heads, interpret, qkv, bias):
    return _call(_forward, qkv, (), bias, heads, interpret)[0]


def _attend_fwd(heads, interpret, qkv, bias):
    return _attend(heads, interpret, qkv, bias), (qkv, bias)


def _attend_bwd(heads, interpret, kept, gradient):
    qkv, bias = kept
    found = _call(_backward, qkv, (gradient,), bias, heads, interpret)
    return (*found, None) if bias is None else found


_attend.defvjp(_attend_fwd, _attend_bwd)


def _call(kernel, qkv, others, bias, heads, interpret):
    """One of the kernels over all sequences, `others` beside them; a tuple of what it makes."""
    batch, tokens, width = qkv.shape
    windows = 1 if bias is None else bias.shape[0]
    images = batch // windows
    some = next(size for size in range(min(images, max(1, ROWS // tokens)), 0, -1) if images % size == 0)

    def part(channels):
        return pl.BlockSpec((some, pl.squeezed, tokens, channels), lambda window, turn: (turn, window, 0, 0))

    arrays = [array.reshape(images, windows, *array.shape[1:]) for array in (qkv, *others)]
    backward = kernel is _backward
    channels = width if backward else width // 3
    results = [jax.ShapeDtypeStruct((images, windows, tokens, channels), qkv.dtype)]
    in_specs, out_specs = [part(array.shape[-1]) for array in arrays], [part(channels)]
    if bias is not None:
        whole = pl.BlockSpec((pl.squeezed, *bias.shape[1:]), lambda window, turn: (window, 0, 0, 0))
        arrays.append(bias)
        in_specs.append(whole)
        if backward:  # it stays on the chip for all turns of a window, and is added up there
            results.append(jax.ShapeDtypeStruct(bias.shape, bias.dtype))
            out_specs.append(whole)
    # A product of the forward pass is two of n^2 hd multiply-adds for each head, the backward pass has five.
    products = (5 if backward else 2) * batch * tokens * tokens * width // 3
    found = pl.pallas_call(
        functools.partial(kernel, heads=heads, biased=bias is not None),
        grid=(windows, images // some),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products,
            transcendentals=batch * heads * tokens * tokens,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (*arrays, *results)),
        ),
        interpret=interpret,
        name="attention_backward" if backward else "attention",
    )(*arrays)
    return (found[0].reshape(batch, tokens, channels), *found[1:])


def _forward(qkv_ref, *refs, heads, biased):
    bias_ref, (out_ref,) = (refs[0], refs[1:]) if biased else (None, refs)

    def sequence(i, _):
        for head in range(heads):
            q, k, v, own = _head(qkv_ref, i, head, heads)
            weights = _weights(q, k, bias_ref, head)
            out_ref[i, :, own] = _product(weights.astype(v.dtype), v, PRODUCT).astype(out_ref.dtype)
        return 0

    jax.lax.fori_loop(0, qkv_ref.shape[0], sequence, 0)


def _backward(qkv_ref, gradient_ref, *refs, heads, biased):
    bias_ref, d_qkv_ref, d_bias_ref = refs if biased else (None, *refs, None)
    width = qkv_ref.shape[-1] // 3
    if biased:

        @pl.when(pl.program_id(1) == 0)
        def _():
            d_bias_ref[...] = jnp.zeros(d_bias_ref.shape, d_bias_ref.dtype)

    def sequence(i, _):
        for head in range(heads):
            q, k, v, own = _head(qkv_ref, i, head, heads)
            gradient = gradient_ref[i, :, own]
            weights = _weights(q, k, bias_ref, head)
            d_weights = _product(gradient, v, PRODUCT_OF_ROWS)
            shared = jnp.sum(weights * d_weights, axis=-1, keepdims=True)
            d_logits = weights * (d_weights - shared)
            if biased:
                d_bias_ref[head] += d_logits
            d_logits = (d_logits / math.sqrt(q.shape[-1])).astype(q.dtype)
            found = (
                _product(d_logits, k, PRODUCT),
                _product(d_logits, q, PRODUCT_OF_COLUMNS),
                _product(weights.astype(v.dtype), gradient, PRODUCT_OF_COLUMNS),
            )
            for place, d_part in enumerate(found):
                columns = slice(place * width + own.start, place * width + own.stop)
                d_qkv_ref[i, :, columns] = d_part.astype(d_qkv_ref.dtype)
        return 0

    jax.lax.fori_loop(0, qkv_ref.shape[0], sequence, 0)


def _head(qkv_ref, i, head, heads):
    """Queries, keys and values of a head, and its columns among those of all heads."""
    width = qkv_ref.shape[-1] // 3
    size = width // heads
    own = slice(head * size, (head + 1) * size)
    parts = (qkv_ref[i, :, place * width + own.start : place * width + own.stop] for place in range(3))
    return *parts, own


def _weights(q, k, bias_ref, head):
    logits = _product(q, k, PRODUCT_OF_ROWS) / math.sqrt(q.shape[-1])
    if bias_ref is not None:
        logits += bias_ref[head]
    powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)


def _product(a, b, dimensions):
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
