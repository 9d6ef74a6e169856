"""One suite for every implementation of the store: whoever adds one adds a line to OPENERS."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from head_node.store.errors import CompareFailed, StoreFailed
from head_node.store.interface import (
    ABSENT,
    KEY_CHARS_MAX,
    RESTORED_REVISIONS_SKIPPED,
    TRANSACTION_KEYS_MAX,
    VALUE_BYTES_MAX,
    Line,
    Store,
)
from head_node.store.memory import MemoryStore
from head_node.store.sqlite import SqliteStore


async def open_memory(folder: Path) -> Store:
    copy = folder / "copy"
    return MemoryStore.from_backup(copy) if copy.exists() else MemoryStore()


async def open_sqlite(folder: Path) -> Store:
    copy = folder / "copy"
    return await SqliteStore.open(copy if copy.exists() else folder / "store.db")


Opener = Callable[[Path], Awaitable[Store]]
OPENERS: dict[str, Opener] = {"memory": open_memory, "sqlite": open_sqlite}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param]


def run(opener: Opener, folder: Path, scenario: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await opener(folder)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_missing_key_is_none_and_an_empty_store_is_at_revision_zero(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        assert await store.get("volume/a") is None
        listing = await store.list("")
        assert (listing.revision, listing.entries) == (0, ())

    run(opener, tmp_path, scenario)


def test_what_was_put_is_read_with_the_revision_of_its_transaction(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        first = await store.commit(put={"volume/a": b"1", "volume/b": b"\x00\xff"})
        second = await store.commit(put={"volume/a": b"2"})
        assert second == first + 1
        a, b = await store.get("volume/a"), await store.get("volume/b")
        assert a is not None
        assert (a.key, a.value, a.revision) == ("volume/a", b"2", second)
        assert b is not None
        assert (b.value, b.revision) == (b"\x00\xff", first)

    run(opener, tmp_path, scenario)


def test_a_list_is_sorted_and_holds_its_prefix_only(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        keys = ["head/z", "head/a", "head", "heads/a", "a%b/1", "a_b/1", "axb/1", "head/é"]
        await store.commit(put=dict.fromkeys(keys, b""))
        assert [entry.key for entry in (await store.list("head/")).entries] == ["head/a", "head/z", "head/é"]
        assert [entry.key for entry in (await store.list("a_b/")).entries] == ["a_b/1"]
        assert [entry.key for entry in (await store.list("a%")).entries] == ["a%b/1"]

    run(opener, tmp_path, scenario)


def test_a_failed_comparison_changes_nothing(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        seen = await store.commit(put={"a": b"1"})
        await store.commit(put={"a": b"2"})
        with pytest.raises(CompareFailed) as failure:
            await store.commit(compare={"a": seen}, put={"a": b"3", "b": b"3"}, delete=["c"])
        assert (failure.value.key, failure.value.expected, failure.value.found) == ("a", seen, seen + 1)
        listing = await store.list("")
        assert [(entry.key, entry.value) for entry in listing.entries] == [("a", b"2")]
        assert listing.revision == seen + 1

    run(opener, tmp_path, scenario)


def test_one_failed_comparison_among_several_fails_all(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        seen = await store.commit(put={"a": b"1"})
        with pytest.raises(CompareFailed):
            await store.commit(compare={"a": seen, "b": 7}, put={"a": b"2"})
        await store.commit(compare={"a": seen, "b": ABSENT}, put={"a": b"2", "b": b"2"})

    run(opener, tmp_path, scenario)


def test_absent_is_a_comparison_too(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.commit(compare={"a": ABSENT}, put={"a": b"1"})
        with pytest.raises(CompareFailed):
            await store.commit(compare={"a": ABSENT}, put={"a": b"2"})
        await store.commit(delete=["a"])
        await store.commit(compare={"a": ABSENT}, put={"a": b"3"})
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"3"

    run(opener, tmp_path, scenario)


def test_a_key_that_was_deleted_and_put_again_has_another_revision(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        first = await store.commit(put={"a": b"1"})
        await store.commit(delete=["a"])
        await store.commit(put={"a": b"1"})
        with pytest.raises(CompareFailed):
            await store.commit(compare={"a": first}, put={"a": b"2"})

    run(opener, tmp_path, scenario)


def test_of_many_who_compare_the_same_revision_one_wins(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        seen = await store.commit(put={"a": b"0"})
        puts = [store.commit(compare={"a": seen}, put={"a": str(number).encode()}) for number in range(20)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        winners = [number for number, result in enumerate(results) if isinstance(result, int)]
        assert len(winners) == 1
        assert sum(isinstance(result, CompareFailed) for result in results) == 19
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == str(winners[0]).encode()

    run(opener, tmp_path, scenario)


def test_a_watcher_is_woken_by_the_next_commit(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        before = await store.commit(put={"a": b"1"})
        watcher = asyncio.ensure_future(store.watch(before))
        await store.get("a")
        assert not watcher.done()
        after = await store.commit(delete=["a"])
        assert await watcher == after
        assert await store.watch(before) == after

    run(opener, tmp_path, scenario)


def test_a_watcher_ahead_of_the_store_returns_at_once(opener: Opener, tmp_path: Path) -> None:
    """A store restored from a backup is behind what its watchers have seen."""

    async def scenario(store: Store) -> None:
        assert await store.watch(1000) == 0

    run(opener, tmp_path, scenario)


def test_closing_ends_watchers_and_refuses_everything(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        watcher = asyncio.ensure_future(store.watch(0))
        await store.get("a")
        await store.close()
        with pytest.raises(StoreFailed):
            await watcher
        with pytest.raises(StoreFailed):
            await store.get("a")
        with pytest.raises(StoreFailed):
            await store.commit(put={"a": b"1"})

    run(opener, tmp_path, scenario)


def test_bounds_are_checked_before_anything_is_done(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(ValueError, match="characters"):
            await store.commit(put={"k" * (KEY_CHARS_MAX + 1): b""})
        with pytest.raises(ValueError, match="bytes"):
            await store.commit(put={"k": bytes(VALUE_BYTES_MAX + 1)})
        with pytest.raises(ValueError, match="keys"):
            await store.commit(put={str(number): b"" for number in range(TRANSACTION_KEYS_MAX + 1)})
        with pytest.raises(ValueError, match="put and deleted"):
            await store.commit(put={"k": b""}, delete=["k"])
        assert (await store.list("")).revision == 0

    run(opener, tmp_path, scenario)


def test_a_store_opened_from_a_backup_says_so_until_told_otherwise(opener: Opener, tmp_path: Path) -> None:
    async def save(store: Store) -> None:
        await store.commit(put={"a": b"1"})
        assert await store.backup(tmp_path / "copy") == 1
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
        assert not await store.restored()

    async def reopen(store: Store) -> None:
        assert await store.restored()
        assert (await store.list("")).revision == 1 + RESTORED_REVISIONS_SKIPPED
        entry = await store.get("a")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"1", 1)
        await store.clear_restored()
        assert not await store.restored()
        assert await store.commit(compare={"a": 1}, put={"a": b"2"}) == 2 + RESTORED_REVISIONS_SKIPPED

    run(opener, tmp_path, save)
    run(opener, tmp_path, reopen)


def lines(actor: str, *numbers: int) -> list[Line]:
    return [Line(actor, b"%s %d" % (actor.encode(), number)) for number in numbers]


def test_the_journal_keeps_lines_in_order_and_wakes_nobody(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        before = (await store.list("")).revision
        assert await store.journal(0, 10) == ()
        first = await store.append(lines("a", 1, 2), 100)
        last = await store.append(lines("b", 1), 100)
        assert last == first + 1
        assert [line.value for line in await store.journal(0, 10)] == [b"a 1", b"a 2", b"b 1"]
        assert [line.actor for line in await store.journal(first - 1, 1)] == ["a"]
        assert await store.journal(last, 10) == ()
        assert (await store.list("")).revision == before
        for wrong in (Line("", b""), Line("a" * 257, b""), Line("a", bytes(VALUE_BYTES_MAX + 1))):
            with pytest.raises(ValueError, match="a line has"):
                await store.append([wrong], 100)

    run(opener, tmp_path, scenario)


def test_a_full_journal_loses_the_oldest_line_of_the_one_with_the_most(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.append(lines("quiet", 1, 2, 3), 10)
        for number in range(100):
            last = await store.append(lines("loud", number), 10)
        assert last == 103, "numbers of lines that went are not given again"
        kept = [line.value for line in await store.journal(0, 100)]
        assert kept == [b"quiet 1", b"quiet 2", b"quiet 3", *(b"loud %d" % number for number in range(93, 100))]
        await store.append(lines("quiet", *range(4, 20)), 10)
        counts = [line.actor for line in await store.journal(0, 100)]
        assert (counts.count("quiet"), counts.count("loud")) == (5, 5)
        assert await store.append(lines("loud", 100), 1) > last
        assert len(await store.journal(0, 100)) == 1

    run(opener, tmp_path, scenario)


def test_a_backup_has_the_journal_too(opener: Opener, tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.append(lines("a", 1, 2), 10)
        await store.backup(tmp_path / "copy")

    async def again(store: Store) -> None:
        assert [line.value for line in await store.journal(0, 10)] == [b"a 1", b"a 2"]
        assert await store.append(lines("a", 3), 10) == 3

    run(opener, tmp_path, scenario)
    run(opener, tmp_path, again)
