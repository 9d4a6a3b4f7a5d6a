"""How training batches reach the update: from a data set that lies on the device, or streamed from the host.

Both run the same update over the same order of examples (`lape_jax.data.order`), and both count the seconds that they
waited for data in `waited`.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lape_jax import tasks
from lape_jax.errors import UserError
from lape_jax.parallel import hosts, sharding
from lape_jax.parallel.arrays import blank, place
from lape_jax.train.state import TrainState

WAITS = 0.1  # of the time: a run that waits longer for its data says what helps
_UNREAD = -1.0  # mask of what could not be read, in the batches of several processes


class Resident:
    """Keeps the whole training set on every device and makes many steps per dispatch.

    One program serves any number of steps: the count is an argument of its loop, so a run that stops and resumes at
    other steps executes the very same code, and its results are the same bits.

    Args:
        update: (state, batch, *frozen) -> state, see `lape_jax.train.state.update_function`.
        data: the set, as `lape_jax.data.resident.load` returns it.
        shardings: how the state lies on the devices.
        mesh: the mesh of devices.
        indices: step -> the examples of its batch, (batch_size,); or (batch_size, b), if each row of a batch is a batch
            of b examples itself (`lape_jax.sweeps.seeds`).
        batch_size: rows of a step's batch.
        max_steps: most steps of a dispatch.
        frozen: further arguments of `update`, arrays on the devices.
        compiler_options: what `jax.jit` is given under that name.
    """

    def __init__(
        self,
        update: Callable,
        data: dict,
        shardings: Any,
        mesh: jax.sharding.Mesh,
        *,
        indices: Callable[[int], np.ndarray],
        batch_size: int,
        max_steps: int,
        frozen: tuple = (),
        compiler_options: dict | None = None,
    ):
        self.max_steps, self._frozen, self._mesh = max_steps, frozen, mesh
        self.waited = 0.0
        everywhere = sharding.replicated(mesh)
        rows = sharding.batch_sharding(mesh, batch_size)
        self._order = indices
        self._place = lambda array: place(array, everywhere)
        self._data = {name: self._place(array) for name, array in data.items()}

        def steps(state: TrainState, data: dict, indices, count, *frozen):
            def step(i, state):
                batch = {name: array[indices[i]] for name, array in data.items()}
                return update(state, jax.lax.with_sharding_constraint(batch, rows), *frozen)

            return jax.lax.fori_loop(0, count, step, state)

        self._steps = jax.jit(steps, donate_argnums=0, out_shardings=shardings, compiler_options=compiler_options)
        self._indices = np.zeros((max_steps, *indices(0).shape), np.int32)

    def run(self, state: TrainState, step: int, count: int) -> TrainState:
        """The state after `count` (at most `max_steps`) more steps from `step`."""
        start = time.perf_counter()
        indices = self._indices.copy()
        for i in range(count):
            indices[i] = self._order(step + i)
        indices = self._place(indices)
        self.waited += time.perf_counter() - start
        state = self._steps(state, self._data, indices, self._place(np.asarray(count, np.int32)), *self._frozen)
        return sharding.in_turn(state, self._mesh)

    def check(self, state: TrainState, step: int) -> None:
        """Nothing can go wrong between the steps."""

    def close(self) -> None:
        """Nothing to stop."""


class Streamed:
    """Takes one batch after the other from a host iterator; the next one is fetched and sent while the device works.

    A step is sent before the one before it has ended, so that the device goes from one to the next, and not before the
    one before that has: no more than two steps and three batches are on the device. What counts as waiting is the time
    in which the device had nothing to do.

    What cannot be read ends a run at the step before, which can still be saved. One process says so by raising
    UserError. Of several, the one concerned goes on with blank batches, because the others count on it and may be
    steps ahead; a blank part in a batch makes every update from there on leave the state as it is, on all processes,
    until they all ask (`check`).

    Args:
        update: (state, batch, *frozen) -> state.
        batches: this host's part of every batch, in order, with a `close` method.
        shardings: how the state lies on the devices.
        mesh: the mesh of devices.
        batch_size: examples of a step, over all hosts.
        shapes: shape and type of everything that one example has in a batch.
        frozen: further arguments of `update`, arrays on the devices.
        compiler_options: what `jax.jit` is given under that name.
    """

    max_steps = 1

    def __init__(
        self,
        update: Callable,
        batches: Iterator[dict],
        shardings: Any,
        mesh: jax.sharding.Mesh,
        *,
        batch_size: int,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        frozen: tuple = (),
        compiler_options: dict | None = None,
    ):
        self.waited, self._frozen, self._mesh = 0.0, frozen, mesh
        self._batches = batches
        self._rows = sharding.batch_sharding(mesh, batch_size)
        self._share = batch_size // sharding.host_share(mesh, batch_size).count
        self._shapes = shapes
        self._several = jax.process_count() > 1
        update = _unless_blank(update) if self._several else update
        # Beside the state, whose memory the next step takes over, something to wait for that stays.
        self._update = jax.jit(
            lambda state, *args: ((new := update(state, *args)), new.step + 1),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(mesh)),
            compiler_options=compiler_options,
        )
        self._failure: UserError | None = None
        self._fetcher, self._watcher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._last: Future[float] | None = None  # when the step that was sent last will have ended
        self._ahead = self._fetcher.submit(self._next)

    def run(self, state: TrainState, step: int, count: int) -> TrainState:
        """The state after `count` more steps from `step`, which must be where the batches stand."""
        for _ in range(count):
            start, before = time.perf_counter(), self._last
            batch = self._ahead.result()
            if before is None:
                self.waited += time.perf_counter() - start
            elif before.done():  # else the devices still have work, and do not wait
                self.waited += max(0.0, time.perf_counter() - max(start, before.result()))
            if isinstance(batch, UserError):
                raise batch  # before `state` is donated, so that it can still be saved
            self._ahead = self._fetcher.submit(self._next)  # before the step, which a CPU may make at once
            state, done = self._update(state, batch, *self._frozen)
            self._last = self._watcher.submit(_ended, sharding.in_turn(done, self._mesh))
            if before is not None:
                before.result()
        return state

    def check(self, state: TrainState, step: int) -> None:
        """Raises UserError if `state` stands before `step`: a process could not read its part of the batch after it."""
        if self._several and int(state.step) < step:
            hosts.fail_together(self._failure)

    def _next(self) -> dict | UserError | None:
        try:
            batch = next(self._batches, None) if self._failure is None else self._blank()
        except UserError as error:
            if not self._several:
                return error
            self._failure, batch = error, self._blank()
        return batch and {name: place(array, self._rows) for name, array in batch.items()}

    def _blank(self) -> dict:
        return blank(self._share, self._shapes, mask=_UNREAD)

    def close(self) -> None:
        """Stops the threads behind the batches, after the batch that is being made."""
        self._fetcher.shutdown()
        self._watcher.shutdown()
        self._batches.close()


def _ended(done: Any) -> float:
    """When it is there."""
    jax.block_until_ready(done)
    return time.perf_counter()


def _unless_blank(update: Callable) -> Callable:
    """`update`, but the state stays as it is where a part of the batch is blank."""

    def guarded(state: TrainState, batch: dict, *frozen: Any) -> TrainState:
        read = jnp.all(batch["mask"] != _UNREAD)
        # A select and no branch: it becomes part of the optimiser's loops, and costs nothing.
        return jax.tree.map(lambda new, old: jnp.where(read, new, old), update(state, batch, *frozen), state)

    return guarded


def hint(config: ConfigDict) -> str:
    """What helps a run that waits for its data, in a line."""
    task, data, cores = tasks.of(config), config.data, os.cpu_count() or 1
    ways = [f"--config.data.threads={cores}"] if data.threads < cores else []
    if "data.resident" not in task.ignores:
        ways.append("--config.data.resident=true for a set that fits on the device")
    ways.append("a smaller copy of the images (--short of python -m lape_jax.prepare)")
    if "packed" in task.sources and data.source != "packed":
        ways.append("a packed one (python -m lape_jax.prepare pack)")
    *others, last = ways
    shown = f"{', '.join(others)} or {last}" if others else last
    return f"the devices wait for data: what helps is {shown}"
