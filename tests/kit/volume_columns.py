"""Columns in memory, with the faults that a sled shows to an engine."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from head_node.volume.interface import BLOCK_BYTES
from spdk_bindings.device import Buffer

T = TypeVar("T")


class MemoryStore:
    """What is on one sled for one column; survives attaches."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.data: dict[int, bytes] = {}


class MemoryColumn:
    """One attach of a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.blocks = store.blocks
        self.available = True
        self.error: Callable[[], Exception] | None = None
        """Makes every command fail."""
        self.held: list[Callable[[], None]] | None = None
        """A list here keeps commands unanswered; call its items to let them go."""
        self.write_count = 0
        self.read_count = 0

    def write(self, lba: int, buffers: Sequence[Buffer], *, fua: bool) -> "asyncio.Future[None]":
        assert fua, "shards are written FUA"
        self.write_count += 1
        data = b"".join(buffers)
        assert lba * BLOCK_BYTES + len(data) <= self.blocks * BLOCK_BYTES

        def act() -> None:
            for at in range(0, len(data), BLOCK_BYTES):
                self.store.data[lba + at // BLOCK_BYTES] = data[at : at + BLOCK_BYTES]

        return self._answer(act, lambda: None)

    def read(self, lba: int, blocks: int) -> "asyncio.Future[Buffer]":
        self.read_count += 1
        zero = bytes(BLOCK_BYTES)
        return self._answer(
            lambda: None, lambda: b"".join(self.store.data.get(at, zero) for at in range(lba, lba + blocks))
        )

    def _answer(self, act: Callable[[], None], result: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish() -> None:
            if future.done():
                return
            if self.error is not None:
                future.set_exception(self.error())
                return
            act()
            future.set_result(result())

        if self.held is not None:
            self.held.append(finish)
        else:
            loop.call_soon(finish)
        return future
