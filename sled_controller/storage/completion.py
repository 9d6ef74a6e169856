"""From device completions (a status, or PENDING and a callback) to one answer: gathered, or awaited at start."""

import asyncio
from collections.abc import Callable

from spdk_bindings.device import PENDING, Done
from spdk_bindings.nvme import Status


async def completed(start: Callable[[Done], int]) -> int:
    """Start a device command and wait for its status. For start and join only: no task or future per I/O."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(status: int) -> None:
        if not future.done():
            future.set_result(status)

    status = start(done)
    return await future if status == PENDING else status


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
