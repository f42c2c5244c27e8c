"""Signals interrupt where they may, at once, and nowhere else."""

import os
import signal
from threading import Thread

import pytest

from starflow_world.io.signals import stoppable

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_where_it_may_and_waits_where_it_may_not(number: int) -> None:
    steps, before = [], signal.getsignal(number)

    def work() -> None:
        with stoppable() as stop, stop.interruptible():
            steps.append("begun")
            with stop.held():
                os.kill(os.getpid(), number)
                steps.append("held to its end")
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["begun", "held to its end"]
    assert signal.getsignal(number) == before


def test_what_cleans_up_is_not_interrupted_again() -> None:
    cleaned = False
    with stoppable() as stop:
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        cleaned = True
    assert cleaned
    assert stop.asked


def test_a_signal_that_came_before_interrupts_what_begins_after_it() -> None:
    with stoppable() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            pytest.fail("it began")


def test_other_threads_hold_nothing_and_need_no_signals() -> None:
    done = []

    def work() -> None:
        with stoppable() as stop, stop.interruptible(), stop.held():
            done.append(True)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
