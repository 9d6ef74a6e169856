"""SIGINT and SIGTERM as an exception, so that whatever was started is taken down."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

# What a shell gives for a program that a signal ended (POSIX.1 2.8.2 leaves the offset, all shells use 128).
SIGNAL_EXIT: Final = 128


_pending: list[int] = []
"""The signals that came since `signals_raise` began."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM came: clean up, then end with the status that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an exception, so that every `finally` runs.

    Where it strikes code whose exceptions Python ignores (a finalizer, a hook of fork) it is lost; whoever works for
    long calls `raise_if_interrupted` now and then.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _pending.append(number)
        raise Interrupted(number)

    _pending.clear()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """Raise what a signal has raised already if that got lost. Raises Interrupted."""
    if _pending:
        raise Interrupted(_pending[0])


def undisturbed(clean_up: Callable[[], None]) -> None:
    """Clean up to the end, whoever presses Ctrl-C once more."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        clean_up()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
