"""A store without durability: for simulations and tests, and the smallest reading of the interface."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from head_node.store.errors import CompareFailed, StoreFailed
from head_node.store.interface import ABSENT, RESTORED_REVISIONS_SKIPPED, Entry, Snapshot, check_transaction
from head_node.store.watchers import Watchers


class MemoryStore:
    """Implements `Store` in a dict."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
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

    async def backup(self, path: Path) -> int:
        self._check_open()
        self._save(path)
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

    def _save(self, path: Path) -> None:
        entries = [[entry.key, entry.value.hex(), entry.revision] for entry in self._entries.values()]
        path.write_text(json.dumps({"revision": self._revision, "entries": entries}), encoding="utf-8")
        path.chmod(0o600)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed("the store is closed")
