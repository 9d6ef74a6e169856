"""A store whose commits may have an unknown outcome, and that can be set back to a backup."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from head_node.store.errors import OutcomeUnknown
from head_node.store.interface import RESTORED_REVISIONS_SKIPPED, Entry
from head_node.store.memory import MemoryStore


@dataclass(frozen=True, slots=True)
class Backup:
    """A consistent copy of a store."""

    revision: int
    entries: Mapping[str, Entry]


class UncertainStore(MemoryStore):
    """Loses the outcome of the next commit, which took place (`after`) or not (`before`)."""

    def __init__(self) -> None:
        super().__init__()
        self.lose: str | None = None
        self.on_put: Callable[[Mapping[str, bytes]], None] = lambda put: None

    @classmethod
    def restored_from(cls, backup: Backup) -> "UncertainStore":
        """A store opened from a backup."""
        store = cls()
        store._entries, store._revision, store._restored = dict(backup.entries), backup.revision, True
        store._revision += RESTORED_REVISIONS_SKIPPED
        return store

    def copy(self) -> Backup:
        """What `backup` would write to a file."""
        return Backup(self._revision, dict(self._entries))

    def peek(self, key: str) -> bytes | None:
        """The value of `key`, whoever runs."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    async def commit(
        self,
        *,
        compare: Mapping[str, int] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
    ) -> int:
        lose, self.lose = self.lose, None
        if lose == "before":
            raise OutcomeUnknown("lost before")
        revision = await super().commit(compare=compare, put=put, delete=delete)
        self.on_put(put or {})
        if lose == "after":
            raise OutcomeUnknown("lost after")
        return revision
