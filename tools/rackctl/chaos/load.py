"""Concurrent clients of a volume, on a loop in a thread of their own, and reading everything through every head."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from random import Random
from typing import Any, Final, TypeVar

import uvloop

from head_node.export.nbd_client import NbdClient
from rackctl.consistency.history import History
from rackctl.consistency.workload import Client, Programme, Tally, read_all

T = TypeVar("T")
Address = tuple[str, int]

WRITERS: Final = 4
"""They read too. Besides them each head has a client that only reads, and that knows no other head."""
DEPTH: Final = 4
READER_DEPTH: Final = 128
"""A primary that was cut off still has in memory what is in no stripe yet; whatever it has to read from sleds waits."""
THINK_SECONDS: Final = 0.01
"""Mean pause of a client between requests: some hundred a second in all, so that cores are left to the rack."""
STOP_SECONDS_MAX: Final = 30.0
"""For requests that are under way when clients are told to stop; they give up after their patience."""
READ_SECONDS_MAX: Final = 60.0


class Load:
    """Clients that work on the same blocks. What a reply proves wrong by itself is passed to `accuse`."""

    def __init__(
        self, volume: str, blocks: int, heads: Mapping[str, Address], seed: int, accuse: Callable[[Exception], None]
    ) -> None:
        self.history = History()
        self.tally = Tally()
        self._volume = volume
        self._blocks = blocks
        self._heads = dict(heads)
        self._seed = seed
        self._accuse = accuse
        self._loop = uvloop.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._work: Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def begin(self, number: int) -> None:
        """Let the clients work; `number` seeds what they do."""
        self._work = asyncio.run_coroutine_threadsafe(self._clients(number), self._loop)

    def end(self) -> None:
        """Stop them, and wait for what is under way. Raises what ended one of them, TimeoutError."""
        work, self._work = self._work, None
        assert work is not None
        stop = self._stop
        if stop is not None:
            self._loop.call_soon_threadsafe(stop.set)
        work.result(STOP_SECONDS_MAX)

    def read_through(self, head: str) -> None:
        """Read every block through a head into the history. Raises ExportError, Violation, OSError, TimeoutError."""
        self._await(self._read([self._heads[head]], f"reader at {head}"), READ_SECONDS_MAX)

    def close(self) -> None:
        """End the thread; connections that are left are cut. Safe to call again."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_SECONDS_MAX)
            if not self._thread.is_alive():
                self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    def _await(self, work: Coroutine[Any, Any, T], seconds_max: float) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds_max), self._loop).result()

    async def _clients(self, number: int) -> None:
        self._stop = stop = asyncio.Event()
        self.tally.look(self._loop.time())
        async with asyncio.TaskGroup() as group:
            for client in range(WRITERS):
                group.create_task(self._writer(number, client).run(stop))
            for head in self._heads:
                group.create_task(self._reader(number, head).run(stop))
        self.tally.look(self._loop.time())
        self.tally.pause()

    def _writer(self, number: int, client: int) -> Client:
        blocks = self._blocks
        programme = Programme(
            f"client-{client}", range(blocks * 3 // 4), range(blocks * 3 // 4, blocks), DEPTH, THINK_SECONDS
        )
        random = Random(f"{self._seed}/{number}/{programme.name}")
        # Half of them know all heads, as a multipath client does; the others know one each, not all the same, which
        # may relay: at a primary that was cut off and at its successor there is always somebody.
        heads = list(self._heads.values())
        return self._client(programme, random, heads if client % 2 == 0 else [heads[client // 2 % len(heads)]])

    def _reader(self, number: int, head: str) -> Client:
        # Blocks that are never zeroed: with as many reads at once, the others are too dear to check.
        programme = Programme(
            f"reader at {head}", range(self._blocks * 3 // 4), range(0), READER_DEPTH, THINK_SECONDS, reads_only=True
        )
        return self._client(programme, Random(f"{self._seed}/{number}/{programme.name}"), [self._heads[head]])

    def _client(self, programme: Programme, random: Random, known: Sequence[Address]) -> Client:
        async def connect() -> NbdClient:
            return await NbdClient.connect(known, self._volume)

        return Client(programme, self.history, connect, random, time.monotonic_ns, self.tally, self._accuse)

    async def _read(self, addresses: Sequence[Address], name: str) -> None:
        nbd = await NbdClient.connect(addresses, self._volume)
        try:
            await read_all(nbd, self._blocks, name, self.history, time.monotonic_ns)
        finally:
            await nbd.close()
