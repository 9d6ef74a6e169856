"""The journal: what is sled-wide once more, in the sled's state directory, so that it outlives the devices.

A device may be put back from an image, or devices may never be there together: each then knows a fence that is older
than what the sled has vouched for (F2). The journal is a file of records that only grows, one short write and sync for
all that waits; it is written again at each start and when it has grown long. It is read beside the devices, and the
highest counts. docs/on-disk-sled.md has the format.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final
from uuid import UUID

import crc32c
from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Padding
from construct import Struct as Layout

from sled_controller.durable import open_own, put_file
from sled_controller.storage.content import TableContent
from sled_controller.storage.errors import RecordMalformed, StorageUnusable
from sled_controller.storage.records import (
    CheckpointEntry,
    Entry,
    MembersEntry,
    NamespaceDeletedEntry,
    NamespaceEntry,
    decode_entry,
)
from spdk_bindings.device import PENDING, Done
from spdk_bindings.nvme import Status

log = logging.getLogger(__name__)

MAGIC: Final = b"PLSJ"
RECORD_MAGIC: Final = b"PLJR"
VERSION: Final = 1
CRC: Final = Struct("<I")
HEADER: Final = Struct("<4sHH16s4x")
HEADER_BYTES: Final = HEADER.size + CRC.size
HEADER_LAYOUT: Final = Layout(
    "magic" / Const(MAGIC), "version" / Const(VERSION, Int16ul), "size" / Const(HEADER_BYTES, Int16ul),
    "sled" / Bytes(16), Padding(4), "crc32c" / Int32ul,
)  # fmt: skip
RECORD: Final = Struct("<4sBxH")
RECORD_BYTES: Final = RECORD.size + CRC.size
RECORD_LAYOUT: Final = Layout(
    "magic" / Const(RECORD_MAGIC), "kind" / Int8ul, Padding(1), "payload_bytes" / Int16ul, "crc32c" / Int32ul
)
GROWTH_BYTES_MAX: Final = 1 << 20
"""Written again when it has grown by so much, and to twice what it was: once in some thousand fences."""
WRITE_TIMEOUT_S: Final = 5.0
"""As long as a device's table has: a disk that hangs must not hold up every attach on the sled."""
FILE_BYTES_MAX: Final = 64 << 20
"""Far above what a sled's table can hold; it is read at start."""
NOT_WIDE: Final = (CheckpointEntry, MembersEntry, NamespaceEntry, NamespaceDeletedEntry)

Submit = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
"""(work, done): do the work elsewhere after all that was submitted before; then `done` with what it raised, or None."""


class SledJournal:
    """The journal of one sled. `read` it first, `begin` it at each start, `append` to it.

    One that cannot be written is given up: the devices carry the fences as they would without one, and the next start
    reads what was written before. `failure` says why, for people.
    """

    def __init__(self, path: Path, sled: UUID, submit: Submit) -> None:
        """`submit` does what blocks: writes and syncs."""
        self.content = TableContent()
        self.missing = True
        self.damaged = 0
        self.failure = ""
        self._path = path
        self._sled = sled.bytes
        self._submit = submit
        self._fresh_bytes = 0
        self._grown_bytes = 0
        self._queue: list[tuple[Sequence[Entry], Done]] = []
        self._busy = False

    def read(self) -> None:
        """Take in what former starts have kept; nothing when there is no file. Raises StorageUnusable when it cannot be
        read, or is another sled's."""
        try:
            with os.fdopen(open_own(self._path, os.O_RDONLY), "rb") as file:
                data = file.read(FILE_BYTES_MAX)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageUnusable(f"{self._path}: {error.strerror}; give the program access to it") from None
        self.missing = False
        owner, entries, self.damaged = parse(data)
        if owner not in (None, self._sled):
            raise StorageUnusable(
                f"{self._path}: belongs to sled {UUID(bytes=owner)}; put this sled's own there, or remove it"
            )
        for entry in entries:
            self.content.apply(entry)
        if self.damaged:
            log.error("event=journal_damaged file=%s pieces=%d", self._path, self.damaged)

    def begin(self, content: TableContent, done: Done) -> int:
        """Write it again with what counts from now on; complete when that is durable, or the journal given up."""
        self.content = TableContent()
        for entry in _sled_wide(content.checkpoint()):
            self.content.apply(entry)
        self._queue.append(((), done))
        self._busy = True
        self._write_anew()
        return PENDING

    def append(self, entries: Sequence[Entry], done: Done) -> None:
        """Make entries durable after all before them; `done(0)` once that is so, or the journal is given up."""
        if self.failure:
            done(int(Status.SUCCESS))
            return
        wide = _sled_wide(entries)
        for entry in wide:
            self.content.apply(entry)
        self._queue.append((wide, done))
        if not self._busy:
            self._advance()

    def _advance(self) -> None:
        """Write what waits, in one piece; or all of it again, what waits included."""
        self._busy = bool(self._queue)
        if not self._busy:
            return
        data = b"".join(encode(entry) for entries, _ in self._queue for entry in entries)
        if self._grown_bytes + len(data) > max(GROWTH_BYTES_MAX, self._fresh_bytes):
            self._write_anew()
            return
        self._grown_bytes += len(data)
        if data:
            self._do(partial(_append, self._path, data))
        else:
            self._written(self._taken(), None)

    def _write_anew(self) -> None:
        entries = _sled_wide(self.content.checkpoint())

        def work() -> None:
            data = b"".join([header(self._sled), *map(encode, entries)])
            put_file(self._path, data, 0o600)
            self._fresh_bytes = len(data)

        self._grown_bytes = 0
        self._do(work)

    def _do(self, work: Callable[[], None]) -> None:
        """Have it done, within bounded time, and complete what waits now."""
        waiting, over = self._taken(), False

        def done(error: BaseException | None) -> None:
            nonlocal over
            if not over:
                over = True
                timer.cancel()
                self._written(waiting, error)

        late = OSError(errno.ETIMEDOUT, "the disk does not answer")
        timer = asyncio.get_running_loop().call_later(WRITE_TIMEOUT_S, done, late)
        self._submit(work, done)

    def _taken(self) -> list[Done]:
        taken, self._queue = self._queue, []
        return [done for _, done in taken]

    def _written(self, waiting: list[Done], error: BaseException | None) -> None:
        if error is not None and not self.failure:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.failure = f"{self._path}: {reason}"
            log.error("event=journal_given_up file=%s reason=%r", self._path, reason)
        if self.failure:
            waiting += self._taken()
        for done in waiting:
            done(int(Status.SUCCESS))
        if not self.failure:
            self._advance()


def header(sled: bytes) -> bytes:
    """The 32 bytes that a journal begins with."""
    body = HEADER.pack(MAGIC, VERSION, HEADER_BYTES, sled)
    return body + CRC.pack(crc32c.crc32c(body))


def encode(entry: Entry) -> bytes:
    """A record: its head, a checksum over head and payload, the payload."""
    payload = entry.encode()
    head = RECORD.pack(RECORD_MAGIC, entry.KIND, len(payload))
    return head + CRC.pack(crc32c.crc32c(payload, crc32c.crc32c(head))) + payload


def parse(data: bytes) -> tuple[bytes | None, list[Entry], int]:
    """(sled, entries, damaged pieces) of a journal. Records stand alone, and each only raises what counts: what is
    damaged is passed over, up to the next one that verifies. A piece at the end may be one that was being written. The
    sled is None where the header is damaged."""
    owner, damaged, entries, at = None, 0, [], 0
    body = data[: HEADER.size]
    if len(data) >= HEADER_BYTES and CRC.unpack_from(data, HEADER.size)[0] == crc32c.crc32c(body):
        magic, version, size, sled = HEADER.unpack(body)
        if (magic, version, size) == (MAGIC, VERSION, HEADER_BYTES):
            owner, at = sled, HEADER_BYTES
    broken = owner is None
    while at < len(data):
        found = _record(data, at)
        if found is None:
            broken = True
            at = data.find(RECORD_MAGIC, at + 1)
            if at < 0:
                break
            continue
        damaged += broken
        broken = False
        entry, at = found
        entries.append(entry)
    return owner, entries, damaged + (owner is None and not entries and bool(data))


def _record(data: bytes, at: int) -> tuple[Entry, int] | None:
    """The record at that place and where the next one begins; None when there is none that verifies."""
    start = at + RECORD_BYTES
    if start > len(data):
        return None
    magic, kind, size = RECORD.unpack_from(data, at)
    if magic != RECORD_MAGIC or start + size > len(data):
        return None
    payload = data[start : start + size]
    if CRC.unpack_from(data, at + RECORD.size)[0] != crc32c.crc32c(payload, crc32c.crc32c(data[at : at + RECORD.size])):
        return None
    try:
        return decode_entry(kind, payload), start + size
    except RecordMalformed:
        return None


def _sled_wide(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if not isinstance(entry, NOT_WIDE)]


def _append(path: Path, data: bytes) -> None:
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
