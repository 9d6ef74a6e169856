"""A signal is an exception, and is not lost where Python ignores one."""

import os
import signal

import pytest
from rackctl.interrupts import Interrupted, raise_if_interrupted, signals_raise, undisturbed


def test_a_signal_raises_with_its_number() -> None:
    with pytest.raises(Interrupted) as raised, signals_raise():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_strikes_a_finalizer_is_raised_when_asked_for() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs between two instructions
                pass

    with signals_raise():
        Dying()
        with pytest.raises(Interrupted) as raised:
            raise_if_interrupted()
    assert raised.value.number == signal.SIGINT


def test_what_was_interrupted_before_does_not_interrupt_what_begins() -> None:
    with pytest.raises(Interrupted), signals_raise():
        os.kill(os.getpid(), signal.SIGINT)
    with signals_raise():
        raise_if_interrupted()


def test_cleaning_up_goes_on_to_its_end() -> None:
    done = []
    with signals_raise():
        undisturbed(lambda: (os.kill(os.getpid(), signal.SIGINT), done.append(True)))  # type: ignore[func-returns-value,arg-type,return-value]
    assert done == [True]
