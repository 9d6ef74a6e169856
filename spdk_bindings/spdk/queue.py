"""Commands to a drive's reactor and back: one ring each way, rung once for all commands of a turn of the event loop."""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from spdk_bindings.device import BLOCK_BYTES, PENDING, Buffer, Done
from spdk_bindings.nvme import IoOpcode, Status
from spdk_bindings.spdk.dma import NONE_FREE, DmaArena
from spdk_bindings.spdk.environment import SpdkEnvironment

COMMANDS_MAX: Final = 1024
"""Of a drive, with its reactor or on the way; a power of two. Whatever is beyond that waits here."""
ADMIN_COMMANDS_MAX: Final = 4

_IO_COMMANDS_MAX: Final = COMMANDS_MAX - ADMIN_COMMANDS_MAX - 1
_ABORTED: Final = int(Status.ABORT_REQUESTED)
_GONE: Final = int(Status.HOST_PATHING_ERROR)
_READ: Final = int(IoOpcode.READ)
_KIND_IO, _KIND_ADMIN, _KIND_RESET = range(3)
_COMMAND_BYTES: Final = 64
_RING_MASK: Final = COMMANDS_MAX - 1
_IO = struct.Struct("<QQQIIIBBH24x")
_ADMIN = struct.Struct("<QQQIIIBBH6I")
_COMPLETION = struct.Struct("<II")
_NO_DWORDS: Final = (0, 0, 0, 0, 0, 0)


class CommandQueue:
    """The event loop's side of the rings of one drive; only for the loop's thread."""

    def __init__(self, environment: SpdkEnvironment, drive: Any, bounce: DmaArena) -> None:
        """`drive` is the shim's, `bounce` what is copied through for buffers outside of DMA memory."""
        self._loop = asyncio.get_running_loop()
        self._drive = drive
        self._bounce = bounce
        self._buffers_base, self._buffers_end = environment.buffers.base, environment.buffers.end
        ffi, lib = environment.native.ffi, environment.native.lib
        self._buffer_of: Callable[[Buffer], Any] = ffi.from_buffer
        self._address_of: Callable[[Any], int] = lib.drive_address
        self._submit = lib.drive_submit
        self._reap = lib.drive_reap
        self._commands = ffi.buffer(lib.drive_commands(drive), COMMANDS_MAX * _COMMAND_BYTES)
        self._ended = ffi.new("struct drive_completion[]", COMMANDS_MAX)
        self._ended_view = memoryview(ffi.buffer(self._ended)).cast("B")
        self._produced = 0
        self._unrung = 0
        self._ringing = False
        self._reset_tag = COMMANDS_MAX - 1
        self._tags = list(range(_IO_COMMANDS_MAX))
        self._admin_tags = list(range(_IO_COMMANDS_MAX, self._reset_tag))
        self._slots: list[Any] = [None] * COMMANDS_MAX
        self._waiting: deque[tuple[int, int, int, int, Buffer | None, Done]] = deque()
        self._resetting: deque[Done] = deque()
        self._closed = False
        self.resets = 0
        """How many were asked for."""
        self.waits = 0
        self.bounced = 0

    def io(self, opcode: int, flags: int, lba: int, blocks: int, data: Buffer | None, done: Done) -> int:
        """Start an I/O command with `data` of `blocks` blocks, or none; PENDING, after `close` HOST_PATHING_ERROR."""
        if self._waiting or not self._tags:
            return self._wait(opcode, flags, lba, blocks, data, done)
        address, offset = 0, NONE_FREE
        if data is not None:
            address = self._address_of(self._buffer_of(data))
            if not self._buffers_base <= address < self._buffers_end:
                offset = self._bounce.take(blocks)
                if offset == NONE_FREE:
                    return self._wait(opcode, flags, lba, blocks, data, done)
                self.bounced += 1
                address = self._bounce.base + offset
                if opcode != _READ:
                    self._bounce.view[offset : offset + blocks * BLOCK_BYTES] = data
        tag = self._tags.pop()
        self._slots[tag] = (done, data, offset, blocks, opcode)
        at = (self._produced & _RING_MASK) * _COMMAND_BYTES
        _IO.pack_into(self._commands, at, tag, address, lba, 0, blocks, 0, _KIND_IO, opcode, flags)
        self._produced += 1
        self._unrung += 1
        if not self._ringing:
            self._ringing = True
            self._loop.call_soon(self._ring)
        return PENDING

    def admin(self, opcode: int, nsid: int, dwords: tuple[int, ...], address: int, length: int, done: Done) -> None:
        """Start an admin command (of ADMIN_COMMANDS_MAX at a time) with `length` bytes of DMA memory at `address`."""
        tag = self._admin_tags.pop()
        self._slots[tag] = (done, None, NONE_FREE, 0, opcode)
        self._enter(_KIND_ADMIN, tag, address, length, nsid, opcode, dwords)

    def reset(self, done: Done) -> int:
        """End every command before it, then `done`; PENDING, or HOST_PATHING_ERROR after `close`."""
        if self._closed:
            return _GONE
        self.resets += 1
        for waiting in self._waiting:
            self._loop.call_soon(waiting[-1], _ABORTED)
        self._waiting.clear()
        self._resetting.append(done)
        if len(self._resetting) == 1:
            self._start_reset()
        return PENDING

    def close(self) -> None:
        """Give the reactor nothing more, as it is about to end."""
        self._closed = True
        self._tags.clear()
        self._waiting.clear()
        self._unrung = 0

    def completed(self) -> None:
        """Take what has ended; for when the drive's descriptor is readable."""
        count = self._reap(self._drive, self._ended, COMMANDS_MAX)
        if not count:
            return
        slots, tags, bounce = self._slots, self._tags, self._bounce
        self._ringing = True
        for tag, status in _COMPLETION.iter_unpack(self._ended_view[: count * _COMPLETION.size]):
            done, data, offset, blocks, opcode = slots[tag]
            slots[tag] = None
            if offset >= 0:
                if opcode == _READ and not status:
                    data[:] = bounce.view[offset : offset + blocks * BLOCK_BYTES]
                bounce.give(offset, blocks)
            if tag < _IO_COMMANDS_MAX:
                tags.append(tag)
            elif tag != self._reset_tag:
                self._admin_tags.append(tag)
            try:
                done(status)
            except Exception as error:
                self._loop.call_exception_handler({"message": "a drive's completion failed", "exception": error})
        try:
            if self._waiting:
                self._start_waiting()
        finally:
            self._ring()

    def _wait(self, opcode: int, flags: int, lba: int, blocks: int, data: Buffer | None, done: Done) -> int:
        if self._closed:
            return _GONE
        self.waits += 1
        self._waiting.append((opcode, flags, lba, blocks, data, done))
        return PENDING

    def _start_waiting(self) -> None:
        """As many as there is room for; whoever still finds none, and those behind it, keep their order."""
        waiting, self._waiting = self._waiting, deque()
        try:
            while waiting and not self._waiting:
                self.io(*waiting.popleft())
        finally:
            self._waiting += waiting

    def _enter(
        self, kind: int, tag: int, address: int, length: int, nsid: int, opcode: int, dwords: tuple[int, ...]
    ) -> None:
        at = (self._produced & _RING_MASK) * _COMMAND_BYTES
        _ADMIN.pack_into(self._commands, at, tag, address, 0, length, 0, nsid, kind, opcode, 0, *dwords)
        self._produced += 1
        self._unrung += 1
        self._ring()

    def _start_reset(self) -> None:
        self._slots[self._reset_tag] = (self._reset_ended, None, NONE_FREE, 0, 0)
        self._enter(_KIND_RESET, self._reset_tag, 0, 0, 0, 0, _NO_DWORDS)

    def _reset_ended(self, status: int) -> None:
        done = self._resetting.popleft()
        if self._resetting:
            self._start_reset()
        done(status)

    def _ring(self) -> None:
        self._ringing = False
        count, self._unrung = self._unrung, 0
        if count:
            self._submit(self._drive, count)
