"""Variables that are no parameters: BatchNorms' statistics move with training, constants stay, all of it is state."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lape_jax.nn.batch_norm import BatchNorm
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify import loss as classify
from lape_jax.train import state
from lape_jax.train.checkpoint import Checkpoints
from tests import quick
from tests.quick import jit

RATE, DECAY, MOMENTUM = 0.1, 0.75, 0.1


class Normed(nn.Module):
    """A linear layer, BatchNorm, a constant added, a linear layer."""

    input_shape = (1, 2, 1)

    @nn.compact
    def __call__(self, images, train=False):
        x = BatchNorm(name="bn")(nn.Dense(4, name="fc")(images.reshape(len(images), -1)), train)
        shift = self.variable("constants", "shift", lambda: jax.random.normal(self.make_rng("params"), (4,)))
        return nn.Dense(3, name="head")(nn.relu(x + shift.value)), {}


def batch(seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 8).astype(np.int32)
    target = np.eye(3, dtype=np.float32)[label]
    image = rng.standard_normal((8, 1, 2, 1)).astype(np.float32) + 1
    return {"image": image, "label": label, "target": target, "mask": np.ones(8, np.float32)}


@functools.cache
def prepare(accumulate=1, ema=True):
    tx = optax.sgd(RATE)
    options = {"seed": 0, "accumulate": accumulate, "ema_decay": DECAY * ema}
    loss = classify.training_loss(Normed())
    update = state.update_function(loss, tx, lambda batch, key, step: batch, **options)
    return state.initialiser(Normed(), tx, ema, TASKS["classify"]), jit(update)


@functools.cache
def start(ema=True):
    return jax.device_get(jit(prepare(ema=ema)[0])(jax.random.key(0)))


def train(devices=1, steps=2, now=None, fsdp=1, **options):
    init, update = prepare(**options)
    mesh = sharding.make_mesh(SimpleNamespace(data=-1, fsdp=fsdp, tensor=1), jax.devices()[:devices])
    abstract = state.abstract(init, mesh, ((".*", "fsdp(1)"),))
    now = jax.device_put(now or start(), jax.tree.map(lambda leaf: leaf.sharding, abstract))
    for step in range(int(now.step), steps):
        now = update(now, jax.device_put(batch(step), sharding.batch_sharding(mesh, 8)))
    return jax.device_get(now)


@functools.cache
def trained():
    return train()


def by_hand(stats, params, rows):
    """The running statistics after a batch of `rows`, as BatchNorm's docstring says."""
    x = rows.reshape(len(rows), -1).astype(np.float64) @ params["fc"]["kernel"] + params["fc"]["bias"]
    found = {"mean": x.mean(0), "var": x.var(0, ddof=1)}
    return {name: (1 - MOMENTUM) * stats[name] + MOMENTUM * found[name] for name in found}


def assert_close(ours, theirs, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs)


def test_the_start_holds_all_collections():
    now = start()
    assert now.collections.keys() == {"batch_stats", "constants"}
    assert now.variables.keys() == now.ema.keys() == {"params", "batch_stats", "constants"}
    jax.tree.map(np.testing.assert_array_equal, now.ema, now.variables)
    assert now.collections["constants"]["shift"].any()


def test_statistics_move_and_constants_do_not():
    stats = start().collections["batch_stats"]["bn"]
    expected = by_hand(stats, start().params, batch(0)["image"])
    first = train(steps=1)
    assert_close(first.collections["batch_stats"]["bn"], expected)
    expected = by_hand(expected, first.params, batch(1)["image"])
    assert_close(trained().collections["batch_stats"]["bn"], expected)
    constants = (now.collections["constants"] for now in (start(), trained()))
    jax.tree.map(np.testing.assert_array_equal, *constants)


def test_the_average_is_that_of_parameters_and_statistics():
    first, second = train(steps=1).variables, trained().variables
    for name in ("params", "batch_stats"):
        expected = jax.tree.map(
            lambda a, b, c: DECAY**2 * a + (1 - DECAY) * (DECAY * b + c),
            start().variables[name], first[name], second[name],
        )  # fmt: skip
        assert_close(trained().ema[name], expected)
    jax.tree.map(np.testing.assert_array_equal, trained().ema["constants"], start().collections["constants"])


def test_statistics_pass_through_micro_batches_in_turn():
    """Row i belongs to micro-batch i mod 2; each is normalised by itself, as two batches of half the size would be."""
    stats, rows = start().collections["batch_stats"]["bn"], batch(0)["image"]
    for part in (rows[::2], rows[1::2]):
        stats = by_hand(stats, start().params, part)
    assert_close(train(steps=1, accumulate=2).collections["batch_stats"]["bn"], stats)


@pytest.mark.parametrize("accumulate", quick.first(1, [2, 1]))
def test_devices_share_the_statistics_of_the_batch(accumulate):
    one = trained() if accumulate == 1 else train(accumulate=2)
    eight = train(devices=8 // accumulate, fsdp=2, accumulate=accumulate)
    assert_close(eight, one)


def test_statistics_that_are_not_finite_are_noticed_though_the_loss_is():
    """The variance overflows, so that what is normalised by it is 0."""
    bad = batch() | {"image": 1e25 * batch()["image"]}
    now = prepare()[1](start(), bad)
    assert np.isfinite(float(now.sums["loss"]))
    assert not np.isfinite(now.collections["batch_stats"]["bn"]["var"]).all()
    assert int(now.first_bad_step) == 0


def test_resumed_from_a_checkpoint_it_ends_with_the_same_bits(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train(steps=1))
    restored, _ = Checkpoints(tmp_path, read_only=True).restore(jax.eval_shape(start))
    jax.tree.map(np.testing.assert_array_equal, train(now=jax.device_get(restored)), trained())


def test_checkpoints_from_before_there_were_collections(tmp_path):
    """Those of a model that has none are read; the field is the only difference."""
    now = start(ema=False).replace(collections={})
    old = {name: value for name, value in vars(now).items() if name != "collections"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, old)
    restored, _ = Checkpoints(tmp_path, read_only=True).restore(jax.eval_shape(lambda: now))
    assert jax.tree.structure(restored) == jax.tree.structure(now)
    jax.tree.map(np.testing.assert_array_equal, restored, now)


def test_evaluation_uses_the_running_statistics():
    """What `variables` and the average are for: the model takes them as they are."""
    image = jnp.asarray(batch()["image"])
    answers = [Normed().apply(v, image)[0] for v in (trained().variables, trained().ema, start().variables)]
    assert min(np.abs(a - b).max() for a, b in zip(answers, answers[1:] + answers[:1], strict=True)) > 1e-3
