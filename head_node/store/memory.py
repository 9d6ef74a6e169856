"""A store without durability: for simulations and tests, and the smallest reading of the interface."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from head_node.store.errors import CompareFailed, StoreFailed
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
from head_node.store.watchers import Watchers
from sled_controller.durable import put_file


class MemoryStore:
    """Implements `Store` in a dict."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._journal: list[JournalLine] = []
        self._sequence = 0
        self._lines_by_actor: Counter[str] = Counter()
        self._revision = 0
        self._watchers = Watchers()
        self._restored = False
        self._closed = False

    @classmethod
    def from_backup(cls, path: Path) -> "MemoryStore":
        """Open what `backup` wrote."""
        store = cls()
        saved = json.loads(path.read_text(encoding="utf-8"))
        store._revision = saved["revision"] + RESTORED_REVISIONS_SKIPPED
        store._entries = {key: Entry(key, bytes.fromhex(value), revision) for key, value, revision in saved["entries"]}
        store._journal = [JournalLine(number, actor, bytes.fromhex(text)) for number, actor, text in saved["journal"]]
        store._sequence = saved["sequence"]
        store._lines_by_actor = Counter(line.actor for line in store._journal)
        store._restored = True
        return store

    async def get(self, key: str) -> Entry | None:
        self._check_open()
        return self._entries.get(key)

    async def list(self, prefix: str) -> Snapshot:
        self._check_open()
        found = (self._entries[key] for key in sorted(self._entries) if key.startswith(prefix))
        return Snapshot(self._revision, tuple(found))

    async def commit(
        self,
        *,
        compare: Mapping[str, int] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
    ) -> int:
        self._check_open()
        compare, put = compare or {}, put or {}
        check_transaction(compare, put, delete)
        for key, expected in compare.items():
            entry = self._entries.get(key)
            found = ABSENT if entry is None else entry.revision
            if found != expected:
                raise CompareFailed(key, expected, found)
        self._revision += 1
        for key, value in put.items():
            self._entries[key] = Entry(key, bytes(value), self._revision)
        for key in delete:
            self._entries.pop(key, None)
        self._watchers.announce(self._revision)
        return self._revision

    async def watch(self, after: int) -> int:
        self._check_open()
        return self._revision if self._revision != after else await self._watchers.next()

    async def append(self, lines: Sequence[Line], keep_max: int) -> int:
        self._check_open()
        check_lines(lines)
        for line in lines:
            self._sequence += 1
            self._journal.append(JournalLine(self._sequence, line.actor, line.value))
            self._lines_by_actor[line.actor] += 1
        if drop := surplus(self._lines_by_actor, keep_max):
            self._lines_by_actor -= Counter(drop)
            self._journal = list(_without_oldest(self._journal, drop))
        return self._sequence

    async def journal(self, after: int, count_max: int) -> tuple[JournalLine, ...]:
        self._check_open()
        return tuple(line for line in self._journal if line.sequence > after)[:count_max]

    async def backup(self, path: Path, *, rewrite: Rewrite | None = None, wrap: Wrap | None = None) -> int:
        self._check_open()
        put_file(path, (wrap or bytes)(self._copy(rewrite).encode()), 0o600)
        return self._revision

    async def restored(self) -> bool:
        self._check_open()
        return self._restored

    async def clear_restored(self) -> None:
        self._check_open()
        self._restored = False

    async def close(self) -> None:
        self._closed = True
        self._watchers.close()

    def _copy(self, rewrite: Rewrite | None) -> str:
        kept = {
            entry: entry.value if rewrite is None else rewrite(entry.key, entry.value)
            for entry in self._entries.values()
        }
        entries = [[entry.key, value.hex(), entry.revision] for entry, value in kept.items() if value is not None]
        journal = [[line.sequence, line.actor, line.value.hex()] for line in self._journal]
        return json.dumps(
            {"revision": self._revision, "entries": entries, "journal": journal, "sequence": self._sequence}
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed("the store is closed")


def _without_oldest(lines: Iterable[JournalLine], drop: Mapping[str, int]) -> Iterator[JournalLine]:
    """The lines but for the first so many of each actor."""
    left = dict(drop)
    for line in lines:
        if left.get(line.actor, 0):
            left[line.actor] -= 1
        else:
            yield line
