"""What every metadata store can do; tests/unit/head_node/store holds all implementations to it.

Keys are short text, values bytes. Every transaction has a revision, counted over the whole store; an entry carries the
revision of the transaction that put it, which is what comparisons name. Nothing is cached across transactions.

Beside the entries there is a journal: lines that are only ever added. It has no revision, so nothing that waits for a
change is woken by it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

KEY_CHARS_MAX = 256
VALUE_BYTES_MAX = 1 << 20
# Keys in one transaction; etcd's default limit is 128 as well.
TRANSACTION_KEYS_MAX = 128
ABSENT = 0
# A store that is set back to a backup goes on above every revision that it can have had since, or heads that have seen
# newer ones would take what is newest for old news.
RESTORED_REVISIONS_SKIPPED = 1 << 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as some transaction saw it."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Entries of one moment, sorted by key, and the store's revision at that moment."""

    revision: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the journal: who caused it, and what it says."""

    actor: str
    value: bytes


@dataclass(frozen=True, slots=True)
class JournalLine:
    """A line of the journal. `sequence` rises and is never used again."""

    sequence: int
    actor: str
    value: bytes


Rewrite: TypeAlias = Callable[[str, bytes], bytes | None]
"""What a copy has for a key and its value; None leaves the key out."""
Wrap: TypeAlias = Callable[[bytes], bytes]


class Store(Protocol):
    """A transactional key-value store. All methods may raise StoreFailed; none changes anything when it does."""

    async def get(self, key: str) -> Entry | None:
        """The entry of `key`, if it exists."""

    async def list(self, prefix: str) -> Snapshot:
        """All entries whose key starts with `prefix`, and the revision, of one moment."""

    async def commit(
        self,
        *,
        compare: Mapping[str, int] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
    ) -> int:
        """Put and delete, all or nothing, if every compared key still has its revision (ABSENT: does not exist).

        Returns the new revision once it is durable. Raises CompareFailed (nothing done), OutcomeUnknown (re-read),
        and ValueError when a bound of this module is passed.
        """

    async def watch(self, after: int) -> int:
        """Wait until the revision is not `after` any more, and return it."""

    async def append(self, lines: Sequence[Line], keep_max: int) -> int:
        """Add lines to the journal; durable on return of the last one's sequence.

        Of more than `keep_max` lines in all, the oldest of the actor with the most goes: one actor that causes many
        cannot wash out what the others did. Raises ValueError for a value above VALUE_BYTES_MAX.
        """

    async def journal(self, after: int, count_max: int) -> tuple[JournalLine, ...]:
        """The first `count_max` lines of the journal with a sequence above `after`, oldest first."""

    async def backup(self, path: Path, *, rewrite: Rewrite | None = None, wrap: Wrap | None = None) -> int:
        """Write a consistent copy to `path` (replaced atomically, mode 0600) and return its revision. What `rewrite`
        changes or drops has never been in a file; `wrap` is given the whole copy as it would be written.

        A store opened from it is `restored` until `clear_restored`, and RESTORED_REVISIONS_SKIPPED ahead of it.
        """

    async def restored(self) -> bool:
        """Whether this store was opened from a backup and nobody has dealt with that yet."""

    async def clear_restored(self) -> None:
        """Forget, durably, that this store came from a backup."""

    async def close(self) -> None:
        """Finish what is under way and let go of the store; watchers end with StoreFailed."""


def check_lines(lines: Sequence[Line]) -> None:
    """Raise ValueError when a line of the journal passes the bounds of the interface."""
    if any(len(line.value) > VALUE_BYTES_MAX or not 0 < len(line.actor) <= KEY_CHARS_MAX for line in lines):
        raise ValueError(f"a line has at most {VALUE_BYTES_MAX} bytes, and an actor of 1 to {KEY_CHARS_MAX} characters")


def surplus(counts: Mapping[str, int], keep_max: int) -> dict[str, int]:
    """How many lines of which actors go so that `keep_max` stay: always one of an actor with the most."""
    left = dict(counts)
    for _ in range(sum(counts.values()) - keep_max):
        most = max(left, key=lambda actor: (left[actor], actor))
        left[most] -= 1
    return {actor: counts[actor] - left[actor] for actor in counts if counts[actor] > left[actor]}


def check_transaction(compare: Mapping[str, int], put: Mapping[str, bytes], delete: Collection[str]) -> None:
    """Raise ValueError when a transaction passes the bounds of the interface."""
    keys = {*compare, *put, *delete}
    if len(keys) > TRANSACTION_KEYS_MAX:
        raise ValueError(f"{len(keys)} keys in a transaction, at most {TRANSACTION_KEYS_MAX}")
    if set(put) & set(delete):
        raise ValueError("a key cannot be put and deleted in one transaction")
    for key in keys:
        if not 0 < len(key) <= KEY_CHARS_MAX:
            raise ValueError(f"a key has 1 to {KEY_CHARS_MAX} characters, not {len(key)}")
    for key, value in put.items():
        if len(value) > VALUE_BYTES_MAX:
            raise ValueError(f"the value of {key} has {len(value)} bytes, at most {VALUE_BYTES_MAX}")
