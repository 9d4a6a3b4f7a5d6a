"""What threads read ahead of time, one after the other."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from lape_jax.data.corrupt import CorruptImage
from lape_jax.errors import UserError

Found = TypeVar("Found")


class Ahead(Iterator[Found]):
    """Iterates over what `read` makes of indices, in their order, made by threads: at most one more than there are.

    Close it, or use it as a context manager, to stop the threads before the end. An error is raised by next() when its
    item is due, and closes it: what `read` raises, but UserError for CorruptImage.
    """

    def __init__(self, read: Callable[[int], Found], indices: Sequence[int], threads: int):
        if threads < 1:
            raise UserError(f"data.threads is {threads}, but at least one thread must read")
        self._read, self._left = read, iter(indices)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._pending: deque[Future[Found]] = deque()
        # Also called when this is dropped.
        self._stop = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        for _ in range(threads + 1):
            self._submit()

    def _submit(self) -> None:
        for index in self._left:
            self._pending.append(self._pool.submit(self._read, int(index)))
            return

    def __next__(self) -> Found:
        if not self._pending:
            self.close()
            raise StopIteration
        try:
            found = self._pending.popleft().result()
            self._submit()
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
