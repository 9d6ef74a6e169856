"""How much is done in one turn of an event loop, whatever a port was sent."""

import asyncio
from collections.abc import Callable
from typing import Any

from sled_controller.turns import BURST_NS, PIECE_NS_MIN

PIECES_MAX = BURST_NS // PIECE_NS_MIN + 1
"""Pieces that strangers get in one turn of the loop at most, all of them together."""


class PerTurn:
    """Counts calls of functions, by turns of the loop. Make one inside of the loop; `close` it there."""

    def __init__(self) -> None:
        self.most = 0
        self.total = 0
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._tick()

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which is counted from now on."""

        def call(*args: Any, **fields: Any) -> Any:
            self._count += 1
            self.total += 1
            self.most = max(self.most, self._count)
            return function(*args, **fields)

        return call

    def close(self) -> None:
        self._next.cancel()

    def _tick(self) -> None:
        self._count = 0
        self._next = self._loop.call_soon(self._tick)
