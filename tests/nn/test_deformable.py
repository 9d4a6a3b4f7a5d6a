"""Deformable attention: both ways of sampling, by hand and against each other; what it starts from; its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.nn import deformable
from lape_jax.nn.deformable import DeformableAttention, by_gathers, by_products, centres, sample
from tests.quick import jit
from tests.reference.cases import uniform

FORMS = [by_gathers, by_products, sample]
each_form = pytest.mark.parametrize("form", FORMS, ids=["gathers", "products", "chosen"])
ROWS, COLUMNS, QUERIES, POINTS = 5, 7, 11, 3


def by_hand(maps, x, y, weights):
    """One point at a time, in NumPy."""
    batch, heads, rows, columns, channels = maps.shape
    found = np.zeros((batch, heads, x.shape[-1], channels))
    for b, h, p, n in np.ndindex(x.shape):
        left, top = int(np.floor(x[b, h, p, n])), int(np.floor(y[b, h, p, n]))
        for row in (top, top + 1):
            for column in (left, left + 1):
                if 0 <= row < rows and 0 <= column < columns:
                    near = (1 - abs(y[b, h, p, n] - row)) * (1 - abs(x[b, h, p, n] - column))
                    found[b, h, n] += weights[b, h, p, n] * near * maps[b, h, row, column]
    return found


def arguments():
    """Random ones, with more than a third of the points outside of the map, some of them far away."""
    shape = (2, 2, POINTS, QUERIES)
    x = (COLUMNS - 1) / 2 + 0.37 * COLUMNS * uniform("x", shape)
    y = (ROWS - 1) / 2 + 0.37 * ROWS * uniform("y", shape)
    x[0, 0, 0, :2], y[0, 0, 0, :2] = (-1e6, 3.0), (1.0, 1e6)
    outside = (x < -0.5) | (x > COLUMNS - 0.5) | (y < -0.5) | (y > ROWS - 0.5)
    assert 0.35 < outside.mean() < 0.45
    return uniform("maps", (2, 2, ROWS, COLUMNS, 4)), x, y, uniform("weights", shape)


def small_blocks(monkeypatch):
    """Such as do not divide the queries."""
    monkeypatch.setattr(deformable, "FETCHED", 4)
    monkeypatch.setattr(deformable, "MULTIPLIED", 5)


@each_form
def test_by_hand(form, monkeypatch):
    small_blocks(monkeypatch)
    given = arguments()
    with jax.enable_x64(True):
        found = jit(lambda *given: form(*given))(*map(jnp.asarray, given))
    np.testing.assert_allclose(found, by_hand(*given), rtol=0, atol=1e-13)


@each_form
def test_gradients_are_differences(form, monkeypatch):
    small_blocks(monkeypatch)
    given, step = arguments(), 1e-6
    g = uniform("g", (2, 2, QUERIES, 4))
    with jax.enable_x64(True):
        found = jit(jax.grad(lambda *given: jnp.sum(form(*given) * g), argnums=(0, 1, 2, 3)))(*map(jnp.asarray, given))
    for number, gradient in enumerate(found):
        direction = uniform(f"direction {number}", given[number].shape)
        ends = [[*given[:number], given[number] + sign * direction, *given[number + 1 :]] for sign in (step, -step)]
        difference = np.sum((by_hand(*ends[0]) - by_hand(*ends[1])) * g) / (2 * step)
        assert np.sum(np.asarray(gradient) * direction) == pytest.approx(difference, rel=1e-7)


@each_form
def test_derivatives_on_a_pixel_are_those_to_the_right(form):
    """Where offsets start, many points lie exactly on pixels; PyTorch's derivatives there are one-sided, too."""
    maps = jnp.arange(12.0).reshape(1, 1, 3, 4, 1) ** 2
    at = lambda value: jnp.full((1, 1, 1, 1), value)  # noqa: E731
    slope = jit(jax.grad(lambda x, y: form(maps, x, y, at(1.0)).sum(), argnums=(0, 1)))
    np.testing.assert_allclose(slope(at(1.0), at(1.0)), [[[[[36.0 - 25.0]]]], [[[[81.0 - 25.0]]]]])
    np.testing.assert_allclose(slope(at(-1.0), at(1.0)), [[[[[16.0]]]], [[[[0.0]]]]])  # into the map
    np.testing.assert_allclose(slope(at(3.0), at(2.0)), [[[[[-121.0]]]], [[[[-121.0]]]]])  # and out of it


def test_bfloat16_maps_give_float32_sums():
    maps, *points = (jnp.asarray(part, jnp.float32) for part in arguments())
    exact = jit(by_gathers)(maps, *points)
    for form in (by_gathers, by_products):
        found = jit(form)(maps.astype(jnp.bfloat16), *points)
        assert found.dtype == jnp.float32
        assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


def test_centres():
    np.testing.assert_allclose(centres((2, 1)), [[0.5, 0.25], [0.5, 0.75]])
    np.testing.assert_allclose(centres((1, 2)), [[0.25, 0.5], [0.75, 0.5]])


def test_where_heads_look_at_first():
    attention = DeformableAttention(heads=4, points=2)
    x = jnp.ones((1, 2, 8))
    run = functools.partial(attention.init, references=centres((1, 2)), shapes=[(1, 2)])
    params = jit(lambda x: run(jax.random.key(0), x, values=x))(x)["params"]
    offsets = params["sampling_offsets"]
    assert not offsets["kernel"].any()
    first = np.asarray([[1, 0], [0, 1], [-1, 0], [0, -1]])
    np.testing.assert_allclose(offsets["bias"].reshape(4, 2, 2), np.stack([first, 2 * first], axis=1), atol=1e-6)
    assert not any(leaf.any() for leaf in params["attention_weights"].values())
    bound = (6 / 16) ** 0.5  # Xavier's
    assert 0.8 * bound < np.abs(params["value_proj"]["kernel"]).max() <= bound
    six = deformable._directions(6, 1, 1).reshape(6, 2)
    np.testing.assert_allclose(np.abs(six).max(axis=1), 1)
    np.testing.assert_allclose(six[1], [3**-0.5, 1], rtol=1e-6)


def test_the_gradient_keeps_nothing_but_its_arguments():
    """Not the pixels around each point, of which there are 4 x 4 for each query."""
    shape = jax.ShapeDtypeStruct
    maps, points = shape((1, 1, 16, 16, 32), jnp.float32), shape((1, 1, 4, 512), jnp.float32)
    residuals = jax.eval_shape(lambda *given: jax.vjp(sample, *given)[1], maps, points, points, points)
    assert sum(leaf.size for leaf in jax.tree.leaves(residuals)) == 16 * 16 * 32 + 3 * 4 * 512


@pytest.mark.peer
def test_is_that_of_the_reference():
    """With 37 % of the points outside of the three maps."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_deformable import Deformable, reference_points

    shapes, grid, width = [(10, 18), (5, 9), (3, 4)], (5, 9), 12
    names = {"value_proj": width, "sampling_offsets": 2 * 2 * 3 * 3, "attention_weights": 2 * 3 * 3}
    names["output_proj"] = width
    params = {}
    for name, outputs in names.items():
        spread = 4.0 if name == "sampling_offsets" else 1.0
        params[name] = {"kernel": uniform(name, (width, outputs)) * spread / width**0.5}
        params[name]["bias"] = spread * uniform(f"{name} bias", (outputs,))
    queries, values = uniform("queries", (2, 45, width)), uniform("values", (2, 237, width))
    g = uniform("g", (2, 45, width))
    attention = DeformableAttention(heads=2, points=3, dtype=jnp.float64)

    def loss(params, queries, values):
        y = attention.apply({"params": params}, queries, centres(grid), values, shapes)
        return jnp.sum(y * g), y

    with jax.enable_x64(True):
        found, y = jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, queries, values)
    leaf = lambda x: torch.from_numpy(np.array(x)).requires_grad_()  # noqa: E731
    state = {f"a.{n}.weight": leaf(p["kernel"].T) for n, p in params.items()}
    state |= {f"a.{n}.bias": leaf(p["bias"]) for n, p in params.items()}
    theirs = leaf(queries), leaf(values)
    result = Deformable(2, 3)(state, "a", theirs[0], reference_points([grid], theirs[0]), theirs[1], shapes)
    (result * torch.from_numpy(g)).sum().backward()
    np.testing.assert_allclose(y, result.detach().numpy(), rtol=0, atol=1e-11)
    for name, part in found[0].items():
        np.testing.assert_allclose(part["kernel"].T, state[f"a.{name}.weight"].grad, rtol=0, atol=1e-9)
        np.testing.assert_allclose(part["bias"], state[f"a.{name}.bias"].grad, rtol=0, atol=1e-9)
    for mine, other in zip(found[1:], theirs, strict=True):
        np.testing.assert_allclose(mine, other.grad, rtol=0, atol=1e-10)
