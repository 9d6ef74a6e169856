"""When a column counts as hanging, and when no longer."""

import asyncio
from dataclasses import dataclass, field

import pytest
from kit.virtual_time import run_virtual
from kit.volume_columns import MemoryColumn, MemoryStore

from head_node.volume.errors import ColumnHangs
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.watched_column import WatchedColumn

BLOCK = b"x" * BLOCK_BYTES


@dataclass
class Watch:
    """A column that keeps its commands, watched for 3 s each."""

    inner: MemoryColumn = field(default_factory=lambda: MemoryColumn(MemoryStore(64)))
    changes: list[bool] = field(default_factory=list)
    late: list[tuple[int, BaseException | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inner.held = []
        self.column = WatchedColumn(
            self.inner, 3.0, lambda column: self.changes.append(column.hangs),
            lambda column, lba, error: self.late.append((lba, error)),
        )  # fmt: skip

    def answer(self, at: int = 0) -> None:
        assert self.inner.held is not None
        self.inner.held.pop(at)()


def test_a_command_that_is_overdue_makes_the_column_unavailable_until_it_is_answered() -> None:
    async def scenario() -> None:
        watch = Watch()
        read = watch.column.read(0, 1)
        await asyncio.sleep(2.9)
        assert watch.column.available
        await asyncio.sleep(0.2)
        assert not watch.column.available
        assert not read.done(), "a read is its reader's to give up"
        watch.answer()
        assert await read == bytes(BLOCK_BYTES)
        await asyncio.sleep(0.01)
        assert watch.column.available
        assert watch.changes == [True, False]

    run_virtual(scenario())


def test_a_write_is_given_up_and_its_late_answer_reported() -> None:
    async def scenario() -> None:
        watch = Watch()
        write = watch.column.write(5, [BLOCK], fua=True)
        with pytest.raises(ColumnHangs, match=r"3\.0 s"):
            await write
        assert watch.late == []
        watch.answer()
        await asyncio.sleep(0.01)
        assert watch.late == [(5, None)]
        assert watch.inner.store.data[5] == BLOCK

    run_virtual(scenario())


def test_commands_that_are_answered_in_turn_never_make_it_hang() -> None:
    async def scenario() -> None:
        watch = Watch()
        for _ in range(10):
            watch.column.read(0, 1)
            await asyncio.sleep(1)
            watch.column.read(1, 1)
            await asyncio.sleep(1)
            watch.answer()
            watch.answer()
        assert watch.changes == []
        watch.column.read(0, 1)
        await asyncio.sleep(2)
        watch.column.read(1, 1)
        await asyncio.sleep(1.5)
        watch.answer()
        await asyncio.sleep(0.01)
        assert watch.column.available, "the other one is not overdue yet"
        await asyncio.sleep(2)
        assert not watch.column.available
        assert watch.changes == [True, False, True]

    run_virtual(scenario())


def test_what_was_not_read_while_this_process_was_away_is_not_overdue() -> None:
    async def scenario() -> None:
        watch = Watch()
        watch.column.read(0, 1)
        await asyncio.sleep(1)
        asyncio.get_running_loop()._now_s += 60  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
        assert watch.column.available
        watch.answer()
        await asyncio.sleep(3.1)
        assert watch.changes == []

    run_virtual(scenario())
