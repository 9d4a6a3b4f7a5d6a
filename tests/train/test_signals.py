"""Requests to stop, by signals that the test sends to itself."""

import signal
import threading
import time

import jax
import pytest

from lape_jax.train import signals
from lape_jax.train.signals import StopRequest

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_received_and_the_handlers_come_back(number):
    before = handlers()
    with StopRequest() as stop:
        assert stop.received is None
        assert not stop.due()
        signal.raise_signal(number)
        assert stop.received is number
        assert stop.due()
    assert handlers() == before
    assert stop.received is number


def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.received is signal.SIGINT


def test_a_second_sigterm_does_not_interrupt():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.received is signal.SIGTERM


def test_the_handlers_come_back_after_an_error():
    before = handlers()
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert handlers() == before


@pytest.mark.parametrize("number", NUMBERS)
def test_the_outer_of_two_hears_what_the_inner_received(number):
    before = handlers()
    with StopRequest() as outer:
        with StopRequest():
            pass
        assert not outer.due()
        with StopRequest() as inner:
            signal.raise_signal(number)
            assert inner.due()
            assert not outer.due()
        assert outer.due()
        assert outer.received is number
    assert handlers() == before


class Store:
    """As JAX's key-value store."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            if key in self.values:
                raise RuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        with self.changed:
            if key not in self.values:
                raise RuntimeError("NOT_FOUND")
            return self.values[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, milliseconds / 1000)
            return self.values[key]


@pytest.fixture
def two_processes(monkeypatch):
    """A function that enters a StopRequest as one of two processes, which are threads here."""
    store, index = Store(), threading.local()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index.value)
    monkeypatch.setattr(signals.hosts, "store", lambda: store)
    monkeypatch.setattr(signals.hosts, "gather", lambda text: ["run", "run"])
    monkeypatch.setattr(signals, "_POLL", 0.01)

    class Indexed(threading.Thread):  # the thread of a process has its index
        def __init__(self, target, **options):
            mine = index.value
            super().__init__(target=lambda: (setattr(index, "value", mine), target()), **options)

    monkeypatch.setattr(signals.threading, "Thread", Indexed)

    def enter(number):
        index.value = number
        return StopRequest()

    return enter


@pytest.mark.parametrize("number", NUMBERS)
def test_two_processes_stop_at_the_first_boundary_that_neither_has_reached(number, two_processes):
    with two_processes(0) as slow, two_processes(1) as fast:
        assert not any(stop.due() for stop in [fast] * 7 + [slow] * 3)
        fast._handle(number, None)
        assert fast.received is number
        deadline = time.monotonic() + 10
        while fast._agreement._stop is None or slow._agreement._stop is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [slow.due() for _ in range(6)] == [False] * 4 + [True] * 2  # 4, 5, 6, 7, 8, 9
        assert fast.due()  # 8
        assert slow.received is fast.received is number


def test_a_process_that_has_ended_well_keeps_nobody_waiting(two_processes):
    with two_processes(0) as late:
        with two_processes(1) as done:
            assert not any(done.due() for _ in range(5))
        late._handle(signal.SIGTERM, None)
        assert [late.due() for _ in range(5)] == [False] * 5


def test_in_another_thread_it_does_nothing():
    before, found = handlers(), []

    def enter():
        with StopRequest() as stop:
            found.extend([stop.received, handlers() == before])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None, True]
