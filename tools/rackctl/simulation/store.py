"""A store whose commits may have an unknown outcome."""

from collections.abc import Callable, Collection, Mapping

from head_node.store.errors import OutcomeUnknown
from head_node.store.memory import MemoryStore


class UncertainStore(MemoryStore):
    """Loses the outcome of the next commit, which took place (`after`) or not (`before`)."""

    def __init__(self) -> None:
        super().__init__()
        self.lose: str | None = None
        self.on_put: Callable[[Mapping[str, bytes]], None] = lambda put: None

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
