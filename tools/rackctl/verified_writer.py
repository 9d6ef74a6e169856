"""Writes without pause through a reconnecting NBD client and knows what every acknowledged block must hold.

A block has at most one write unanswered, so once all are answered its content is exactly that of its last
acknowledged write; a block whose last write was never answered may hold that one or the one before.
"""

import asyncio
import random
import struct
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from head_node.export.errors import ExportError
from head_node.export.nbd_client import NbdClient, ReconnectPolicy
from spdk_bindings.device import Buffer

BLOCK_BYTES: Final = 4096
DEPTH: Final = 32
# Long enough for the slowest takeover on a busy machine; a stopped server is left after `silence_s_max`.
POLICY: Final = ReconnectPolicy(total_s_max=30.0, attempt_s_max=0.5, silence_s_max=0.4)
_MARK: Final = struct.Struct("<QQ")


def block_content(block: int, version: int) -> bytes:
    """What version `version` of a block holds: both numbers, over and over."""
    return _MARK.pack(block, version) * (BLOCK_BYTES // _MARK.size)


def describe(data: bytes) -> str:
    """Which block and version some content is, as far as it can be told."""
    block, version = _MARK.unpack_from(data)
    known = data == block_content(block, version)
    return f"block {block} version {version}" if known else f"{data[:32].hex()}..."


@dataclass(slots=True)
class Findings:
    """The outcome of reading everything back: blocks read, and a line for each that was wrong."""

    read: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Versions:
    acknowledged: int
    issued: int


class BlockClient(Protocol):
    """Whoever reads and writes ranges of bytes, and repeats by itself what a lost connection left unanswered."""

    def write(self, offset: int, data: bytes) -> Awaitable[None]: ...
    def read(self, offset: int, length: int) -> Awaitable[Buffer]: ...
    async def close(self) -> None: ...


class VerifiedWriter:
    """A client that writes random blocks of a span until it is told to stop; `seed` tells it from other writers."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        export: str,
        span_blocks: int,
        *,
        first_block: int = 0,
        seed: int = 1,
        policy: ReconnectPolicy = POLICY,
    ) -> None:
        self._addresses = list(addresses)
        self._export = export
        self._span = range(first_block, first_block + span_blocks)
        # Versions of another writer, before or after, are never taken for ours.
        self._first_version = seed << 32
        self._policy = policy
        self._random = random.Random(seed)
        self._blocks: dict[int, _Versions] = {}
        self._busy: set[int] = set()
        self._client: BlockClient | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._progress = asyncio.Event()
        self._stopping = False
        self.acknowledged = 0
        self.last_answer_s = 0.0
        self.longest_stall_s = 0.0

    async def start(self) -> None:
        """Connect and begin to write. Raises ExportError."""
        self._client = await self.connect()
        self.last_answer_s = asyncio.get_running_loop().time()
        self._workers = [asyncio.create_task(self._write_on(self._client)) for _ in range(DEPTH)]

    async def connect(self) -> BlockClient:
        """The client that writes: by NBD, unless a subclass knows another one. Raises ExportError."""
        return await NbdClient.connect(self._addresses, self._export, self._policy)

    @property
    def client(self) -> BlockClient:
        """The client, once started."""
        assert self._client is not None
        return self._client

    async def wait_acknowledged(self, count: int) -> None:
        """Wait until `count` more writes have been acknowledged. Raises what ended the writing, if something did."""
        target = self.acknowledged + count
        while self.acknowledged < target:
            self._raise_failure()
            self._progress.clear()
            await self._progress.wait()

    def forget_stalls(self) -> None:
        """Measure the longest stall from here on."""
        self.longest_stall_s = 0.0

    async def stop(self) -> None:
        """Write no more; wait for what is unanswered. Raises what ended the writing, if something did."""
        self._stopping = True
        workers, self._workers = self._workers, []
        outcomes = await asyncio.gather(*workers, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, ExportError)]
        if failures:
            raise failures[0]

    async def close(self) -> None:
        """Let the connection go; what is unanswered stays so."""
        workers, self._workers = self._workers, []
        if self._client is not None:
            await self._client.close()
        await asyncio.gather(*workers, return_exceptions=True)

    async def verify(self) -> Findings:
        """Read back every block that was ever written."""
        findings = Findings()
        limit = asyncio.Semaphore(DEPTH)
        async with asyncio.TaskGroup() as group:
            for block, versions in sorted(self._blocks.items()):
                await limit.acquire()
                group.create_task(self._check(block, versions, findings, limit))
        return findings

    async def _write_on(self, client: BlockClient) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            block = self._idle_block()
            versions = self._blocks.setdefault(block, _Versions(0, self._first_version))
            versions.issued += 1
            try:
                await client.write(block * BLOCK_BYTES, block_content(block, versions.issued))
            finally:
                self._busy.discard(block)
                self._progress.set()
            versions.acknowledged = versions.issued
            now_s = loop.time()
            self.longest_stall_s = max(self.longest_stall_s, now_s - self.last_answer_s)
            self.last_answer_s = now_s
            self.acknowledged += 1

    def _idle_block(self) -> int:
        while True:
            block = self._random.choice(self._span)
            if block not in self._busy:
                self._busy.add(block)
                return block

    async def _check(self, block: int, versions: _Versions, findings: Findings, limit: asyncio.Semaphore) -> None:
        try:
            data = bytes(await self.client.read(block * BLOCK_BYTES, BLOCK_BYTES))
            findings.read += 1
            # What was never acknowledged at all may be there or not.
            allowed = {versions.acknowledged, versions.issued} - {0}
            if versions.acknowledged and all(data != block_content(block, version) for version in allowed):
                findings.wrong.append(
                    f"block {block}: acknowledged version {versions.acknowledged}, read {describe(data)}"
                )
        finally:
            limit.release()

    def _raise_failure(self) -> None:
        for worker in self._workers:
            failure = worker.exception() if worker.done() else None
            if failure is not None:
                raise failure
