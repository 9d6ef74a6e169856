"""Clients of a volume: seeded programmes of reads, writes, flushes, zeroes and trims, recorded in a history.

They need no simulator: any loop, clock and way to connect will do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, TypeAlias

from head_node.export.errors import ExportError, NbdCommandFailed
from head_node.export.nbd_client import NbdClient
from rackctl.consistency.history import BLOCK_BYTES, ZERO, Flush, History, Operation, content, value_of

Connect: TypeAlias = Callable[[], Awaitable[NbdClient]]

RECONNECT_SECONDS: Final = 0.05
STALL_SECONDS: Final = 0.5
"""Shorter waits are not worth a line."""


@dataclass(frozen=True, slots=True)
class Programme:
    """What one client does."""

    name: str
    blocks: range
    """It reads and writes here."""
    zeroed: range
    """It also zeroes and trims here."""
    depth: int = 4
    """Requests under way at once."""
    think_s: float = 0.01
    """Mean pause before each request."""
    blocks_max: int = 8
    """Of one request."""
    reads_only: bool = False
    """Who writes too soon has nothing but unanswered writes at a primary that nobody follows any more, and asks it for
    nothing else."""
    patience_s: float = 4.0
    """A connection on which a request is this old is given up; its requests stay open for ever."""


@dataclass(slots=True)
class Tally:
    """What clients have seen."""

    answered: int = 0
    errors: int = 0
    connections: int = 0
    disconnections: int = 0
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """Whenever nobody was answered for STALL_SECONDS: from and to, in seconds of the loop."""
    failures: list[tuple[float, str]] = field(default_factory=list)
    """What was answered with an error: when, in seconds of the loop, and which."""
    _last_s: float | None = None

    def fail(self, now_s: float, why: str) -> None:
        """Somebody was answered with an error, which does not say whether the request took effect."""
        self.errors += 1
        self.failures.append((now_s, why))

    def answer(self, now_s: float) -> None:
        """Somebody was answered."""
        self.answered += 1
        self.look(now_s)

    def look(self, now_s: float) -> None:
        """Count the time up to now as a stall if it was long: an answer has come, or the clients stop."""
        if self._last_s is not None and now_s - self._last_s >= STALL_SECONDS:
            self.stalls.append((self._last_s, now_s))
        self._last_s = now_s

    def pause(self) -> None:
        """Nobody asks for anything until `look` is called again."""
        self._last_s = None


class Client:
    """Runs one programme until `stop` is set."""

    def __init__(
        self, programme: Programme, history: History, connect: Connect, random: Random, clock_ns: Callable[[], int],
        tally: Tally, accuse: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        """`accuse` is called with what a reply proves wrong by itself."""
        self._programme = programme
        self._history = history
        self._connect = connect
        self._random = random
        self._clock_ns = clock_ns
        self._tally = tally
        self._accuse = accuse
        self._nbd: NbdClient | None = None
        self._under_way: dict[asyncio.Future[Any], float] = {}
        self._turn = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; then wait for what is under way, no longer than patience lasts."""
        loop = asyncio.get_running_loop()
        while not stop.is_set() or self._under_way:
            if self._nbd is None:
                if stop.is_set() or not await self._reach():
                    if stop.is_set():
                        return
                    await asyncio.sleep(RECONNECT_SECONDS)
                continue
            oldest_s = min(self._under_way.values(), default=loop.time())
            if loop.time() - oldest_s > self._programme.patience_s:
                await self._leave()
            elif stop.is_set() or len(self._under_way) >= self._programme.depth:
                self._turn.clear()
                try:
                    async with asyncio.timeout(self._programme.patience_s / 4):
                        await self._turn.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(self._random.expovariate(1 / self._programme.think_s))
                if self._nbd is not None:
                    self._begin(self._nbd)
        await self._leave()

    async def _reach(self) -> bool:
        try:
            async with asyncio.timeout(self._programme.patience_s):
                self._nbd = await self._connect()
        except (ExportError, OSError, TimeoutError):
            return False
        self._tally.connections += 1
        return True

    async def _leave(self) -> None:
        nbd, self._nbd = self._nbd, None
        self._under_way.clear()
        if nbd is not None:
            await nbd.close()

    def _begin(self, nbd: NbdClient) -> None:
        random, programme = self._random, self._programme
        draw = 1.0 if programme.reads_only else random.random()
        zeroing = draw < 0.08 and len(programme.zeroed)
        within = programme.zeroed if zeroing or (random.random() < 0.2 and len(programme.zeroed)) else programme.blocks
        count = min(random.choice((1, 1, 1, 2, programme.blocks_max)), len(within))
        # Half of all requests go to an eighth of the blocks, where clients meet.
        span = len(within) if random.random() < 0.5 else max(count, len(within) // 8)
        lba = within[random.randrange(span - count + 1)]
        if draw < 0.02:
            self._await(nbd, nbd.flush(), [self._history.flush(programme.name, self._clock_ns())], None)
        elif zeroing:
            writes = self._writes(lba, [ZERO] * count)
            act = nbd.trim if random.random() < 0.5 else nbd.write_zeroes
            self._await(nbd, act(lba * BLOCK_BYTES, count * BLOCK_BYTES), writes, None)
        elif draw < 0.55:
            values = [self._history.new_value() for _ in range(count)]
            data = b"".join(content(value, lba + offset) for offset, value in enumerate(values))
            fua = random.random() < 0.2
            writes = self._writes(lba, values, fua=fua)
            self._await(nbd, nbd.write(lba * BLOCK_BYTES, data, fua=fua), writes, None)
        else:
            self._await(nbd, nbd.read(lba * BLOCK_BYTES, count * BLOCK_BYTES), [], range(lba, lba + count))

    def _writes(self, lba: int, values: list[int], *, fua: bool = False) -> list[Operation]:
        now_ns = self._clock_ns()
        name = self._programme.name
        return [self._history.write(name, lba + offset, value, now_ns, fua=fua) for offset, value in enumerate(values)]

    def _await(
        self,
        nbd: NbdClient,
        answer: "asyncio.Future[Any]",
        begun: Sequence[Operation | Flush],
        read: range | None,
    ) -> None:
        """`begun` has returned when there is an answer that is no error."""
        invoked_ns = self._clock_ns()
        self._under_way[answer] = asyncio.get_running_loop().time()

        def answered(done: "asyncio.Future[Any]") -> None:
            self._under_way.pop(done, None)
            self._turn.set()
            error = None if done.cancelled() else done.exception()
            if done.cancelled() or isinstance(error, NbdCommandFailed):
                self._tally.fail(asyncio.get_running_loop().time(), repr(error))
                for lba in read or ():
                    self._history.read_failed(self._programme.name, lba, invoked_ns, self._clock_ns())
            elif error is not None:
                if self._nbd is nbd:
                    self._nbd = None
                    self._tally.disconnections += 1
            else:
                self._tally.answer(asyncio.get_running_loop().time())
                now_ns = self._clock_ns()
                for operation in begun:
                    operation.returned_ns = now_ns
                if read is not None:
                    self._note_read(read.start, done.result(), invoked_ns, now_ns)

        answer.add_done_callback(answered)

    def _note_read(self, lba: int, data: bytearray, invoked_ns: int, now_ns: int) -> None:
        for offset in range(len(data) // BLOCK_BYTES):
            block = memoryview(data)[offset * BLOCK_BYTES : (offset + 1) * BLOCK_BYTES]
            try:
                value = value_of(block, lba + offset)
            except Exception as violation:
                self._accuse(violation)
                return
            self._history.read(self._programme.name, lba + offset, value, invoked_ns, now_ns)


async def read_all(nbd: NbdClient, blocks: int, name: str, history: History, clock_ns: Callable[[], int]) -> None:
    """Read every block of a volume into the history. Raises ExportError, Violation."""
    for lba in range(0, blocks, 64):
        count = min(64, blocks - lba)
        invoked_ns = clock_ns()
        data = await nbd.read(lba * BLOCK_BYTES, count * BLOCK_BYTES)
        for offset in range(count):
            block = memoryview(data)[offset * BLOCK_BYTES : (offset + 1) * BLOCK_BYTES]
            history.read(name, lba + offset, value_of(block, lba + offset), invoked_ns, clock_ns())
