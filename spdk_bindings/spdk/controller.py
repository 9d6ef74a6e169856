"""A drive's controller behind its reactor: attaching, admin commands, logs, format and firmware."""

import asyncio
import enum
import logging
from dataclasses import dataclass
from typing import Any, Final, Self

from spdk_bindings.device import BLOCK_BYTES
from spdk_bindings.log_pages import ERROR_ENTRIES_MAX, ERROR_ENTRY_BYTES, ERROR_FORMAT, SMART_FORMAT, ErrorEntry
from spdk_bindings.nvme import NSID_ALL, AdminOpcode, LogPage
from spdk_bindings.pci import obstacle
from spdk_bindings.spdk.dma import DmaArena
from spdk_bindings.spdk.environment import SpdkEnvironment
from spdk_bindings.spdk.errors import AttachError, SpdkError
from spdk_bindings.spdk.identity import Identity
from spdk_bindings.spdk.queue import ADMIN_COMMANDS_MAX, COMMANDS_MAX, CommandQueue

log = logging.getLogger(__name__)

ADMIN_BYTES_MAX: Final = 64 * 1024
_MIB: Final = 1 << 20
_TRANSPORT: Final = "trtype:"
_SMART_BYTES: Final = 512
_FORMAT_OPCODE: Final = 0x80


@dataclass(frozen=True, slots=True)
class DriveSettings:
    """How a drive is attached; `nsid` 0 is its first namespace, an empty `host_nqn` SPDK's own.

    A command that takes longer than its timeout is aborted, after twice that time the controller is reset. A reset
    gives commands `drain_timeout_s` to end. `bounce_mib` is DMA memory for buffers that aren't in `Device.allocate`'s.
    """

    nsid: int = 0
    host_nqn: str = ""
    io_timeout_s: float = 4.0
    admin_timeout_s: float = 60.0
    drain_timeout_s: float = 1.0
    keep_alive_s: float = 10.0
    bounce_mib: int = 8


class DriveState(enum.IntEnum):
    """What the reactor says of the drive; see native/interface.h."""

    CONNECTING = 0
    READY = 1
    RECOVERING = 2
    GONE = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class DriveCounters:
    """Since it was attached: commands given to SPDK, those that failed, and what went wrong on the way.

    `waits` are commands that found no tag or bounce buffer free, `bounced` those that were copied through one.
    """

    reads: int
    writes: int
    other_commands: int
    failures: int
    resets: int
    lost: int
    timeouts: int
    queue_full: int
    waits: int
    bounced: int


class SpdkController:
    """A controller with one namespace, attached; for the thread of the event loop that it was opened in."""

    identity: Identity
    queue: CommandQueue

    def __init__(self, environment: SpdkEnvironment, address: str, settings: DriveSettings) -> None:
        """Start attaching; use `open`."""
        native = environment.native
        self.address = address
        self._environment = environment
        self._ffi, self._lib = native.ffi, native.lib
        self._loop = asyncio.get_running_loop()
        self._bounce = DmaArena(native, settings.bounce_mib * _MIB)
        self._admin_memory = DmaArena(native, ADMIN_COMMANDS_MAX * ADMIN_BYTES_MAX)
        self._admin_room = asyncio.Semaphore(ADMIN_COMMANDS_MAX)
        self._drive: Any = self._lib.drive_open(self._options(settings))
        if self._drive == self._ffi.NULL:
            self._bounce.release()
            self._admin_memory.release()
            raise AttachError(f"{address}: no memory or thread for a reactor")
        self._view = self._lib.drive_view(self._drive)
        self._descriptor: int = self._lib.drive_eventfd(self._drive)
        self._told = DriveState.READY

    @classmethod
    async def open(cls, environment: SpdkEnvironment, address: str, settings: DriveSettings | None = None) -> Self:
        """Attach the drive at a PCIe address (0000:01:00.0) or a transport id (trtype:TCP traddr:... subnqn:...).

        Raises AttachError, PoolExhausted.
        """
        self = cls(environment, address, settings or DriveSettings())
        connected: asyncio.Future[None] = self._loop.create_future()

        def heard() -> None:
            self._lib.drive_reap(self._drive, self._ffi.NULL, 0)
            if self.state is not DriveState.CONNECTING and not connected.done():
                connected.set_result(None)

        self._loop.add_reader(self._descriptor, heard)
        try:
            await connected
            if self.state is DriveState.FAILED:
                found = "" if _TRANSPORT in address else obstacle(address)
                raise AttachError(f"{address}: {found or self.error}")
        except BaseException:
            self._loop.remove_reader(self._descriptor)
            await asyncio.to_thread(self._end)
            raise
        controller, namespace = (
            bytes(self._ffi.buffer(page)) for page in (self._view.controller, self._view.namespace_)
        )
        self.identity = Identity.parse(self._view.nsid, controller, namespace)
        self.queue = CommandQueue(environment, self._drive, self._bounce)
        self._loop.remove_reader(self._descriptor)
        self._loop.add_reader(self._descriptor, self._heard)
        return self

    def _heard(self) -> None:
        self.queue.completed()
        if self._view.state != self._told and self._drive is not None:
            self._tell(self.state)

    def _tell(self, state: DriveState) -> None:
        """Log what has become of the drive: nobody else does while nobody uses it."""
        self._told = state
        if state is DriveState.GONE:
            reason = self.error or "its namespace is not there"
            log.error("event=drive_gone address=%r serial=%s reason=%r", self.address, self.identity.serial, reason)
        elif state is DriveState.RECOVERING:
            log.warning("event=drive_recovering address=%r serial=%s", self.address, self.identity.serial)
        else:
            log.info("event=drive_ready address=%r serial=%s", self.address, self.identity.serial)

    @property
    def state(self) -> DriveState:
        """What it is doing now."""
        return DriveState(self._view.state)

    @property
    def error(self) -> str:
        """Why it could not be attached, or is gone."""
        return str(self._ffi.string(self._view.error).decode())

    @property
    def counters(self) -> DriveCounters:
        """What has happened so far."""
        view = self._view
        return DriveCounters(
            view.reads, view.writes, view.other_commands, view.failures, view.resets, view.lost, view.timeouts,
            view.queue_full, self.queue.waits, self.queue.bounced,
        )  # fmt: skip

    async def admin(
        self, opcode: int, *, nsid: int = 0, dwords: tuple[int, ...] = (), send: bytes = b"", receive_bytes: int = 0
    ) -> tuple[int, bytes]:
        """An admin command with up to six dwords from 10 on; its status, and what was received (at most 64 KiB).

        Raises SpdkError when the drive is closed, ValueError for more.
        """
        length = len(send) or receive_bytes
        if length > ADMIN_BYTES_MAX:
            raise ValueError(f"{length} bytes are more than {ADMIN_BYTES_MAX} of an admin command")
        blocks = max(1, -(-length // BLOCK_BYTES))
        await self._admin_room.acquire()
        if self._drive is None:
            self._admin_room.release()
            raise SpdkError(f"{self.address}: closed")
        memory = self._admin_memory
        offset = memory.take(blocks)
        memory.view[offset : offset + len(send)] = send
        answer: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()

        def done(status: int) -> None:
            received = bytes(memory.view[offset : offset + receive_bytes])
            memory.give(offset, blocks)
            self._admin_room.release()
            if not answer.done():
                answer.set_result((status, received))

        padded = (*dwords, *(0,) * (6 - len(dwords)))
        self.queue.admin(opcode, nsid, padded, memory.base + offset if length else 0, length, done)
        return await answer

    async def log_page(self, page: int, length: int) -> tuple[int, bytes]:
        """Status and contents of a log page of the controller (Get Log Page, Base 2.0, 5.16)."""
        dwords = length // 4 - 1
        return await self.admin(
            AdminOpcode.GET_LOG_PAGE,
            nsid=NSID_ALL,
            dwords=(page | (dwords & 0xFFFF) << 16, dwords >> 16),
            receive_bytes=length,
        )

    async def smart(self) -> dict[str, int]:
        """The SMART / health log by the names of its fields. Raises SpdkError with the status."""
        status, page = await self.log_page(LogPage.SMART, _SMART_BYTES)
        if status:
            raise SpdkError(f"{self.address}: no SMART log, status {status:#x}")
        return {name: value for name, value in SMART_FORMAT.parse(page).items() if not name.startswith("_")}

    async def error_log(self) -> list[ErrorEntry]:
        """The entries of the error log, newest first. Raises SpdkError with the status."""
        status, page = await self.log_page(LogPage.ERROR, ERROR_ENTRIES_MAX * ERROR_ENTRY_BYTES)
        if status:
            raise SpdkError(f"{self.address}: no error log, status {status:#x}")
        entries = [
            ERROR_FORMAT.parse(page[at : at + ERROR_ENTRY_BYTES]) for at in range(0, len(page), ERROR_ENTRY_BYTES)
        ]
        return [
            ErrorEntry(one.count, one.queue_id, one.cid, one.status, one.lba, one.nsid, one.parameter, one.specific)
            for one in entries
            if one.count
        ]

    async def format(self, block_bytes: int = BLOCK_BYTES) -> int:
        """Erase the namespace and give it blocks of that size; the status. Close and open the drive afterwards.

        Raises SpdkError when the drive has no such format.
        """
        best = self.identity.best_format(block_bytes)
        if best is None:
            offered = ", ".join(f"{one.block_bytes}+{one.metadata_bytes}" for one in self.identity.formats)
            raise SpdkError(f"{self.address}: no format with blocks of {block_bytes} bytes, only {offered}")
        status, _ = await self.admin(_FORMAT_OPCODE, nsid=self.identity.nsid, dwords=(best.index,))
        return status

    async def update_firmware(self, image: bytes, slot: int, action: int = 1) -> int:
        """Download a firmware image (whole dwords) and commit it to `slot` 1..7; the first status that is no success.

        `action` 1 activates it at the next reset, 3 at once (Base 2.0, figure 177).
        """
        if len(image) % 4 or not image:
            raise ValueError(f"a firmware image of {len(image)} bytes is not a whole number of dwords")
        for at in range(0, len(image), ADMIN_BYTES_MAX):
            part = image[at : at + ADMIN_BYTES_MAX]
            status, _ = await self.admin(AdminOpcode.FIRMWARE_DOWNLOAD, dwords=(len(part) // 4 - 1, at // 4), send=part)
            if status:
                return status
        status, _ = await self.admin(AdminOpcode.FIRMWARE_COMMIT, dwords=(slot | action << 3,))
        return status

    def close(self) -> None:
        """Detach; nothing may be outstanding. A second call does nothing, and commands find nobody from now on."""
        if self._drive is not None:
            self._loop.remove_reader(self._descriptor)
            self.queue.close()
            self._end()

    def _end(self) -> None:
        last = self._ffi.new("struct drive_view *")
        self._ffi.memmove(last, self._view, self._ffi.sizeof("struct drive_view"))
        last.state = DriveState.GONE
        self._view = last
        self._lib.drive_close(self._drive)
        self._drive = None
        self._bounce.release()
        self._admin_memory.release()

    def _options(self, settings: DriveSettings) -> Any:
        address = self.address if _TRANSPORT in self.address else f"trtype:PCIe traddr:{self.address}"
        options = self._ffi.new("struct drive_options *")
        # The shim copies the texts before drive_open returns; until then they are kept here.
        self._texts = [self._ffi.new("char[]", text.encode()) for text in (address, settings.host_nqn)]
        options.transport, options.host_nqn = self._texts
        options.nsid, options.commands_max = settings.nsid, COMMANDS_MAX
        options.core = self._environment.next_core()
        options.io_timeout_ms = round(settings.io_timeout_s * 1000)
        options.admin_timeout_ms = round(settings.admin_timeout_s * 1000)
        options.drain_timeout_ms = round(settings.drain_timeout_s * 1000)
        options.keep_alive_ms = round(settings.keep_alive_s * 1000)
        return options
