"""Both feeds hand the same batches to the same update, in the order that (seed, step) says, however the run is cut."""

import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lape_jax.data import order
from lape_jax.errors import UserError
from lape_jax.parallel import sharding
from lape_jax.tasks import TASKS
from lape_jax.tasks.config import base
from lape_jax.train import feed
from lape_jax.train.state import TrainState

SIZE, BATCH, STEPS, SEED = 20, 8, 5, 3  # two batches an epoch
DATA = {
    "image": np.arange(SIZE, dtype=np.uint8).reshape(SIZE, 1, 1, 1),
    "label": np.arange(SIZE, dtype=np.int32),
    "mask": np.ones(SIZE, np.float32),
}


class Recorder:
    """An update that keeps the labels it sees in `params`, step by step, and counts how often it is traced."""

    def __init__(self):
        self.traced = 0

    def __call__(self, state, batch):
        self.traced += 1
        seen = state.params.at[state.step].set(batch["label"])
        return state.replace(step=state.step + 1, params=seen, ema=state.ema + batch["image"].sum(dtype=jnp.int32))


def mesh_of(devices):
    return sharding.make_mesh(SimpleNamespace(data=devices, fsdp=1, tensor=1), jax.devices()[:devices])


def start(mesh):
    state = TrainState(
        step=np.zeros((), np.int32),
        params=np.full((STEPS, BATCH), -1, np.int32),
        collections={},
        ema=np.zeros((), np.int32),
        opt_state=(),
        sums={},
        first_bad_step=np.full((), -1, np.int32),
    )
    return jax.device_put(state, sharding.replicated(mesh)), jax.tree.map(lambda _: sharding.replicated(mesh), state)


class Batches:
    """The batches from `first` to `stop`, as the pipeline makes them."""

    def __init__(self, first=0, stop=STEPS):
        self.steps, self.closed = iter(range(first, stop)), False

    def __iter__(self):
        return self

    def __next__(self):
        indices = order.batch_indices(SEED, next(self.steps), BATCH, SIZE)
        return {name: array[indices] for name, array in DATA.items()}

    def close(self):
        self.closed = True


def indices(step):
    return order.batch_indices(SEED, step, BATCH, SIZE)


def resident(update, mesh, shardings, first=0):
    return feed.Resident(update, DATA, shardings, mesh, indices=indices, batch_size=BATCH, max_steps=3)


def streamed(update, mesh, shardings, first=0):
    return feed.Streamed(update, Batches(first), shardings, mesh, batch_size=BATCH, shapes=SHAPES)


SHAPES = TASKS["classify"].shapes(base(), (1, 1, 1))
EXPECTED = np.stack([order.batch_indices(SEED, step, BATCH, SIZE) for step in range(STEPS)])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("open_feed", [resident, streamed])
@pytest.mark.parametrize("counts", [(1, 1, 3), (3, 2)], ids=str)
def test_the_order_is_that_of_seed_and_step(open_feed, counts, devices):
    mesh = mesh_of(devices)
    state, shardings = start(mesh)
    update = Recorder()
    batches = open_feed(update, mesh, shardings)
    step = 0
    for count in counts:
        state = batches.run(state, step, count)
        step += count
    traced = update.traced
    np.testing.assert_array_equal(state.params, EXPECTED)
    assert int(state.ema) == EXPECTED.sum()  # images belong to their labels
    assert int(state.step) == STEPS
    assert batches.waited > 0
    assert traced <= 2  # one program for all counts
    batches.close()


@pytest.mark.parametrize("open_feed", [resident, streamed])
def test_on_several_cpu_devices_a_program_waits_for_the_one_before(open_feed):
    def slow(state, batch):
        seen = jax.lax.fori_loop(0, 200, lambda _, x: x[::-1], batch["label"])
        return state.replace(step=state.step + 1, ema=state.ema + seen.sum())

    mesh = mesh_of(8)
    state, shardings = start(mesh)
    batches = open_feed(slow, mesh, shardings)
    for step in range(2):
        state = batches.run(state, step, 1)
        assert all(leaf.is_ready() for leaf in jax.tree.leaves(state))
    assert int(state.ema) == EXPECTED[:2].sum()
    batches.close()


@pytest.mark.parametrize("open_feed", [resident, streamed])
def test_a_resumed_run_goes_on_where_it_stopped(open_feed):
    mesh = mesh_of(1)
    state, shardings = start(mesh)
    update = Recorder()
    state = open_feed(update, mesh, shardings).run(state, 0, 2)
    resumed = open_feed(update, mesh, shardings, first=2)
    for step in (2, 3, 4):
        state = resumed.run(state, step, 1)
    np.testing.assert_array_equal(state.params, EXPECTED)


def test_epochs_are_permutations():
    for epoch in (EXPECTED[:2], EXPECTED[2:4]):
        assert len(set(epoch.flat)) == 2 * BATCH


def test_the_stream_is_closed_with_its_feed():
    mesh = mesh_of(1)
    batches = Batches()
    opened = feed.Streamed(Recorder(), batches, start(mesh)[1], mesh, batch_size=BATCH, shapes=SHAPES)
    opened.close()
    assert batches.closed


class Slow(Batches):
    """Batches that take their time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __next__(self):
        time.sleep(self.seconds)
        return super().__next__()


def slow_update(seconds):
    def wait(step):
        time.sleep(seconds)
        return step

    def update(state, batch):
        step = jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.int32), state.step)
        return Recorder()(state.replace(step=step), batch)

    return update


@pytest.mark.parametrize(("reading", "computing", "starved"), [(0.2, 0.0, True), (0.1, 0.5, False)])
def test_waiting_is_the_time_in_which_the_device_has_nothing_to_do(reading, computing, starved):
    mesh = mesh_of(1)
    state, shardings = start(mesh)
    source = Slow(reading)
    batches = feed.Streamed(slow_update(computing), source, shardings, mesh, batch_size=BATCH, shapes=SHAPES)
    state = batches.run(state, 0, 1)  # compiles
    before = batches.waited
    state = batches.run(state, 1, STEPS - 1)
    if starved:
        assert batches.waited - before > 0.5 * (STEPS - 1) * reading
    else:
        assert batches.waited - before < 0.75 * (STEPS - 1) * reading
    np.testing.assert_array_equal(state.params, EXPECTED)
    batches.close()


class Step:
    """The end of a step, which is noted when somebody waits for it; it comes when the `needed` one has been sent."""

    def __init__(self, number, needed, events):
        self.number, self.needed, self.events = number, needed, events

    def block_until_ready(self):
        assert self.needed.wait(60)
        self.events.append(f"step {self.number} ends")
        return self


def test_two_steps_are_in_flight():
    """The host sends step k+1, and reads the batch after it, before step k ends; it waits for k before it sends k+2."""
    mesh, events = mesh_of(1), []
    sent = [threading.Event() for _ in range(STEPS + 1)]
    batches = feed.Streamed(Recorder(), Batches(), start(mesh)[1], mesh, batch_size=BATCH, shapes=SHAPES)

    def update(state, batch):
        events.append(f"step {state} is sent")
        sent[state].set()
        return state + 1, Step(state, sent[min(state + 1, STEPS - 1)], events)

    batches._update = update
    assert batches.run(0, 0, STEPS) == STEPS
    batches.close()
    for step in range(STEPS - 1):
        assert events.index(f"step {step + 1} is sent") < events.index(f"step {step} ends")
    for step in range(STEPS - 2):
        assert events.index(f"step {step} ends") < events.index(f"step {step + 2} is sent")


class Failing(Batches):
    """Batches of which the fourth cannot be read."""

    def __init__(self):
        super().__init__(stop=3)

    def __next__(self):
        try:
            return super().__next__()
        except StopIteration:
            raise UserError("the disk is gone") from None


def test_what_cannot_be_read_leaves_the_state_of_the_step_before():
    mesh = mesh_of(1)
    state, shardings = start(mesh)
    batches = feed.Streamed(Recorder(), Failing(), shardings, mesh, batch_size=BATCH, shapes=SHAPES)
    for step in range(3):
        state = batches.run(state, step, 1)
        batches.check(state, step + 1)
    with pytest.raises(UserError, match="the disk is gone"):
        batches.run(state, 3, 1)
    assert int(state.step) == 3  # and it has not been donated


def test_several_processes_stand_still_instead(monkeypatch):
    mesh = mesh_of(8)
    state, shardings = start(mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    batches = feed.Streamed(Recorder(), Failing(), shardings, mesh, batch_size=BATCH, shapes=SHAPES)
    monkeypatch.undo()
    for step in range(5):
        state = batches.run(state, step, 1)
        if step < 3:
            batches.check(state, step + 1)
    assert int(state.step) == 3
    np.testing.assert_array_equal(state.params, np.where(np.arange(STEPS)[:, None] < 3, EXPECTED, -1))
    assert int(state.ema) == EXPECTED[:3].sum()
    with pytest.raises(UserError, match="the disk is gone"):
        batches.check(state, 5)


def test_batches_are_split_over_the_devices():
    mesh = mesh_of(8)
    placed = feed.place(DATA["label"][:16], sharding.batch_sharding(mesh, 16))
    assert [shard.data.tolist() for shard in placed.addressable_shards] == [[i, i + 1] for i in range(0, 16, 2)]
    everywhere = feed.place(DATA["label"], sharding.replicated(mesh))
    assert {shard.data.shape for shard in everywhere.addressable_shards} == {(SIZE,)}
