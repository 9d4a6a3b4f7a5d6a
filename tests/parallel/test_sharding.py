"""Meshes, batches, and where parameters and their copies lie, on eight virtual CPU devices."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.models import rules
from lape_jax.parallel import sharding
from tests import quick


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
        ("tensor(1)", "config.mesh.tensor 2 does not divide that axis of 'w', whose shape is \\(6, 7\\)"),
    ],
)
def test_impossible_strategies_are_user_errors(strategy, message):
    with pytest.raises(UserError, match=message):
        spec(strategy, (6, 7), tensor=2)


def test_an_uncovered_parameter_is_a_user_error():
    with pytest.raises(UserError, match="sharding: no rule matches the parameter 'head/bias'"):
        sharding.param_shardings(shapes(head={"bias": (4,)}), mesh(), [("head/kernel", "replicate")])


class Device:
    """What `make_mesh` looks at in a device."""

    platform, device_kind, client = "fake", "fake", None

    def __init__(self, index, process_index):
        self.id, self.process_index = index, process_index

    def __repr__(self):
        return f"{self.process_index}:{self.id}"


def test_devices_of_a_process_follow_one_another(monkeypatch):
    # As on a TPU slice of 4 x 4 chips, where each process has a square of 2 x 2.
    devices = [Device(4 * y + x, 2 * (y // 2) + x // 2) for y in range(4) for x in range(4)]
    by_links = sharding.Mesh(np.array(devices).reshape(4, 4, 1), sharding.AXES)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "make_mesh", lambda *_, **__: by_links)
    found = mesh(data=4, fsdp=4).devices
    assert [[device.id for device in row] for row in found[:, :, 0]] == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


@pytest.mark.parametrize(
    ("sizes", "mine", "expected"),
    [
        ({}, range(4), (0, 2)),
        ({}, range(4, 8), (1, 2)),
        ({"fsdp": 2}, range(6, 8), (3, 4)),
        ({"data": 2, "tensor": 4}, range(4, 8), (1, 2)),
        ({"data": 2, "tensor": 4}, range(6, 8), (1, 2)),  # as the other process in this row
        ({"data": 1, "tensor": 8}, range(4), (0, 1)),
        ({}, range(8), (0, 1)),
    ],
)
def test_the_share_of_a_process(sizes, mine, expected, monkeypatch):
    where, held = mesh(**sizes), jax.devices()[mine.start : mine.stop]
    of_all = jax.sharding.NamedSharding.devices_indices_map
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {device: part for device, part in of_all(self, shape).items() if device in held},
    )
    assert sharding.host_share(where, 64) == expected


def test_unequal_shares_are_a_user_error(monkeypatch):
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda *_: {0: (slice(8, 24),), 1: (slice(24, 32),)},
    )
    with pytest.raises(UserError, match=r"mesh \(data 8 x fsdp 1 x tensor 1\) gives the processes unequal parts"):
        sharding.host_share(mesh(), 64)


def test_tensor_rules_split_heads_and_hidden_channels():
    params = vit_micro().param_shapes()
    where = rules.flat_names(sharding.param_shardings(params, mesh(data=2, fsdp=2, tensor=2), sharding.TENSOR))
    split = {name: found.spec for name, found in where.items() if found.spec != P()}
    assert split == {
        "blocks/attn/qkv/kernel": P(None, None, "tensor"),
        "blocks/attn/qkv/bias": P(None, "tensor"),
        "blocks/attn/proj/kernel": P(None, "tensor", None),
        "blocks/mlp/fc1/kernel": P(None, None, "tensor"),
        "blocks/mlp/fc1/bias": P(None, "tensor"),
        "blocks/mlp/fc2/kernel": P(None, "tensor", None),
    }  # too small for fsdp
    where = sharding.param_shardings(
        {"blocks": {"mlp": {"fc1": {"kernel": jnp.ones((2, 128, 256))}}}},
        mesh(data=2, fsdp=2, tensor=2),
        sharding.TENSOR,
    )
    assert jax.tree.leaves(where)[0].spec == P(None, "fsdp", "tensor")


def test_stages_are_split_as_one_encoder_is():
    params = models.create("swin_t", join="unshared", heads=(4, 8, 16, 32)).param_shapes()
    where = sharding.param_shardings(params, mesh(data=2, fsdp=2, tensor=2), sharding.TENSOR)
    split = {name: found.spec for name, found in rules.flat_names(where).items()}
    for stage in range(4):
        blocks = f"layers_{stage}/blocks"
        assert split[f"{blocks}/attn/qkv/kernel"] == split[f"{blocks}/mlp/fc1/kernel"] == P(None, "fsdp", "tensor")
        assert split[f"{blocks}/attn/proj/kernel"] == split[f"{blocks}/mlp/fc2/kernel"] == P(None, "tensor", "fsdp")
        assert split[f"{blocks}/attn/relative_position_bias_table"] == P(None, None, "tensor")
        assert split[f"pos_embed_{stage}"][0] is None  # counts blocks


def vit_micro():
    return models.create("vit_micro", num_classes=10, image_size=8, in_channels=1, width=16, depth=2, heads=2)


def collectives(model, where, strategies, *, pinned):
    """How many there are of each kind in the gradient of a sum of logits."""

    def total(params, images):
        return model.apply({"params": params}, images, train=False)[0].sum()

    shapes = model.param_shapes()
    placed = sharding.param_shardings(shapes, where, strategies)
    params = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    images = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32, sharding=sharding.batch_sharding(where, 16))
    gradient = jax.grad(total)
    gradient = sharding.pin_batch(gradient, where) if pinned else gradient
    compiled = quick.jit(gradient, out_shardings=placed).lower(params, images).compile().as_text()
    return collections.Counter(re.findall(r" (all-gather|all-to-all|collective-permute)(?:-start)?\(", compiled))


def test_fsdp_moves_weights_and_not_activations():
    where = mesh(data=2, fsdp=4)
    strategies = ((".*kernel", "fsdp(1)"), (".*", "replicate"))
    # Each of the four weights of a block on the way forth and back, the patches' and the head's once.
    found = collectives(vit_micro(), where, strategies, pinned=True)
    assert set(found) == {"all-gather"}
    assert found["all-gather"] <= 10
    assert collectives(vit_micro(), where, strategies, pinned=False).total() > found.total()


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
