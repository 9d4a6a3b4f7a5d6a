"""Fused attention against the plain one: cuDNN's padding (by the implementation that any device has), the TPU's kernel
(interpreted), alone and with sequences split over devices; outputs and gradients, that of the bias among them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn import choice, cudnn
from lape_jax.nn.attention import Attention, attention_weights
from lape_jax.nn.tpu_attention import attend_short
from lape_jax.parallel import fit, sharding
from tests import quick
from tests.nn.test_attention import WIDTH, random_params

HEADS, SIZE = 2, 8
# Sequences of two devices, tokens, windows of an image with a bias of their own (0: no bias).
CASES = [(4, 13, 0), (8, 9, 2), (4, 16, 1)]


def plain(q, k, v, bias):
    return jnp.einsum("bhqk,bkhd->bqhd", attention_weights(q, k, bias), v)


def padded(on, q, k, v, bias):
    return choice.by_shards(partial(cudnn.attend_cudnn, implementation="xla"), on, True, q, k, v, bias)


def short(on, q, k, v, bias):
    qkv = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in (q, k, v)], axis=-1)
    y = choice.by_shards(lambda x, bias: attend_short(HEADS, x, bias, interpret=True), on, False, qkv, bias)
    return y.reshape(q.shape)


def inputs(batch, tokens, windows, dtype=jnp.float32):
    draw = np.random.default_rng(tokens).standard_normal
    q, k, v, gradient = (jnp.asarray(draw((batch, tokens, HEADS, SIZE)), dtype) for _ in range(4))
    return (q, k, v, jnp.asarray(draw((windows, HEADS, tokens, tokens)), jnp.float32) if windows else None), gradient


def run(function, arrays, gradient):
    """What it makes of them, and the gradients of all of them."""

    @jax.jit
    def both(arrays, gradient):
        y, pull_back = jax.vjp(lambda arrays: function(*arrays), arrays)
        return y, pull_back(gradient)

    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), both(arrays, gradient))


@pytest.mark.parametrize(("batch", "tokens", "windows"), quick.first(1, CASES))
@pytest.mark.parametrize("fused", [padded, short])
def test_fused_is_exact_over_two_devices(fused, batch, tokens, windows):
    on = choice.for_devices("auto", sharding.data_mesh(jax.devices()[:2]), fit.ROWS, fit.HEADS)
    arrays, gradient = inputs(batch, tokens, windows)
    found, expected = run(partial(fused, on), arrays, gradient), run(plain, arrays, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [padded, short])
def test_in_bfloat16_it_differs_as_bfloat16_does(fused):
    """From float32 arithmetic on the same inputs, fused and plain attention are off by one part in 100, alike."""
    arrays, gradient = inputs(4, 13, 0, jnp.bfloat16)
    exact = run(plain, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), arrays), gradient.astype(jnp.float32))
    found = run(partial(fused, "auto"), arrays, gradient)
    usual = run(plain, arrays, gradient)
    for a, b, e in zip(*map(jax.tree.leaves, (found, usual, exact)), strict=True):
        largest = np.abs(e).max()
        assert np.abs(a - e).max() < 0.01 * largest
        assert np.abs(b - e).max() < 0.01 * largest


def test_the_layer_hands_the_kernel_what_it_needs(monkeypatch):
    """On a TPU, which is pretended here, with a relative bias and a mask of two windows."""
    on = choice.for_devices("auto", sharding.data_mesh(jax.devices()[:1]), fit.ROWS, fit.HEADS)
    monkeypatch.setattr(choice, "obstacle", lambda *_: "")
    monkeypatch.setitem(choice._FUSED, "cpu", "pallas")
    monkeypatch.setattr("lape_jax.nn.tpu_attention.attend_short", partial(attend_short, interpret=True))
    params = random_params((3, 4))
    draw = np.random.default_rng(5).standard_normal
    x, mask = jnp.asarray(draw((4, 13, WIDTH)), jnp.float32), jnp.asarray(draw((2, 13, 13)), jnp.float32)

    def loss(attention, params, x):
        return jnp.sum(jnp.sin(attention.apply({"params": params}, x, False, mask)))

    plain, fused = Attention(2, grid=(3, 4)), Attention(2, grid=(3, 4), implementation=on)
    assert fused.choice((4, 13, 2, 3), (4, 13, 2, 3), False, mask).name == "pallas"
    found, expected = (jax.jit(jax.grad(partial(loss, layer), (0, 1)))(params, x) for layer in (fused, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), found, expected)
