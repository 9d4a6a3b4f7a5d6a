"""What threads make ahead of time, in the order in which it is asked for: the one place where that is written."""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError

Item, Found = TypeVar("Item"), TypeVar("Found")


class Ahead(Iterator[Found]):
    """Iterates over what `make` makes of items, in their order, made by threads.

    Close it, or use it as a context manager, to stop the threads before the end. An error is raised by next() when its
    item is due, and closes it: what `make` raises, but UserError for CorruptImage.

    Args:
        make: item -> what is asked for, in threads.
        items: taken as they are needed, by whoever asks.
        threads: how many make something at a time.
        most: how many are made, or being made, before they are asked for; by default one more than there are threads.
    """

    def __init__(self, make: Callable[[Item], Found], items: Iterable[Item], threads: int, most: int | None = None):
        if threads < 1:
            raise UserError(f"data.threads is {threads}, but at least one thread must read")
        self._make, self._left = make, iter(items)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._pending: deque[Future[Found]] = deque()
        # Also called when this is dropped.
        self._stop = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._submit(threads + 1 if most is None else most)

    def _submit(self, count: int) -> None:
        for item in itertools.islice(self._left, count):
            self._pending.append(self._pool.submit(self._make, item))

    def __next__(self) -> Found:
        if not self._pending:
            self.close()
            raise StopIteration
        try:
            found = self._pending.popleft().result()
            self._submit(1)
        except CorruptImage as error:
            self.close()
            raise UserError(str(error)) from error
        except BaseException:
            self.close()
            raise
        return found

    def close(self) -> None:
        """Stops the threads; a closed iterator has ended."""
        self._pending.clear()
        self._stop()

    def __enter__(self) -> "Ahead[Found]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def each(make: Callable[[Item], Found], items: Iterable[Item], threads: int) -> Iterator[Found]:
    """What `make` makes of each item, in order, as a generator: the threads stop when it ends, or is dropped."""
    with Ahead(make, items, threads) as found:
        yield from found


def before(items: Iterable[Item], most: int) -> Iterator[Item]:
    """The same items; so many more than are given back have been taken, so that what they stand for has begun."""
    taken: deque[Item] = deque()
    for item in items:
        taken.append(item)
        if len(taken) > most:
            yield taken.popleft()
    yield from taken
