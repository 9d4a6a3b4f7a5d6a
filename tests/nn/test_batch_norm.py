"""BatchNorm by hand, in evaluation and in training, and against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.batch_norm import BatchNorm
from tests.quick import jit

PARAMS = {"scale": np.asarray([2.0, 1.0], np.float32), "bias": np.asarray([1.0, 0.0], np.float32)}
STATS = {"mean": np.asarray([3.0, -1.0], np.float32), "var": np.asarray([4 - 1e-5, 1 - 1e-5], np.float32)}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}


def test_evaluation_by_hand():
    x = jnp.asarray([[[[7.0, 1.0]], [[1.0, -1.0]]]])
    y = BatchNorm().apply(VARIABLES, x, train=False)
    np.testing.assert_allclose(y, [[[[5.0, 2.0]], [[-1.0, 0.0]]]], rtol=1e-6, atol=1e-6)


def test_training_by_hand():
    """Means 4 and 1, variances 8/3 and 6 over three numbers: 4 and 9 as the running ones see them."""
    x = jnp.asarray([[2.0, 1.0], [4.0, 4.0], [6.0, -2.0]])
    y, moved = BatchNorm(eps=0.0).apply(VARIABLES, x, train=True, mutable=["batch_stats"])
    root = (8 / 3) ** 0.5
    np.testing.assert_allclose(y[:, 0], [1 - 4 / root, 1, 1 + 4 / root], rtol=1e-6)
    np.testing.assert_allclose(y[:, 1], [0, 3 / 6**0.5, -3 / 6**0.5], rtol=1e-6)
    stats = moved["batch_stats"]
    np.testing.assert_allclose(stats["mean"], [0.9 * 3 + 0.1 * 4, -0.9 + 0.1], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [0.9 * 4 + 0.1 * 4, 0.9 + 0.1 * 9], rtol=1e-4)


def test_it_starts_as_the_identity_with_float32_variables():
    norm, x = BatchNorm(jnp.bfloat16, eps=0.0), jnp.asarray([[1.0, -3.0]], jnp.bfloat16)
    for train in (False, True):
        variables = norm.init(jax.random.key(0), x, train=train)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
        y = norm.apply(variables, x, train=False)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, x)


def test_bfloat16_is_normalised_in_float32():
    """The numbers are 256 and 258, neighbours in bfloat16: their mean is not one, and their variance is 1."""
    x = jnp.asarray([[256.0], [258.0]], jnp.bfloat16)
    norm = BatchNorm(jnp.bfloat16)
    y, moved = norm.apply(norm.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y.astype(jnp.float32), [[-1.0], [1.0]])
    np.testing.assert_allclose(moved["batch_stats"]["mean"], [25.7], rtol=1e-6)


@pytest.mark.peer
def test_matches_pytorch_with_gradients():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 4, 3, 5, 2)) + 1  # an input, and what the output is weighed by
    net = torch.nn.BatchNorm2d(2).double()
    with torch.no_grad():
        for name, array in zip(("weight", "bias", "running_mean"), rng.standard_normal((3, 2)), strict=True):
            getattr(net, name).copy_(torch.from_numpy(array))
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    with jax.enable_x64(True):
        v = {ours: jnp.asarray(getattr(net, theirs).detach().numpy()) for ours, theirs in names.items()}
        params, stats = {k: v[k] for k in ("scale", "bias")}, {k: v[k] for k in ("mean", "var")}

        @jit
        def ours(params, stats, x):
            def loss(params, x):
                variables = {"params": params, "batch_stats": stats}
                norm = BatchNorm(jnp.float64)
                y, moved = norm.apply(variables, x, train=True, mutable=["batch_stats"])
                return jnp.sum(y * weights), (moved["batch_stats"], norm.apply(variables, x, train=False))

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

        (gradients, dx), (moved, evaluated) = jax.device_get(ours(params, stats, jnp.asarray(x)))
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    before = net.eval()(theirs).detach()
    (net.train()(theirs) * torch.from_numpy(weights).permute(0, 3, 1, 2)).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(evaluated, before.permute(0, 2, 3, 1).numpy(), **close)
    np.testing.assert_allclose(dx, theirs.grad.permute(0, 2, 3, 1).numpy(), **close)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, getattr(net, names[name]).grad.numpy(), **close)
    for name, value in moved.items():
        np.testing.assert_allclose(value, getattr(net, names[name]).numpy(), **close)
