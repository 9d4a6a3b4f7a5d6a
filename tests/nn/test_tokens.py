"""Unfolding and the attentions between: order of features, scales, random features, the type they are computed in."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.tokens import TokenPerformer, TokenTransformer, positive_features, unfold
from tests import quick

WINDOWS = [(7, 4, 2), (3, 2, 1), (2, 2, 0), (3, 1, 0)]


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_every_feature_of_unfold(kernel, stride, padding):
    x = draw(2, 9, 8, 3)
    found = unfold(jnp.asarray(x), kernel, stride, padding)
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (9, 8))
    assert found.shape == (2, rows, columns, 3 * kernel * kernel)
    expected = np.zeros(found.shape, np.float32)
    for row, column, c, ky, kx in np.ndindex(rows, columns, 3, kernel, kernel):
        y, z = row * stride + ky - padding, column * stride + kx - padding
        if 0 <= y < 9 and 0 <= z < 8:
            expected[:, row, column, c * kernel * kernel + ky * kernel + kx] = x[:, y, z, c]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.peer
@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_unfold_is_that_of_pytorch(kernel, stride, padding):
    torch = pytest.importorskip("torch")
    x = draw(2, 9, 8, 3)
    theirs = torch.nn.Unfold(kernel, stride=stride, padding=padding)(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    ours = unfold(jnp.asarray(x), kernel, stride, padding)
    np.testing.assert_array_equal(ours.reshape(2, -1, ours.shape[-1]), theirs.transpose(1, 2).numpy())


def test_random_features_by_hand():
    """u = (1, 2), w = ((1, 0), (0, 3)): exponents 1 - 5/2 and 6 - 5/2, and two features."""
    phi = positive_features(jnp.float32([[[1, 2]]]), jnp.float32([[1, 0], [0, 3]]))
    np.testing.assert_allclose(phi[0, 0], np.exp([-1.5, 3.5]) / math.sqrt(2), rtol=1e-6)


def test_random_features_approximate_the_exponential():
    """E[phi(q) . phi(k)] = exp(q . k) over normal w; m orthogonal rows of many draws come near."""
    q, k = jnp.float32([[[0.3, -0.2, 0.4, 0.1]]]), jnp.float32([[[0.5, 0.1, 0.2, -0.4]]])
    w = jnp.concatenate([jax.random.normal(jax.random.key(i), (64, 4)) for i in range(64)])
    phi_q, phi_k = positive_features(q, w), positive_features(k, w)
    np.testing.assert_allclose(jnp.sum(phi_q * phi_k), math.exp(float(jnp.sum(q * k))), rtol=0.05)


def variables(module, x, seed=0):
    """All random, nothing zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32) for leaf in leaves])


def normed(x, params):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]


def silenced(given, **replaced):
    """The variables with an MLP that puts out nothing, and what else is `replaced`."""
    mlp = jax.tree.map(np.zeros_like, given["params"]["mlp"])
    return {**given, "params": {**given["params"], "mlp": mlp, **replaced}}


def attended(module, given, x):
    """What attention gives to the projection, plus v: the output, if the projection is the identity."""
    identity = {"kernel": np.eye(module.width, dtype=np.float32), "bias": np.zeros(module.width, np.float32)}
    return module.apply(silenced(given, proj=identity), jnp.asarray(x))


def test_the_transformer_divides_by_the_root_of_the_width_that_comes_in():
    x = draw(1, 5, 12)
    module = TokenTransformer(4)
    given = variables(module, jnp.asarray(x))
    params = given["params"]
    q, k, v = np.split(4 * normed(x, params["norm1"]) @ params["qkv"]["kernel"], 3, axis=-1)
    params["qkv"]["kernel"] = 4 * params["qkv"]["kernel"]  # so that the logits matter
    logits = q @ k.swapaxes(1, 2) / math.sqrt(12)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(attended(module, given, x), v + weights @ v, rtol=1e-4, atol=1e-5)


def test_the_performer_takes_k_before_q():
    x = draw(1, 5, 12)
    module = TokenPerformer(4)
    given = variables(module, jnp.asarray(x))
    params, w = given["params"], given["constants"]["w"]
    k, q, v = np.split(normed(x, params["norm1"]) @ params["kqv"]["kernel"] + params["kqv"]["bias"], 3, axis=-1)
    phi_q, phi_k = (np.exp(u @ w.T - (u**2).sum(-1, keepdims=True) / 2) / math.sqrt(2) for u in (q, k))
    weights = phi_q @ phi_k.swapaxes(1, 2)
    expected = v + weights @ v / (weights.sum(-1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(attended(module, given, x), expected, rtol=1e-4, atol=1e-5)


def test_the_normaliser_has_an_epsilon():
    """Keys so long that their features vanish attend to nothing: 0 / (0 + 1e-8), and not 0 / 0."""
    module = TokenPerformer(4)
    x = jnp.ones((1, 5, 12))
    given = variables(module, x)
    given["params"]["kqv"]["kernel"][:] = 0.0
    given["params"]["kqv"]["bias"][:] = [50.0] * 8 + [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_array_equal(attended(module, given, x), np.broadcast_to([1.0, 2, 3, 4], (1, 5, 4)))


def test_two_dropouts_after_projection_and_mlp():
    module = TokenPerformer(4, dropout=0.5)
    x = jnp.asarray(draw(1, 400, 12))
    given = variables(module, x)
    silent = silenced(given)
    values = silenced(given, proj=jax.tree.map(np.zeros_like, given["params"]["proj"]))

    @functools.partial(quick.jit, static_argnums=1)
    def run(given, train):
        return module.apply(given, x, train, rngs={"dropout": jax.random.key(0)})

    branch, dropped = (run(silent, train) - run(values, False) for train in (False, True))
    gone = np.isclose(dropped, 0, atol=1e-6)
    assert 0.4 < gone.mean() < 0.6
    np.testing.assert_allclose(dropped[~gone], 2 * branch[~gone], rtol=1e-3, atol=1e-4)
    gone = np.isclose(run(given, True), run(silent, True), atol=1e-6)
    assert 0.4 < gone.mean() < 0.6


def test_features_are_float32_under_bfloat16_and_float64_under_float64():
    module = TokenPerformer(4, dtype=jnp.bfloat16)
    x = jnp.asarray(draw(1, 5, 12))
    given = variables(module, x)
    program = str(jax.make_jaxpr(lambda x: module.apply(given, x))(x))
    exponentials = [line for line in program.splitlines() if " exp " in line]
    assert len(exponentials) == 2
    assert all("f32[1,5,2]" in line for line in exponentials)
    with jax.enable_x64(True):
        exact = TokenPerformer(4, dtype=jnp.float64)
        shape = jax.eval_shape(exact.apply, given, jax.ShapeDtypeStruct((1, 5, 12), jnp.float64))
        program = str(jax.make_jaxpr(exact.apply)(given, jax.ShapeDtypeStruct((1, 5, 12), jnp.float64)))
    assert shape.dtype == jnp.float64
    assert "f64[1,5,2] = exp" in program
