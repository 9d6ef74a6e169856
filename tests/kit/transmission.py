"""The core of an NBD transmission over a volume in memory, and the bytes that go in and out."""

from kit.export import MemoryVolume

from head_node.export import nbd_protocol as nbd
from head_node.export.budget import MemoryBudget
from head_node.export.counters import NbdCounters
from head_node.export.nbd_server import Limits, Transmission

SIZE = 1 << 20


class Bench:
    """A core over a memory volume, and what it said."""

    def __init__(
        self,
        *,
        structured: bool = False,
        allocation: bool = False,
        size: int = SIZE,
        limits: Limits | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.volume = MemoryVolume(size)
        self.budget = budget or MemoryBudget()
        self.counters = NbdCounters()
        self.wakes = 0
        self.taken_wakes = 0
        self.unsent = 0
        self.evicted = ""
        self.core = Transmission(
            self.volume,
            structured=structured,
            allocation=allocation,
            wake=self._wake,
            peer_gone=lambda: False,
            unsent=lambda: self.unsent,
            evict=self._evict,
            counters=self.counters,
            budget=self.budget,
            limits=limits,
        )

    def _wake(self) -> None:
        self.wakes += 1

    def _evict(self, reason: str) -> None:
        self.evicted = reason
        self.core.drop()

    def ask(self, *data: bytes) -> bytes:
        self.core.feed(b"".join(data))
        return self.output()

    def output(self) -> bytes:
        """What it said in this and, as far as it asks for them, further loop turns."""
        said, seen = self._turn(), self.taken_wakes
        while self.wakes > seen:
            self.taken_wakes = seen = self.wakes
            self.core.resume()
            said += self._turn()
        return said

    def _turn(self) -> bytes:
        said = b"".join(self.core.take_output())
        self.core.handed_over(len(said))
        return said


def request(
    command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7, data: bytes = b""
) -> bytes:
    return nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length or len(data)) + data


def ok(cookie: int = 7) -> bytes:
    return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie)


def refused(error: int, cookie: int = 7) -> bytes:
    return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie)


def chunks(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        header = nbd.ChunkHeader.parse(data)
        body = data[nbd.CHUNK_HEADER.size : nbd.CHUNK_HEADER.size + header.length]
        assert len(body) == header.length
        found.append((header.kind, header.flags, body))
        data = data[nbd.CHUNK_HEADER.size + header.length :]
    return found
