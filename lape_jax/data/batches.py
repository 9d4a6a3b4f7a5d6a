"""Batches made ahead of the step by threads (Grain), the same whoever makes them.

Which examples a batch holds, and how each is read, is a function of (seed, step, position in the global batch) alone.
So a run resumes at any step at once, on any number of hosts or threads, with the same pixels.
"""

import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import grain
import numpy as np

from lape_jax.data import order
from lape_jax.data.corrupt import CorruptImage, CorruptLog
from lape_jax.data.example import Source
from lape_jax.data.order import ALL, Order, Share
from lape_jax.errors import UserError

Item = TypeVar("Item")
# Examples per task: handing a task to a thread costs as much time as decoding a tiny image.
_CHUNK = 8
PREFETCH = 2  # whole batches kept ready, beside those that the threads work on


# A host's share of a global batch, by name: "image", uint8 (b, height, width, channels), or canvases and the "size" of
# the images on them (`lape_jax.data.canvas`); what is to be learned of it, "label" or more; and "mask", float32 (b,).
# Where the mask is 0 there is no example: all else is zero there.
Batch = dict[str, np.ndarray]
# Shape and type of what a batch has of one example, by name.
Fields = Mapping[str, tuple[tuple[int, ...], Any]]
CLASS: Fields = {"label": ((), np.int32)}
# (step, some consecutive positions in the global batch, these rows of the batch, stopped) -> those that cannot be read.
# It writes the rows in place, and gives up with CancelledError once `stopped` is set.
Fill = Callable[[int, range, Batch, threading.Event], Sequence[CorruptImage]]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one process reads to train on, and how.

    Attributes:
        order: the order of the examples.
        steps: the steps whose batches are made.
        share: the part of every batch that this process reads.
        threads: how many read at a time.
        max_corrupt: how many distinct corrupt examples are tolerated, on each process.
        prefetch: whole batches that are kept ready, beside those that the threads work on.
    """

    order: Order
    steps: range
    share: Share = ALL
    threads: int = 8
    max_corrupt: int = 0
    prefetch: int = PREFETCH

    @classmethod
    def of(cls, config: Any, start: int, total: int, share: Share) -> "Reading":
        """What the steps start .. total-1 of a run with this config read."""
        data = config.data
        return cls(Order.of(config), range(start, total), share, data.threads, data.max_corrupt, data.prefetch)

    @property
    def positions(self) -> range:
        """Positions of the share in the global batch."""
        return self.share.positions(self.order.batch_size)


def shuffled_batches(
    source: Source[Item],
    read: Callable[[Item, np.random.Generator], tuple],
    shape: tuple[int, int, int],
    reading: Reading,
    *,
    fields: Fields = CLASS,
    chunk: int = _CHUNK,
) -> "Batches":
    """The batches that are asked for: shuffled epochs of what `read` makes of the source's items.

    An item for which reading raises CorruptImage is skipped (mask 0), logged once, and listed in `Batches.corrupt`.

    Args:
      read: (item, the randomness of its place) -> (pixels, label), or more in the order of the `fields`, in threads.
      shape: the shape of the pixels.
      fields: what is to be learned.
      chunk: how many items are a task for a thread.

    Raises:
      UserError: a batch that does not fit the data set or the processes; while iterating: what `read` raises, or too
        many corrupt items.
    """
    indices, seed = shuffled_indices(len(source), reading), reading.order.seed

    def read_at(step: int, position: int) -> tuple:
        return read(source[int(indices(step)[position])], order.augment_rng(seed, step, position))

    return asked(one_by_one(read_at), reading, {"image": (shape, np.uint8), **fields}, chunk)


def asked(
    fill: "Fill",
    reading: Reading,
    fields: Fields,
    chunk: int,
    allocate: Callable[[tuple[int, ...], Any], np.ndarray] = np.zeros,
) -> "Batches":
    """The batches that are asked for, whose rows are written by `fill`."""
    return Batches(
        fill,
        reading.steps,
        reading.positions,
        fields,
        reading.threads,
        reading.max_corrupt,
        chunk,
        allocate,
        reading.prefetch,
    )


def shuffled_indices(count: int, reading: Reading) -> Callable[[int], np.ndarray]:
    """The function step -> the examples of its batch, of `count` examples, for the threads of a reading.

    Raises:
      UserError: as `order.steps_per_epoch`.
    """
    reading.order.steps_per_epoch(count)  # fails here, not in a thread
    shuffling = threading.Lock()  # or at the start of an epoch every thread would shuffle it, all at the same time

    @functools.lru_cache(maxsize=max(8, reading.threads + 1))  # as many steps as threads may work on at once
    def indices(step: int) -> np.ndarray:
        with shuffling:
            return reading.order.indices(step, count)

    return indices


def one_by_one(read: Callable[[int, int], tuple | None]) -> Fill:
    """Fills rows with what `read` makes of (step, position in the global batch).

    Args:
      read: gives the values of the fields in their order, None for a place to be left empty, or raises CorruptImage.
    """

    def fill(step: int, positions: range, rows: Batch, stopped: threading.Event) -> list[CorruptImage]:
        arrays = [array for name, array in rows.items() if name != "mask"]
        corrupt = []
        for row, position in enumerate(positions):
            if stopped.is_set():
                raise CancelledError
            try:
                if (found := read(step, position)) is not None:
                    for array, value in zip(arrays, found, strict=True):
                        array[row] = value
                    rows["mask"][row] = 1
            except CorruptImage as error:
                corrupt.append(error)
        return corrupt

    return fill


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some rows of the batch of a step, and what went wrong with them (the rest is of no use after a failure)."""

    step: int
    batch: Batch  # all of it
    corrupt: Sequence[CorruptImage] = ()
    failure: Exception | None = None  # carried, because Grain rewrites the message of an exception that it passes on


class Batches(Iterator[Batch]):
    """Iterates over batches that threads make ahead of time, beginning as soon as this is created.

    Close it, or use it as a context manager, to stop the threads before the end. An error in a thread is raised by
    next() when its batch is due, and closes it.

    Args:
      fill: writes rows of a batch, in threads.
      steps: those to make, one batch each.
      positions: those that belong to this process.
      fields: what a batch has of an example, beside the mask: the image first.
      threads: how many read at a time.
      max_corrupt: how many distinct corrupt images are tolerated.
      chunk: how many examples are a task for a thread.
      allocate: (shape, type) -> an array of a batch; `np.zeros` or a faster one, whose content `fill` then replaces.
      prefetch: whole batches kept ready, beside those that the threads work on.
    """

    def __init__(
        self,
        fill: Fill,
        steps: range,
        positions: range,
        fields: Fields,
        threads: int,
        max_corrupt: int,
        chunk: int = _CHUNK,
        allocate: Callable[[tuple[int, ...], Any], np.ndarray] = np.zeros,
        prefetch: int = PREFETCH,
    ):
        if threads < 1:
            raise UserError(f"data.threads is {threads}, but at least one thread must read")
        fields = {**fields, "mask": ((), np.float32)}
        count = len(positions)
        chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
        stopped, begun, beginning = threading.Event(), {}, threading.Lock()

        def batch_of(step: int) -> Batch:
            """That all threads write into: what they make is where it belongs at once."""
            with beginning:
                if step not in begun:
                    begun[step] = {name: allocate((count, *shape), kind) for name, (shape, kind) in fields.items()}
                return begun[step]

        def make_part(task: int) -> _Part:
            place, part = divmod(task, len(chunks))
            step, rows = steps[place], chunks[part]
            batch = batch_of(step)
            own = {name: array[rows.start : rows.stop] for name, array in batch.items()}
            try:
                return _Part(step, batch, fill(step, positions[rows.start : rows.stop], own, stopped))
            except CancelledError:  # reaches nobody, but ends the making of a batch that nobody will look at
                raise
            except Exception as error:
                return _Part(step, batch, failure=error)

        def join(parts: Sequence[_Part]) -> _Part:
            with beginning:
                batch = begun.pop(parts[0].step)
            failures = [part.failure for part in parts if part.failure is not None]
            corrupt = tuple(error for part in parts for error in part.corrupt)
            return _Part(parts[0].step, batch, corrupt, failures[0] if failures else None)

        self._log = CorruptLog(max_corrupt)
        tasks = grain.MapDataset.range(len(steps) * len(chunks)).map(make_part)
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = tasks.to_iter_dataset(ahead).batch(len(chunks), batch_fn=join)
        # Joins parts to batches in a thread of its own, which also keeps the others busy during a long step.
        iterator = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch))
        iterator.start_prefetch()
        self._running = [iterator]
        # Also called when this is dropped, and when the interpreter exits while Grain can still be closed.
        self._stop = weakref.finalize(self, _stop, self._running, stopped)

    @property
    def corrupt(self) -> dict[str, str]:
        """The corrupt images in the batches so far: name -> reason."""
        return self._log.reasons

    def __next__(self) -> Batch:
        if not self._running:
            raise StopIteration
        try:
            part = next(self._running[0])
            if part.failure is not None:
                raise part.failure
            for error in part.corrupt:
                self._log.add(error)
        except BaseException:
            self.close()
            raise
        return part.batch

    def close(self) -> None:
        """Stops the threads; a closed iterator has ended."""
        self._stop()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _stop(running: list[grain.DatasetIterator], stopped: threading.Event) -> None:
    stopped.set()
    while running:
        running.pop().close()
