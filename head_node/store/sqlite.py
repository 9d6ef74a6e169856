"""The embedded store: one SQLite file that one process owns.

One thread does everything in order, so that an fsync never holds up the event loop. A failed COMMIT leaves the outcome
open: SQLite may have written the frames that a later recovery would find. The connection is then given up, and the
next one does a checkpoint before its first answer, so that what a reader sees afterwards is durable.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from head_node.store.errors import CompareFailed, OutcomeUnknown, StoreError, StoreFailed, StoreLocked, StoreUnsafe
from head_node.store.interface import (
    ABSENT,
    RESTORED_REVISIONS_SKIPPED,
    Entry,
    JournalLine,
    Line,
    Rewrite,
    Snapshot,
    Wrap,
    check_lines,
    check_transaction,
    surplus,
)
from head_node.store.sealed_backup import is_sealed
from head_node.store.watchers import Watchers
from sled_controller.durable import open_own, put_file

APPLICATION_ID = 0x50414C53  # "PALS"
FORMAT = 2
SYNCHRONOUS_FULL = 2
# Requests waiting for the one thread; each holds at most a transaction's values.
PENDING_MAX = 256

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)"
    " WITHOUT ROWID",
    # AUTOINCREMENT: the number of a line that went is not given again.
    "CREATE TABLE IF NOT EXISTS journal (sequence INTEGER PRIMARY KEY AUTOINCREMENT, actor TEXT NOT NULL,"
    " value BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS journal_by_actor ON journal (actor, sequence)",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT OR IGNORE INTO meta VALUES ('revision', 0), ('restored', 0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)


class SqliteStore:
    """Implements `Store` over `path`; make one with `open`."""

    def __init__(self, path: Path, connect: Callable[..., sqlite3.Connection]) -> None:
        self._database = _Database(path, connect)
        self._thread = ThreadPoolExecutor(1, "store")
        self._watchers = Watchers()
        self._pending = 0
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, connect: Callable[..., sqlite3.Connection] = sqlite3.connect) -> "SqliteStore":
        """Open or create the store; raises StoreLocked, StoreUnsafe, StoreFailed."""
        store = cls(path, connect)
        try:
            await store._run(store._database.start)
        except BaseException:
            await store.close()
            raise
        return store

    async def get(self, key: str) -> Entry | None:
        return await self._run(lambda: self._database.get(key))

    async def list(self, prefix: str) -> Snapshot:
        return await self._run(lambda: self._database.list(prefix))

    async def commit(
        self,
        *,
        compare: Mapping[str, int] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
    ) -> int:
        compare, put, delete = dict(compare or {}), dict(put or {}), tuple(delete)
        check_transaction(compare, put, delete)
        return await self._announce(lambda: self._database.commit(compare, put, delete))

    async def watch(self, after: int) -> int:
        waiter = asyncio.ensure_future(self._watchers.next())
        try:
            # Asked after the waiter stands, so that no revision falls between the two.
            await asyncio.sleep(0)
            revision = await self._run(self._database.revision)
            return revision if revision != after else await waiter
        finally:
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError, StoreError):
                await waiter

    async def append(self, lines: Sequence[Line], keep_max: int) -> int:
        lines = tuple(lines)
        check_lines(lines)
        return await self._run(lambda: self._database.append(lines, keep_max))

    async def journal(self, after: int, count_max: int) -> tuple[JournalLine, ...]:
        return await self._run(lambda: self._database.journal(after, count_max))

    async def backup(self, path: Path, *, rewrite: Rewrite | None = None, wrap: Wrap | None = None) -> int:
        return await self._run(lambda: self._database.backup(path, rewrite, wrap))

    async def restored(self) -> bool:
        return await self._run(lambda: self._database.meta("restored")) != 0

    async def clear_restored(self) -> None:
        await self._run(lambda: self._database.set_meta("restored", 0))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watchers.close()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._database.stop)
            self._thread.shutdown(wait=False)

    async def _announce(self, change: Callable[[], int]) -> int:
        try:
            revision = await self._run(change)
        except OutcomeUnknown:
            # Whoever waits must look: the change may have happened.
            self._watchers.announce(-1)
            raise
        self._watchers.announce(revision)
        return revision

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise StoreFailed("the store is closed")
        if self._pending >= PENDING_MAX:
            raise StoreFailed(f"more than {PENDING_MAX} requests wait for the store")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._pending -= 1


class _Database:
    """The blocking half; every method runs on the store's thread."""

    def __init__(self, path: Path, connect: Callable[..., sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._lock_fd = -1
        self._connection: sqlite3.Connection | None = None
        self._lines_by_actor: dict[str, int] | None = None
        """How many lines of the journal there are, once counted: a count costs as much as there are."""

    def start(self) -> None:
        try:
            self._lock()
            # SQLite gives its own files the mode of this one: it holds signing keys.
            descriptor = _private(open_own(self._path, os.O_CREAT | os.O_RDWR))
            sealed = is_sealed(os.pread(descriptor, 64, 0))
            os.close(descriptor)
        except OSError as error:
            raise StoreFailed(f"{self._path}: {error.strerror}") from error
        if sealed:
            raise StoreFailed(f"{self._path}: is a sealed backup: open it with `rackctl backup open` first")
        self._open()

    def stop(self) -> None:
        self._abandon()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def get(self, key: str) -> Entry | None:
        with self._reading() as connection:
            row = connection.execute("SELECT key, value, revision FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else Entry(*row)

    def list(self, prefix: str) -> Snapshot:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT key, value, revision FROM entries WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key",
                (prefix, len(prefix), prefix),
            ).fetchall()
            return Snapshot(_meta(connection, "revision"), tuple(Entry(*row) for row in rows))

    def revision(self) -> int:
        return self.meta("revision")

    def meta(self, name: str) -> int:
        with self._reading() as connection:
            return _meta(connection, name)

    def set_meta(self, name: str, value: int) -> None:
        with self._writing() as connection:
            connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    def commit(self, compare: Mapping[str, int], put: Mapping[str, bytes], delete: Collection[str]) -> int:
        with self._writing() as connection:
            for key, expected in compare.items():
                row = connection.execute("SELECT revision FROM entries WHERE key = ?", (key,)).fetchone()
                found = ABSENT if row is None else int(row[0])
                if found != expected:
                    raise CompareFailed(key, expected, found)
            revision = _meta(connection, "revision") + 1
            connection.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))
            rows = [(key, value, revision) for key, value in put.items()]
            connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
            connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in delete])
        return revision

    def append(self, lines: Sequence[Line], keep_max: int) -> int:
        counts, self._lines_by_actor = self._lines_by_actor, None  # counted again if this fails
        with self._writing() as connection:
            if counts is None:
                counts = dict(connection.execute("SELECT actor, count(*) FROM journal GROUP BY actor").fetchall())
            sequence = 0
            for line in lines:
                row = (line.actor, line.value)
                sequence = connection.execute("INSERT INTO journal (actor, value) VALUES (?, ?)", row).lastrowid or 0
                counts[line.actor] = counts.get(line.actor, 0) + 1
            for actor, count in surplus(counts, keep_max).items():
                connection.execute(
                    "DELETE FROM journal WHERE sequence IN"
                    " (SELECT sequence FROM journal WHERE actor = ? ORDER BY sequence LIMIT ?)",
                    (actor, count),
                )
                counts[actor] -= count
        self._lines_by_actor = {actor: count for actor, count in counts.items() if count}
        return sequence

    def journal(self, after: int, count_max: int) -> tuple[JournalLine, ...]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT sequence, actor, value FROM journal WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after, count_max),
            ).fetchall()
        return tuple(JournalLine(*row) for row in rows)

    def backup(self, path: Path, rewrite: Rewrite | None, wrap: Wrap | None) -> int:
        """Made in memory: what is left out of a copy is in no file, nor in pages of one that were given back."""
        try:
            with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
                self._opened().backup(copy)
                revision = _meta(copy, "revision")
                copy.execute("UPDATE meta SET value = 1 WHERE name = 'restored'")
                ahead = revision + RESTORED_REVISIONS_SKIPPED
                copy.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (ahead,))
                if rewrite is not None:
                    _rewrite(copy, rewrite)
                data = copy.serialize()
            put_file(path, data if wrap is None else wrap(data), 0o600)
        except (OSError, sqlite3.Error) as error:
            raise StoreFailed(f"backup to {path}: {error}") from error
        return revision

    def _lock(self) -> None:
        """The lock file is never deleted: two processes would then lock two files of one name."""
        path = self._path.with_name(self._path.name + ".lock")
        self._lock_fd = open_own(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StoreLocked(f"{self._path} is in use by another authority (process {owner}); stop it first") from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._connect(self._path, isolation_level=None, timeout=0.0)
        except sqlite3.Error as error:
            raise StoreFailed(f"{self._path}: {error}") from error
        try:
            _prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise StoreLocked(f"{self._path} is open in another program; stop it first") from error
            raise StoreFailed(f"{self._path}: {error}; restore it from a backup if this stays") from error
        except StoreError:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _opened(self) -> sqlite3.Connection:
        if self._lock_fd < 0:
            raise StoreFailed("the store is closed")
        return self._connection or self._open()

    def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection = self._opened()
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._abandon()
            raise StoreFailed(f"{self._path}: {error}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._opened()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
        except BaseException as error:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._abandon()
            if isinstance(error, sqlite3.Error):
                _log.error("event=store-write-failed path=%s error=%s", self._path, error)
                raise StoreFailed(f"{self._path}: {error}") from error
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._abandon()
            _log.error("event=store-outcome-unknown path=%s error=%s", self._path, error)
            raise OutcomeUnknown(f"{self._path}: {error}") from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Set what durability and exclusiveness rest on, read it back, and make visible = durable."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous = FULL")
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    locking = connection.execute("PRAGMA locking_mode").fetchone()[0]
    if (mode, level, locking) != ("wal", SYNCHRONOUS_FULL, "exclusive"):
        raise StoreUnsafe(f"journal mode {mode}, synchronous {level}, locking {locking}: wal, 2, exclusive are needed")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and (application, version) != (APPLICATION_ID, FORMAT):
        raise StoreFailed(f"application id {application:#x}, format {version}: not a store of this version")
    connection.execute("BEGIN IMMEDIATE")
    for statement in () if tables else _SCHEMA:
        connection.execute(statement)
    connection.execute("COMMIT")
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreFailed("the log of the store could not be written back")


def _rewrite(copy: sqlite3.Connection, rewrite: Rewrite) -> None:
    copy.execute("PRAGMA secure_delete = ON")
    for key, value in copy.execute("SELECT key, value FROM entries").fetchall():
        kept = rewrite(key, value)
        if kept is None:
            copy.execute("DELETE FROM entries WHERE key = ?", (key,))
        elif kept != value:
            copy.execute("UPDATE entries SET value = ? WHERE key = ?", (kept, key))
    copy.execute("VACUUM")


def _private(descriptor: int) -> int:
    """Also where a store was put back by other means than a backup's."""
    os.fchmod(descriptor, 0o600)
    return descriptor


def _meta(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])
