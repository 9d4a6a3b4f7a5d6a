"""Requests to stop, by signals that the test sends to itself."""

import signal
import threading

import pytest

from lape_jax.train.signals import StopRequest

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_received_and_the_handlers_come_back(number):
    before = handlers()
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received is number
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


def test_in_another_thread_it_does_nothing():
    before, found = handlers(), []

    def enter():
        with StopRequest() as stop:
            found.extend([stop.received, handlers() == before])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None, True]
