"""Memory of large arrays that is used again, because fresh memory costs as much time as what is written to it.

The system hands out fresh memory page by page, and clears each: for a batch that is only copied, half of the work.
"""

import math
import threading
import weakref
from typing import Any

import numpy as np


class Recycled:
    """Gives out arrays whose memory it takes back once neither they nor any views of them are held by anybody.

    That JAX holds an array as long as it reads from it, or computes on it without a copy, is enough. Safe in threads.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}
        self._lock = threading.RLock()  # which a thread may hold when the garbage collector gives an array back in it

    def empty(self, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """An array with whatever content."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        with self._lock:
            kept = self._free.setdefault(size, [])
            block = kept.pop() if kept else np.empty(size, np.uint8).data
        # All views of an array on a memoryview refer to that array, which owns nothing, and not to what lies below.
        array = np.frombuffer(block, kind)
        weakref.finalize(array, self._take_back, block).atexit = False
        return array.reshape(shape)

    def _take_back(self, block: memoryview) -> None:
        with self._lock:
            self._free[block.nbytes].append(block)
