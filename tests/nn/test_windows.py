"""Windows by hand: which tokens they hold, which of those see each other, and that blocks take turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn.block_options import BlockOptions
from lape_jax.nn.encoder import Carry, LayerInputs
from lape_jax.nn.join import JOINS
from lape_jax.nn.windows import MASKED, WindowBlock, Windows, reorder
from tests.quick import jit


def test_order_of_a_small_grid():
    windows = Windows((4, 4), 2, 1)
    np.testing.assert_array_equal(windows.order(False), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])
    # One token further down and right; the last window of a row or column goes on at the other end.
    np.testing.assert_array_equal(windows.order(True), [5, 6, 9, 10, 7, 4, 11, 8, 13, 14, 1, 2, 15, 12, 3, 0])
    assert Windows((2, 4), 2, 0).order(True).tolist() == Windows((2, 4), 2, 0).order(False).tolist()


def test_mask_of_a_small_grid():
    mask = Windows((4, 4), 2, 1).mask()
    assert mask.shape == (4, 4, 4)
    x = MASKED
    side_by_side = [[0, x, 0, x], [x, 0, x, 0], [0, x, 0, x], [x, 0, x, 0]]
    one_over_another = [[0, 0, x, x], [0, 0, x, x], [x, x, 0, 0], [x, x, 0, 0]]
    corners = [[0, x, x, x], [x, 0, x, x], [x, x, 0, x], [x, x, x, 0]]
    np.testing.assert_array_equal(mask, [np.zeros((4, 4)), side_by_side, one_over_another, corners])


def test_unmasked_tokens_are_near_and_masked_ones_are_not():
    """At the sizes of Swin's second stage; and every token is in one window."""
    windows = Windows((28, 28), 7, 3)
    order, mask = windows.order(True).reshape(-1, 49), windows.mask()
    assert sorted(order.reshape(-1)) == list(range(28 * 28))
    rows, columns = np.divmod(order, 28)
    apart = np.maximum(*(np.abs(axis[:, :, None] - axis[:, None, :]) for axis in (rows, columns)))
    np.testing.assert_array_equal(mask, np.where(apart < 7, 0, MASKED))


def test_reorder_and_its_gradient():
    order = jnp.asarray(np.random.default_rng(0).permutation(6))
    back = jnp.argsort(order)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 6, 3)), jnp.float32)
    np.testing.assert_array_equal(reorder(x, order, back), np.asarray(x)[:, order])
    np.testing.assert_array_equal(reorder(reorder(x, order, back), back, order), x)
    weights = np.arange(36.0, dtype="f").reshape(2, 6, 3)
    gradient = jit(jax.grad(lambda x: jnp.sum(weights * reorder(x, order, back))))(x)
    np.testing.assert_array_equal(gradient, weights[:, back])


@pytest.fixture(scope="module")
def touched():
    """By index of the block, which tokens depend on which, (n, n) each."""
    windows = {"relative_grid": (3, 3), "windows": Windows((6, 9), 3, 1)}
    options = BlockOptions(heads=1, mlp_hidden=4, join=JOINS["default"], ln_eps=1e-5, attention="xla", **windows)
    block = WindowBlock(options, stochastic_depth=False, train=False)
    carry = Carry(jnp.asarray(np.random.default_rng(0).standard_normal((1, 54, 4)), jnp.float32), None)

    def layer(index):
        return LayerInputs(jnp.zeros(()), None, jnp.asarray(index))

    params = jit(block.init)(jax.random.key(0), carry, layer(0))

    @jit
    def jacobian(index):
        return jax.jacrev(lambda x: block.apply(params, Carry(x, None), layer(index))[0].tokens[0, :, 0])(carry[0])

    return [np.abs(jacobian(index)).max((1, 3)) > 0 for index in (0, 1, 2)]


def test_tokens_depend_on_those_of_their_window(touched):
    row, column = np.divmod(np.arange(54), 9)
    window = 3 * (row // 3) + column // 3
    np.testing.assert_array_equal(touched[0], window[:, None] == window)
    np.testing.assert_array_equal(touched[2], touched[0])


def test_odd_blocks_have_shifted_windows(touched):
    """Bounded by the lines before tokens 1, 4 and 7, and by the border: what lies on both sides of it is kept apart."""
    row, column = np.divmod(np.arange(54), 9)
    window = 4 * ((row + 2) // 3) + (column + 2) // 3
    np.testing.assert_array_equal(touched[1], window[:, None] == window)
