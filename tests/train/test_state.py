"""The update by hand on a linear model, and on a tiny ViT: accumulation, determinism, one device against eight."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lape_jax import models
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.classify import loss as classify
from lape_jax.train import state
from tests.quick import jit

# ---- By hand: loss = sum over rows of mask * (w . x - y)^2 / 2, gradient descent at rate 1 ---------------------------


def squared_error(params, collections, batch, key):
    error = batch["x"] @ params["w"] - batch["y"]
    loss = jnp.sum(batch["mask"] * error**2) / 2
    sums = {"loss": loss, "top1": jnp.sum(batch["mask"] * (error == 0)), "examples": batch["mask"].sum()}
    return loss, (sums, collections)


def as_it_is(batch, key, step):
    return batch


def batch(x=((1, 0), (0, 1)), y=(0, 0), mask=(1, 1)):
    return {name: np.asarray(value, np.float32) for name, value in (("x", x), ("y", y), ("mask", mask))}


@functools.cache
def hand_update(ema_decay=0.0, accumulate=1, seed=0, loss=squared_error):
    tx = optax.sgd(1.0)
    update = state.update_function(loss, tx, as_it_is, seed=seed, accumulate=accumulate, ema_decay=ema_decay)
    params = {"w": jnp.asarray([1.0, 2.0])}
    start = state.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections={},
        ema={"params": params} if ema_decay else None,
        opt_state=tx.init(params),
        sums=state.zero_sums(TASKS["classify"]),
        first_bad_step=jnp.full((), state.NEVER, jnp.int32),
    )
    return jit(update), start


def test_two_updates_by_hand():
    update, now = hand_update(ema_decay=0.75)
    now = update(now, batch())  # gradient of the mean: (1, 2) / 2
    np.testing.assert_allclose(now.params["w"], [0.5, 1.0])
    np.testing.assert_allclose(now.ema["params"]["w"], [0.75 * 1 + 0.25 * 0.5, 0.75 * 2 + 0.25 * 1.0])
    now = update(now, batch())
    np.testing.assert_allclose(now.params["w"], [0.25, 0.5])
    np.testing.assert_allclose(now.ema["params"]["w"], [0.75 * 0.875 + 0.25 * 0.25, 0.75 * 1.75 + 0.25 * 0.5])
    assert int(now.step) == 2
    assert int(now.first_bad_step) == state.NEVER
    expected = {"loss": 2.5 + 0.625, "top1": 0, "examples": 4, "grad_norm": (1.25**0.5) * 1.5, "steps": 2}
    assert {name: float(value) for name, value in now.sums.items()} == pytest.approx(expected, rel=1e-6)


def test_masked_rows_do_not_count():
    update, start = hand_update()
    now = update(start, batch(mask=(1, 0)))
    np.testing.assert_allclose(now.params["w"], [0.0, 2.0])  # the mean is over one example
    assert float(now.sums["examples"]) == 1
    assert now.ema is None


def test_a_batch_of_masked_rows_changes_nothing():
    update, start = hand_update()
    now = update(start, batch(mask=(0, 0)))
    np.testing.assert_array_equal(now.params["w"], start.params["w"])
    assert int(now.first_bad_step) == state.NEVER
    assert (int(now.step), float(now.sums["examples"]), float(now.sums["steps"])) == (1, 0, 1)


def test_accumulation_by_hand():
    update, start = hand_update(accumulate=2)
    now = update(start, batch())
    np.testing.assert_allclose(now.params["w"], [0.5, 1.0])
    np.testing.assert_allclose(float(now.sums["loss"]), 2.5)
    now = update(start, batch(mask=(1, 0)))  # one micro-batch has nothing to learn from
    np.testing.assert_allclose(now.params["w"], [0.0, 2.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_bad_step_is_remembered(bad):
    update, now = hand_update()
    now = update(now, batch())
    now = update(now, batch(y=(bad, 0)))
    assert int(now.first_bad_step) == 1
    now = update(now, batch())  # its weights are NaN by now
    assert int(now.first_bad_step) == 1
    assert int(now.step) == 3


def root_error(params, collections, batch, key):
    loss = jnp.sum(jnp.sqrt(batch["x"] @ params["w"]))
    return loss, ({"loss": loss, "top1": loss, "examples": batch["mask"].sum()}, collections)


def test_a_bad_gradient_is_noticed_though_the_loss_is_finite():
    update, now = hand_update(loss=root_error)
    now = update(now, batch(x=((0, 0), (0, 0))))  # the slope of the root at 0
    assert float(now.sums["loss"]) == 0
    assert int(now.first_bad_step) == 0


def test_the_norm_of_gradients_whose_squares_overflow():
    """As LaPE's are with `sincos_2d` at initialisation, whose zero class row each PE LayerNorm amplifies."""
    huge = {"a": jnp.asarray([3e29, 0.0]), "b": jnp.asarray([-4e29])}
    np.testing.assert_allclose(state.global_norm(huge), 5e29, rtol=1e-6)
    assert float(state.global_norm({"a": jnp.zeros(3)})) == 0
    assert not np.isfinite(state.global_norm({"a": jnp.asarray([1.0, jnp.inf])}))
    assert not np.isfinite(state.global_norm({"a": jnp.asarray([1.0, jnp.nan])}))


def test_every_step_seed_and_micro_batch_draws_anew():
    def noise(params, collections, batch, key):
        value = jax.random.uniform(key) * (batch["x"] @ params["w"]).sum()  # row i has d/dw[i] = what was drawn for it
        return value, ({"loss": value, "top1": value, "examples": batch["mask"].sum()}, collections)

    def drawn(now, **options):
        after = hand_update(loss=noise, **options)[0](now, batch())
        return np.asarray(now.params["w"] - after.params["w"]).round(6).tolist()

    _, start = hand_update(loss=noise)
    both, again = drawn(start), drawn(start)
    assert both == again
    assert both[0] == both[1]
    first, second = drawn(start, accumulate=2)
    others = (drawn(start.replace(step=start.step + 1))[0], drawn(start, seed=1)[0], first, second)
    assert len({both[0], *others}) == 5


# ---- On a tiny ViT ---------------------------------------------------------------------------------------------------

TINY = {"num_classes": 3, "image_size": 4, "patch_size": 2, "in_channels": 1, "width": 8, "depth": 2, "heads": 2}
SPLIT = ((r"blocks/.*kernel|head/.*", "fsdp(1)"), (".*", "replicate"))


def images(seed=0):
    """Eight images, of which three do not count, among them all of the micro-batch 1 of 4: rows 1 and 5."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (8, 4, 4, 1), np.uint8),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "mask": np.asarray([1, 0, 0, 1, 1, 0, 1, 1], np.float32),
    }


def mesh_of(devices, fsdp=1):
    return sharding.make_mesh(SimpleNamespace(data=-1, fsdp=fsdp, tensor=1), jax.devices()[:devices])


@functools.cache
def prepare(stochastic=True, accumulate=1):
    """(init, update) of a tiny ViT; stochastic: with noise and stochastic depth."""
    model = models.create("vit_micro", **TINY, drop_path=0.3 * stochastic)

    def augment(batch, key, step):
        image = batch["image"] / 127.5 - 1
        noise = jax.random.normal(key, image.shape) / step.clip(1)
        return batch | {"image": image + noise * stochastic, "target": jax.nn.one_hot(batch["label"], 3)}

    tx = optax.sgd(0.5, momentum=0.9)
    loss = classify.training_loss(model)
    update = state.update_function(loss, tx, augment, seed=0, accumulate=accumulate, ema_decay=0.9)
    return state.initialiser(model, tx, ema=True, task=TASKS["classify"]), jit(update, donate_argnums=0)


@functools.cache
def start():
    """The state at step 0, on the host."""
    init, _ = prepare()
    return jax.device_get(jit(init)(jax.random.key(0)))


def train(devices=1, fsdp=1, **options):
    """The state after two updates, on the host."""
    init, update = prepare(**options)
    mesh = mesh_of(devices, fsdp)
    now = jax.device_put(start(), shardings_of(state.abstract(init, mesh, SPLIT)))
    for step in range(2):
        now = update(now, jax.device_put(images(step), sharding.batch_sharding(mesh, 8)))
    return jax.device_get(now)


def shardings_of(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


@pytest.fixture(scope="module")
def trained():
    return train()


def assert_close(ours, theirs, tolerance=1e-6):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


def assert_identical(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_the_state_at_the_start_and_later(trained):
    assert (int(start().step), int(start().first_bad_step)) == (0, state.NEVER)
    assert_identical(start().ema, start().variables)
    assert all(float(value) == 0 for value in start().sums.values())
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained.params, start().params)
    assert moved["pos_embed"] > 1e-4
    assert moved["blocks"]["pe_norm"]["scale"] > 1e-5
    assert float(trained.sums["examples"]) == 10


@pytest.mark.slow
def test_four_micro_batches_on_two_devices_equal_one_batch():
    assert_close(train(devices=2, stochastic=False, accumulate=4), train(stochastic=False))


@pytest.mark.slow
def test_the_same_again_gives_the_same_bits(trained):
    assert_identical(train(), trained)


def test_the_start_depends_on_the_seed_and_not_on_the_devices():
    init, _ = prepare()
    abstract = state.abstract(init, mesh_of(8, fsdp=4), SPLIT)
    created = state.create(init, abstract, seed=0)
    assert jax.tree.leaves(shardings_of(created)) == jax.tree.leaves(shardings_of(abstract))
    assert_close(jax.device_get(created), start())
    other = state.create(init, abstract, seed=1)
    assert np.abs(other.params["pos_embed"] - start().params["pos_embed"]).max() > 1e-3


def test_eight_devices_equal_one(trained):
    """The batch is split over all eight, and so are the larger parameters over four."""
    assert_close(train(devices=8, fsdp=4), trained)


def test_each_device_holds_its_shard_only():
    init = state.initialiser(models.create("vit_micro", **TINY), optax.adam(1e-3), ema=True, task=TASKS["classify"])
    abstract = state.abstract(init, mesh_of(8, fsdp=4), ((".*qkv/kernel", "fsdp(1)"), (".*", "replicate")))
    copies = (abstract.params, abstract.ema["params"], abstract.opt_state[0].mu, abstract.opt_state[0].nu)
    for tree in copies:
        kernel = tree["blocks"]["attn"]["qkv"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 6)
    assert abstract.step.sharding.is_fully_replicated


def test_uncovered_parameters_are_user_errors():
    init = state.initialiser(models.create("vit_micro", **TINY), optax.sgd(1.0), ema=False, task=TASKS["classify"])
    with pytest.raises(UserError, match="cls_token"):
        state.abstract(init, mesh_of(1), (("blocks/.*", "replicate"),))
