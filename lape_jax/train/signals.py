"""Stopping a run from outside: at the next step boundary, with a checkpoint."""

import signal
import sys


class StopRequest:
    """While entered, SIGTERM and Ctrl-C set `received` instead of ending the process.

    A Ctrl-C after that interrupts at once. Signal handlers exist in the main thread only; elsewhere this does nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
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

    def _handle(self, number: int, _frame: object) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"{self.received.name}: stopping after the current step (Ctrl-C stops at once)", file=sys.stderr)
