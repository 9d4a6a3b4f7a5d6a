"""Stopping a run from outside: at the next step boundary, with a checkpoint, on all processes at the same step."""

import contextlib
import signal
import sys
import threading
import time

import jax

from lape_jax.parallel import hosts

_POLL = 1.0  # seconds between looks at what the other processes want
_LONG = 600_000  # milliseconds; by then a process that does not answer has been missed by all


class StopRequest:
    """While entered, SIGTERM and Ctrl-C do not end the process; they are `received`, and `due` asks for them.

    A Ctrl-C after that interrupts at once. Signal handlers exist in the main thread only; elsewhere a process receives
    nothing itself. What is received by one that is entered inside another, that other one receives when it exits.

    With several processes, a signal to any of them stops all: see `_Agreement`. All must enter and exit.

    Attributes:
        received: the signal of this process, or where `due`, that of the process which stops all.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._agreement = _Agreement(self) if jax.process_count() > 1 else None
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopRequest):
                outer.received = outer.received or self.received
        if self._agreement:
            self._agreement.close()

    def due(self) -> bool:
        """Whether to stop here. All processes ask at the same boundaries, and get the same answer."""
        if self._agreement is None:
            return self.received is not None
        agreed = self._agreement.due()
        self.received = agreed or self.received
        return agreed is not None

    def _handle(self, number: int, _frame: object) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"{self.received.name}: stopping after the current step (Ctrl-C stops at once)", file=sys.stderr)


class _Agreement:
    """Lets all processes stop at the first step boundary that none of them has reached yet.

    A thread announces a signal in JAX's key-value store, and looks there for announcements of others. When there is
    one, the thread of every process says which boundary its process has reached, and keeps it there until all have
    done so: then all know the furthest, and stop at the next one. So a boundary costs microseconds and no
    communication, which an exchange between the devices at each would not; a stop takes a second or two. (JAX has such
    a protocol for SIGTERM, `multihost_utils.reached_preemption_sync_point`, but Orbax counts there, too, in steps.)
    """

    def __init__(self, request: StopRequest):
        self._request = request
        self._store = hosts.store()
        self._name = hosts.gather(f"lape_jax/stop/{time.time_ns()}")[0]  # of this run, and no other in this process
        self._boundary = 0  # the last one that this process has reached
        self._stop: tuple[int, signal.Signals] | None = None  # where, and why
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def due(self) -> signal.Signals | None:
        with self._lock:
            self._boundary += 1
            return self._stop[1] if self._stop and self._boundary >= self._stop[0] else None

    def close(self) -> None:
        self._say_boundary()  # so that nobody waits for it
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_POLL):
            with contextlib.suppress(RuntimeError):  # another one has announced it before
                if self._request.received:
                    self._store.key_value_set(self._name, self._request.received.name)
            try:
                announced = self._store.key_value_try_get(self._name)
            except RuntimeError:  # nobody has announced anything
                continue
            with self._lock, contextlib.suppress(RuntimeError):  # of a process that died, which ends all
                self._say_boundary()
                names = [f"{self._name}/{index}" for index in range(jax.process_count())]
                furthest = max(int(self._store.blocking_key_value_get(name, _LONG)) for name in names)
                self._stop = furthest + 1, signal.Signals[announced]
            return

    def _say_boundary(self) -> None:
        with contextlib.suppress(RuntimeError):  # said already
            self._store.key_value_set(f"{self._name}/{jax.process_index()}", str(self._boundary))
