"""How training batches reach the update: from a data set that lies on the device, or streamed from the host.

Both run the same update over the same order of examples (`lape_jax.data.order`), and both count the seconds that they
waited for data in `waited`.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lape_jax.errors import UserError
from lape_jax.train import sharding
from lape_jax.train.state import TrainState


class Resident:
    """Keeps the whole training set on every device and makes many steps per dispatch.

    One program serves any number of steps: the count is an argument of its loop, so a run that stops and resumes at
    other steps executes the very same code, and its results are the same bits.

    Args:
        update: (state, batch, *frozen) -> state, see `lape_jax.train.state.update_function`.
        data: the set, as `lape_jax.data.resident.load` returns it.
        shardings: of the state.
        mesh: of the devices.
        indices: step -> the examples of its batch.
        batch_size: examples of a step.
        max_steps: most steps of a dispatch.
        frozen: further arguments of `update`, arrays on the devices.
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
    ):
        self.max_steps, self._frozen = max_steps, frozen
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

        self._steps = jax.jit(steps, donate_argnums=0, out_shardings=shardings)
        self._indices = np.zeros((max_steps, batch_size), np.int32)

    def run(self, state: TrainState, step: int, count: int) -> TrainState:
        """The state after `count` (at most `max_steps`) more steps from `step`."""
        start = time.perf_counter()
        indices = self._indices.copy()
        for i in range(count):
            indices[i] = self._order(step + i)
        indices = self._place(indices)
        self.waited += time.perf_counter() - start
        return self._steps(state, self._data, indices, np.int32(count), *self._frozen)

    def close(self) -> None:
        """Nothing to stop."""


class Streamed:
    """Takes one batch after the other from a host iterator; the next one is on its way while the device works.

    Args:
        update: (state, batch, *frozen) -> state.
        batches: this host's part of every batch, in order, with a `close` method.
        shardings: of the state.
        mesh: of the devices.
        batch_size: examples of a step, over all hosts.
        frozen: further arguments of `update`, arrays on the devices.
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
        frozen: tuple = (),
    ):
        self.waited, self._frozen = 0.0, frozen
        self._batches = batches
        self._rows = sharding.batch_sharding(mesh, batch_size)
        self._update = jax.jit(update, donate_argnums=0, out_shardings=shardings)
        self._ahead: dict | UserError | None = None

    def run(self, state: TrainState, step: int, count: int) -> TrainState:
        """The state after `count` more steps from `step`, which must be where the batches stand."""
        for _ in range(count):
            batch = self._next() if self._ahead is None else self._ahead
            if isinstance(batch, UserError):
                raise batch  # before `state` is donated, so that it can still be saved
            state = self._update(state, batch, *self._frozen)
            self._ahead = self._next()  # dispatch is asynchronous: the device is at work on the step meanwhile
        return state

    def _next(self) -> dict | UserError | None:
        start = time.perf_counter()
        try:
            batch = next(self._batches, None)
        except UserError as error:
            return error
        finally:
            self.waited += time.perf_counter() - start
        return batch and {name: place(array, self._rows) for name, array in batch.items()}

    def close(self) -> None:
        """Stops the threads behind the batches."""
        self._batches.close()


def place(array: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
    """This host's part of an array (all of it, if `where` replicates) as a global array on the devices."""
    return jax.make_array_from_process_local_data(where, array)
