"""A sled in memory, as far as a head can tell, and what stands for the client of one."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from kit.credentials import (
    BLOCK,
    KEY_SET,
)

from head_node.cluster.lease import MS
from head_node.store.records import (
    SledRecord,
)
from sled_controller.credential import parse_credential, verify
from sled_controller.errors import (
    CredentialExpired,
    CredentialRefused,
    FencedOff,
    SledError,
    SledUnavailable,
    Superseded,
)
from sled_controller.receipt import DeviceState, Receipt
from sled_controller.sled_start import SledStart
from spdk_bindings.device import Buffer

T = TypeVar("T")


class MemorySled:
    """A sled's fence and namespaces, as far as a head can tell."""

    def __init__(self, number: int) -> None:
        self.id = UUID(int=1000 + number)
        self.record = SledRecord(self.id, f"sled-{number}", bytes(32), f"nqn.{number}", ("127.0.0.1", number + 1))
        self.fences: dict[UUID, tuple[int, int, bytes]] = {}
        self.namespaces: dict[int, tuple[UUID, int, int]] = {}
        self.data: dict[tuple[int, int], bytes] = {}
        self.writes: list[tuple[int, int]] = []
        """(epoch, lba) of every write that was let in."""
        self.dead = False
        self.ahead_ms = 0
        self.boots = 1
        self.boot_id = b""
        self.clients: list[MemorySledClient] = []
        self.lie: bytes | None = None
        """A credential shown with a fenced-off answer to everything from now on."""
        self.key_sets = 0

    def kill(self) -> None:
        self.dead = True
        for client in list(self.clients):
            client.cut()

    def restart(self) -> None:
        """It starts again, and has forgotten what it believed."""
        self.kill()
        self.dead, self.lie = False, None
        self.boots += 1

    def check_term(self, credential: bytes) -> None:
        """Raises CredentialExpired."""
        if parse_credential(credential).credential.expires_ms < time.time_ns() // MS + self.ahead_ms:
            raise CredentialExpired

    def admit(self, volume: UUID, epoch: int, number: int, shown: bytes) -> None:
        """F1's equality; raises what a sled would answer."""
        self.check_term(shown)
        current, attach, credential = self.fences[volume]
        if self.lie is not None:
            raise FencedOff(epoch + 1, self.lie)
        if current != epoch:
            raise FencedOff(current, credential)
        if attach != number:
            raise Superseded(current, attach)


class MemorySledClient:
    """Stands for SledClient."""

    def __init__(self, sled: MemorySled, unreachable: Callable[[], bool]) -> None:
        self._sled = sled
        self._unreachable = unreachable
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        await asyncio.sleep(0)
        if self._sled.dead or self._unreachable():
            raise SledUnavailable("no answer")
        self._sled.clients.append(self)

    @property
    def boot_counter(self) -> int:
        return self._sled.boots

    @property
    def start(self) -> SledStart:
        return SledStart(self._sled.boots, self._sled.boot_id)

    async def push_key_set(self) -> None:
        self._sled.key_sets += 1

    async def attach(self, credential: bytes, attach_number: int) -> "MemoryAttachment":
        await asyncio.sleep(0)
        self.check()
        self._sled.check_term(credential)
        shown = verify(parse_credential(credential), KEY_SET)
        epoch, number, raised_by = self._sled.fences.get(shown.volume, (0, 0, b""))
        if self._sled.lie is not None:
            raise FencedOff(shown.epoch + 1, self._sled.lie)
        if shown.epoch < epoch:
            raise FencedOff(epoch, raised_by)
        if shown.epoch == epoch and attach_number < number:
            raise Superseded(epoch, number)
        self._sled.fences[shown.volume] = (shown.epoch, attach_number, credential)
        return MemoryAttachment(self._sled, self, shown.volume, shown.epoch, attach_number, credential)

    def check(self) -> None:
        if self.closed.done() or self._sled.dead or self._unreachable():
            self.cut()
            raise SledUnavailable("gone")

    def cut(self) -> None:
        if self in self._sled.clients:
            self._sled.clients.remove(self)
        if not self.closed.done():
            self.closed.set_result(None)

    async def close(self) -> None:
        self.cut()


class MemoryAttachment:
    """Stands for Attachment."""

    def __init__(
        self, sled: MemorySled, client: MemorySledClient, volume: UUID, epoch: int, number: int, credential: bytes
    ) -> None:  # fmt: skip
        self._credential = credential
        self.on_credential_refused: Callable[[CredentialRefused], None] = lambda error: None
        self._sled, self._client = sled, client
        self._key = (volume, epoch, number)
        devices = ((0, DeviceState.DRAINED),)
        self.receipt = Receipt(sled.id, 1, volume, epoch, number, 0, devices)
        self.renewals = 0

    def write(self, nsid: int, lba: int, data: Sequence[Buffer], *, fua: bool = False) -> "asyncio.Future[None]":
        def act() -> None:
            joined = b"".join(data)
            self._sled.writes.append((self._key[1], lba))
            for at in range(0, len(joined), BLOCK):
                self._sled.data[nsid, lba + at // BLOCK] = joined[at : at + BLOCK]

        return self._do(act)

    def read(self, nsid: int, lba: int, blocks: int) -> "asyncio.Future[Buffer]":
        return self._do(
            lambda: b"".join(self._sled.data.get((nsid, at), bytes(BLOCK)) for at in range(lba, lba + blocks))
        )

    def flush(self, nsid: int) -> "asyncio.Future[None]":
        return self._do(lambda: None)

    async def create_namespace(self, column: int, blocks: int) -> int:
        def act() -> int:
            wanted = (self._key[0], column, blocks)
            for nsid, made in self._sled.namespaces.items():
                if made == wanted:
                    return nsid
            nsid = len(self._sled.namespaces) + 1
            self._sled.namespaces[nsid] = wanted
            return nsid

        return await self._do(act)

    async def delete_namespace(self, nsid: int) -> None:
        await self._do(lambda: self._sled.namespaces.pop(nsid))

    async def namespaces(self) -> list[Any]:
        from sled_controller.fabric.vendor import NamespaceEntry

        return [
            NamespaceEntry(nsid, column, blocks, volume)
            for nsid, (volume, column, blocks) in self._sled.namespaces.items()
            if volume == self._key[0]
        ]

    async def renew(self, credential: bytes) -> None:
        if not credential:
            raise CredentialRefused("empty")
        self.renewals += 1
        self._credential = credential

    def _do(self, act: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish() -> None:
            if future.done():
                return
            try:
                self._client.check()
                self._sled.admit(*self._key, self._credential)
                future.set_result(act())
            except SledError as error:
                if isinstance(error, CredentialRefused):
                    self.on_credential_refused(error)
                future.set_exception(error)

        loop.call_soon(finish)
        return future
