"""Meshes, batches, and where parameters and their copies lie, on eight virtual CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from lape_jax.errors import UserError
from lape_jax.train import sharding


def mesh(data=-1, fsdp=1, tensor=1, devices=None):
    return sharding.make_mesh(ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor}), devices)


def shapes(**tree):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda s: isinstance(s, tuple))


def spec(strategy, shape, name="w", **sizes):
    return sharding.param_shardings(shapes(**{name: shape}), mesh(**sizes), [(".*", strategy)])[name].spec


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 8}, (1, 8, 1)),
    ],
)
def test_mesh_shape(sizes, expected):
    assert dict(mesh(**sizes).shape) == dict(zip(("data", "fsdp", "tensor"), expected, strict=True))


def test_mesh_of_some_devices():
    assert list(mesh(devices=jax.devices()[:3]).devices.flat) == jax.devices()[:3]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "mesh \\(data -1, fsdp 3, tensor 1\\) does not fit 8 devices"),
        ({"data": 4}, "does not fit 8 devices: the sizes must multiply to 8"),
        ({"data": 16}, "does not fit 8 devices"),
        ({"fsdp": -1}, "at most one of them -1"),
        ({"tensor": 0}, "must be positive"),
        ({"data": -2}, "must be positive"),
    ],
)
def test_impossible_meshes_are_user_errors(sizes, message):
    with pytest.raises(UserError, match=message):
        mesh(**sizes)


def test_batch_is_split_over_data_and_fsdp():
    where = sharding.batch_sharding(mesh(data=2, fsdp=2, tensor=2), 8)
    batch = jax.device_put(np.arange(16).reshape(8, 2), where)
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2)}
    with pytest.raises(UserError, match=r"eval_batch_size 6 does not divide over 4 devices.*multiple of 4"):
        sharding.batch_sharding(mesh(data=2, fsdp=2, tensor=2), 6, setting="eval_batch_size")


@pytest.mark.parametrize(
    ("strategy", "shape", "expected"),
    [
        ("replicate", (8, 8), P()),
        ("fsdp(0)", (4, 12, 6), P(None, "fsdp", None)),  # the largest axis
        ("fsdp(0)", (4, 13, 6), P("fsdp", None, None)),  # the largest that 4 divides
        ("fsdp(0)", (8, 8), P(None, "fsdp")),  # of equal ones the last
        ("fsdp(0)", (5, 7), P()),
        ("fsdp(0)", (), P()),
        ("fsdp(33)", (4, 8), P()),
        ("fsdp(32)", (4, 8), P(None, "fsdp")),
        ("fsdp", (4, 8), P()),  # below the default limit
        ("fsdp", (128, 128), P(None, "fsdp")),
        ("tensor(-1)", (3, 6), P(None, "tensor")),
        ("tensor(0)", (6, 3), P("tensor", None)),
        ("fsdp(0)+tensor(-1)", (8, 16), P("fsdp", "tensor")),
        ("tensor(-2) + fsdp(0)", (16, 8), P("tensor", "fsdp")),
    ],
)
def test_strategies(strategy, shape, expected):
    assert spec(strategy, shape, data=1, fsdp=4, tensor=2) == expected


@pytest.mark.parametrize(("path", "shape"), [("blocks/fc1/kernel", (16, 4, 8)), ("pos_embed", (16, 5, 8))])
def test_the_layer_axis_is_never_split(path, shape):
    tree = {"blocks": {"fc1": {"kernel": shape}}} if "/" in path else {path: shape}
    (where,) = jax.tree.leaves(sharding.param_shardings(shapes(**tree), mesh(fsdp=4), [(".*", "fsdp(0)")]))
    assert where.spec == P(None, None, "fsdp")
    with pytest.raises(UserError, match="counts layers"):
        sharding.param_shardings(shapes(**tree), mesh(tensor=4), [(".*", "tensor(0)")])


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("fsdpp", "'fsdpp' is not one of replicate, fsdp.*did you mean 'fsdp'"),
        ("tensor", "'tensor' is not one of .*did you mean 'tensor\\(axis\\)'"),
        ("tensor(0)+tensor(1)", "only one fsdp and one tensor"),
        ("replicate+fsdp", "only one fsdp and one tensor"),
        ("tensor(2)", "'w' of shape \\(6, 7\\) has no such axis"),
        ("tensor(-3)", "'w' of shape \\(6, 7\\) has no such axis"),
        ("tensor(1)", "2 devices do not divide axis 1 of 'w', whose shape is \\(6, 7\\)"),
    ],
)
def test_impossible_strategies_are_user_errors(strategy, message):
    with pytest.raises(UserError, match=message):
        spec(strategy, (6, 7), tensor=2)


def test_an_uncovered_parameter_is_a_user_error():
    with pytest.raises(UserError, match="sharding: no rule matches the parameter 'head/bias'"):
        sharding.param_shardings(shapes(head={"bias": (4,)}), mesh(), [("head/kernel", "replicate")])


def test_state_lies_as_its_parameters():
    params = shapes(kernel=(8, 4), head={"kernel": (4, 16), "bias": (16,)}, blocks={"norm1": {"scale": (8, 16)}})
    strategies = [(".*/bias", "replicate"), (".*", "fsdp(0)")]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_learning_rate(lambda t: 0.1))

    def create():
        p = jax.tree.map(lambda s: jnp.ones(s.shape), params)
        return {
            "step": jnp.int32(0),
            "params": p,
            "ema": p,
            "opt_state": tx.init(p),
            "odd": {"head": {"kernel": 1.0 * jnp.ones(3)}},
        }

    m = mesh(fsdp=4)
    state = jax.eval_shape(create)
    where = sharding.state_shardings(state, params, m, strategies)
    expected = sharding.param_shardings(params, m, strategies)
    assert expected["kernel"].spec == P("fsdp", None)
    assert expected["head"]["kernel"].spec == P(None, "fsdp")
    assert where["params"] == where["ema"] == expected
    adam = where["opt_state"][1]
    assert adam.mu == adam.nu == expected
    everything_else = [
        where["step"],
        adam.count,
        where["odd"]["head"]["kernel"],
        *jax.tree.leaves(where["opt_state"][2]),
    ]
    assert all(s == sharding.replicated(m) for s in everything_else)
    made = jax.jit(create, out_shardings=where)()
    assert {s.data.shape for s in made["opt_state"][1].mu["head"]["kernel"].addressable_shards} == {(4, 4)}
    assert {s.data.shape for s in made["ema"]["blocks"]["norm1"]["scale"].addressable_shards} == {(8, 4)}


def test_a_split_matmul_gives_the_same_numbers():
    m = mesh(data=2, fsdp=2, tensor=2)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 16)).astype(np.float32), rng.normal(size=(16, 32)).astype(np.float32)
    where = sharding.param_shardings({"w": w}, m, [(".*", "fsdp(0)+tensor(-1)")])
    split = jax.device_put({"w": w}, where)
    out = jax.jit(lambda x, p: x @ p["w"])(jax.device_put(x, sharding.batch_sharding(m, 8)), split)
    np.testing.assert_allclose(out, x @ w, rtol=1e-5, atol=1e-5)
