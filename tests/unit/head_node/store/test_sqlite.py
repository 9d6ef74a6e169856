"""What only the SQLite store must do: survive, be alone, and never guess an outcome."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from head_node.store.errors import OutcomeUnknown, StoreFailed, StoreLocked
from head_node.store.sqlite import SqliteStore


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 20)

    asyncio.run(main())


class FailingCommit(sqlite3.Connection):
    """Fails the next COMMIT of a write, before or after it took place."""

    fail: str | None = None
    writing = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.fail is not None and self.in_transaction and self.writing:
            if type(self).fail == "after":
                super().execute("COMMIT")
            type(self).fail = None
            raise sqlite3.OperationalError("disk I/O error")
        self.writing = sql == "BEGIN IMMEDIATE" or (self.in_transaction and self.writing)
        return super().execute(sql, *parameters)


def connect_failing(path: Path, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(path, factory=FailingCommit, **options)
    return connection


def test_what_was_committed_is_there_after_reopening(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "store.db")
        revision = await store.commit(put={"a": b"1"})
        await store.close()
        store = await SqliteStore.open(tmp_path / "store.db")
        entry = await store.get("a")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"1", revision)
        assert await store.commit(put={"b": b"1"}) == revision + 1
        await store.close()

    run(scenario)


def test_a_second_authority_on_the_same_store_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "store.db")
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            await SqliteStore.open(tmp_path / "store.db")
        await store.commit(put={"a": b"1"})
        await store.close()
        await (await SqliteStore.open(tmp_path / "store.db")).close()

    run(scenario)


def test_no_other_program_gets_at_the_database_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "store.db")
        other = sqlite3.connect(tmp_path / "store.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM entries")
        other.close()
        await store.close()

    run(scenario)


def test_a_database_in_use_by_another_program_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        await (await SqliteStore.open(tmp_path / "store.db")).close()
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLocked, match="another program"):
            await SqliteStore.open(tmp_path / "store.db")
        other.close()

    run(scenario)


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    modes: dict[str, int] = {}

    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "store.db")
        await store.commit(put={"a": b"1"})
        modes.update(modes_in(tmp_path))
        await store.close()

    run(scenario)
    assert set(modes.values()) == {0o600}
    assert "store.db-wal" in modes


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_that_fails_is_unknown_and_then_read_again(tmp_path: Path, moment: str) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "store.db", connect=connect_failing)
        first = await store.commit(put={"a": b"1"})
        watcher = asyncio.ensure_future(store.watch(first))
        await store.get("a")
        FailingCommit.fail = moment
        with pytest.raises(OutcomeUnknown):
            await store.commit(compare={"a": first}, put={"a": b"2"})
        await watcher
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == (b"1" if moment == "before" else b"2")
        await store.commit(compare={"a": entry.revision}, put={"a": b"3"})
        await store.close()

    run(scenario)


def test_a_full_disk_refuses_the_write_and_keeps_the_rest(tmp_path: Path) -> None:
    def connect_small(path: Path, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(path, **options)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path / "store.db", connect=connect_small)
        await store.commit(put={"a": b"1"})
        with pytest.raises(StoreFailed, match="full"):
            await store.commit(put={"a": b"2", "b": bytes(500_000)})
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"1"
        await store.commit(put={"a": b"3"})
        await store.close()

    run(scenario)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be read as the header of one" * 40, b"x" * 99]
)
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)

    async def scenario() -> None:
        with pytest.raises(StoreFailed, match=r"store\.db"):
            await SqliteStore.open(tmp_path / "store.db")

    run(scenario)
    assert (tmp_path / "store.db").read_bytes() == content


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "store.db")
    other.execute("CREATE TABLE entries (key TEXT)")
    other.close()

    async def scenario() -> None:
        with pytest.raises(StoreFailed, match="not a store"):
            await SqliteStore.open(tmp_path / "store.db")

    run(scenario)


WRITER = """
import asyncio, sys
from pathlib import Path
from head_node.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        await store.commit(put={"a": str(number).encode(), "b": str(number).encode()})
        print(number, flush=True)

asyncio.run(main())
"""


def test_kill_9_between_transactions_loses_nothing_acknowledged_and_tears_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        while acknowledged < 50:
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
    acknowledged = max([acknowledged, *map(int, rest)])

    async def scenario() -> None:
        store = await SqliteStore.open(path)
        a, b = (await store.list("")).entries
        assert a.value == b.value
        assert int(a.value) in (acknowledged, acknowledged + 1)
        await store.close()

    run(scenario)
