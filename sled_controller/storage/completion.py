"""From device completions (a status, or PENDING and a callback) to one answer: gathered, or awaited at start."""

import asyncio
from collections.abc import Callable
from typing import Final

from sled_controller.storage.errors import DeviceUntrusted
from spdk_bindings.device import PENDING, Done
from spdk_bindings.nvme import Status

ANSWER_SECONDS_MAX: Final = 10.0
"""Longer than a table write may take, which has a bound of its own."""


async def completed(start: Callable[[Done], int]) -> int:
    """Start a device command and wait for its status. For start and join only: no task or future per I/O.

    Raises DeviceUntrusted when none comes: a silent drive must not keep a sled from serving its others.
    """
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(status: int) -> None:
        if not future.done():
            future.set_result(status)

    status = start(done)
    if status != PENDING:
        return status
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await future
    except TimeoutError:
        raise DeviceUntrusted(f"it does not answer within {ANSWER_SECONDS_MAX:g} s") from None


class Gather:
    """Counts the completions of `count` commands; succeeds when at least one did, otherwise with the last failure.

    Give `one` to each command, then return `result()`: PENDING with `done` called later, or the status inline.
    """

    __slots__ = ("_done", "_failure", "_returned", "_successes", "_waiting")

    def __init__(self, count: int, done: Done) -> None:
        self._waiting = count
        self._done = done
        self._successes = 0
        self._failure = int(Status.SUCCESS)
        self._returned = False

    def one(self, status: int) -> None:
        """A command has completed."""
        if status:
            self._failure = status
        else:
            self._successes += 1
        self._waiting -= 1
        if not self._waiting and self._returned:
            self._done(self._status())

    def result(self) -> int:
        """To be returned when all commands have been started."""
        self._returned = True
        return PENDING if self._waiting else self._status()

    def _status(self) -> int:
        return int(Status.SUCCESS) if self._successes else self._failure


class Both:
    """Two things that have to be complete: the status is the first one's, the second has none that matters.

    Give `first` and `second` to them, then return `result(status the first one was started with)`.
    """

    __slots__ = ("_done", "_first", "_returned", "_second")

    def __init__(self, done: Done) -> None:
        self._done = done
        self._first: int | None = None
        self._second = False
        self._returned = False

    def first(self, status: int) -> None:
        """The first one is complete."""
        self._first = status
        self._check()

    def second(self, _: int) -> None:
        """The second one is complete."""
        self._second = True
        self._check()

    def result(self, started: int) -> int:
        """To be returned when both have been started."""
        if started != PENDING:
            self._first = started
        if self._first is not None and self._second:
            return self._first
        self._returned = True
        return PENDING

    def _check(self) -> None:
        if self._returned and self._second and self._first is not None:
            self._done(self._first)
