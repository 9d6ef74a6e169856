"""Stripe table and slots: which stripe lies where, how many of its blocks live, and which slots may be written.

A slot is the same row of shards in every column. It is free when the committed record that took its last live block
away is applied, no reader holds it, and no command to it is unanswered in a live attach.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from head_node.volume.records import StripeRecord

Table: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]

STRIPE_ENTRY: Final = np.dtype([("epoch", "<u8"), ("sequence", "<u8"), ("live", "<u4"), ("present", "<u4")])
"""An entry with epoch 0 is no stripe."""
_WINDOW_SLOTS: Final = 4096


class Stripe(NamedTuple):
    """The identity of the stripe in a slot and which of its shards were written (bit i: shard i)."""

    epoch: int
    sequence: int
    live: int
    present: int


class StripeTable:
    """Everything about slots that the committed log determines, plus who uses them right now."""

    def __init__(self, data_shards: int = 4, shards: int = 6) -> None:
        self.entries: Table = np.zeros(0, STRIPE_ENTRY)
        self._data_shards = data_shards
        self._shards = shards
        self.exposed_count = 0
        """Stripes with shards missing: the loss of m sleds may lose blocks of theirs (D1)."""
        self.without_spare_count = 0
        """Of those, stripes with k shards: the loss of one more sled may lose blocks of theirs."""
        self._readers: Counter[int] = Counter()
        self._writing: set[int] = set()
        self._unanswered: dict[int, set[object]] = {}
        """slot -> the column objects (attaches) with commands to it whose outcome is unknown."""
        self._slot_count = 0
        self._used_count = 0
        """Slots below `_slot_count` that hold a stripe."""
        self._cursor = 0

    # -- what the committed log says --------------------------------------------------------------------------------

    def restore(self, entries: Table) -> None:
        """Take over a table that nothing else changes."""
        self.entries = entries
        used = entries["present"][entries["epoch"] != 0]
        shards = sum(used >> shard & 1 for shard in range(self._shards)) if len(used) else used
        self.exposed_count = int(np.count_nonzero(shards < self._shards))
        self.without_spare_count = int(np.count_nonzero(shards <= self._data_shards))

    def get(self, slot: int) -> Stripe | None:
        """The stripe in `slot`."""
        if slot >= len(self.entries):
            return None
        epoch, sequence, live, present = self.entries[slot].item()
        return Stripe(epoch, sequence, live, present) if epoch else None

    def add(self, record: StripeRecord, live: int) -> None:
        """A committed STRIPE of which `live` blocks are still wanted."""
        slot = record.slot
        if slot >= len(self.entries):
            grown = np.zeros(max(slot + 1, len(self.entries) * 2, 64), STRIPE_ENTRY)
            grown[: len(self.entries)] = self.entries
            self.entries = grown
        self.entries[slot] = (record.epoch, record.sequence, live, record.present_mask)
        self._used_count += slot < self._slot_count
        self._count_exposed(slot, 1)
        if not live:
            self._clear(slot)

    def lose(self, slots: "np.ndarray[Any, np.dtype[Any]]") -> None:
        """Blocks in these slots (with repeats) are dead."""
        if not len(slots):
            return
        for slot, count in zip(*(part.tolist() for part in np.unique(slots, return_counts=True)), strict=True):
            self.entries["live"][slot] -= count
            if not self.entries["live"][slot]:
                self._clear(slot)

    def are(self, slots: Numbers, epochs: Numbers, sequences: Numbers) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Whether each of `slots` holds the stripe of that epoch and sequence."""
        known = slots < len(self.entries)
        entries = self.entries[np.where(known, slots, 0)] if len(self.entries) else np.zeros(len(slots), STRIPE_ENTRY)
        same: np.ndarray[Any, np.dtype[np.bool_]] = (
            known & (entries["epoch"] == epochs) & (entries["sequence"] == sequences) & (epochs != 0)
        )
        return same

    def _clear(self, slot: int) -> None:
        self._count_exposed(slot, -1)
        self.entries[slot] = (0, 0, 0, 0)
        self._used_count -= slot < self._slot_count

    def _count_exposed(self, slot: int, change: int) -> None:
        present = int(self.entries["present"][slot]).bit_count()
        if present < self._shards:
            self.exposed_count += change
        if present <= self._data_shards:
            self.without_spare_count += change

    # -- who may write where ----------------------------------------------------------------------------------------

    def open_slots(self, count: int) -> None:
        """As primary: `count` slots exist in the columns, and nothing of an earlier epoch is unanswered (F3)."""
        self._writing.clear()
        self._unanswered.clear()
        self.resize(count)

    def resize(self, count: int) -> None:
        """The columns turned out to have `count` slots."""
        self._slot_count = count
        self._used_count = int(np.count_nonzero(self.entries["epoch"][:count]))
        self._cursor = 0

    def close_slots(self) -> None:
        """No longer primary: nothing is allocated."""
        self.resize(0)

    @property
    def slot_count(self) -> int:
        """Slots of the columns, 0 unless primary."""
        return self._slot_count

    @property
    def used_count(self) -> int:
        """Slots that hold a stripe."""
        return self._used_count

    @property
    def free_count(self) -> int:
        """Slots that `allocate` can hand out now."""
        busy = self._readers.keys() | self._writing | self._unanswered.keys()
        blocked = sum(slot < self._slot_count and not self._in_use(slot) for slot in busy)
        return self._slot_count - self._used_count - blocked

    def allocate(self) -> int | None:
        """A free slot for a new stripe, or None. Goes round, so that a slot rests as long as it can."""
        count = self._slot_count
        for start, stop in ((self._cursor, count), (0, self._cursor)):
            for base in range(start, stop, _WINDOW_SLOTS):
                end = min(base + _WINDOW_SLOTS, stop)
                epochs = self.entries["epoch"][base:end]
                empty: list[int] = [base + at for at in np.flatnonzero(epochs == 0).tolist()]
                for slot in empty + list(range(base + len(epochs), end)):
                    if self._is_free(slot):
                        self._writing.add(slot)
                        self._cursor = slot + 1
                        return slot
        return None

    def written(self, slot: int, unanswered: Iterable[object] = ()) -> None:
        """The stripe for `slot` is committed or given up; `unanswered` are the attaches whose writes failed."""
        self._writing.discard(slot)
        failed = set(unanswered)
        if failed:
            self._unanswered[slot] = self._unanswered.get(slot, set()) | failed

    def answered(self, slot: int, column: object) -> None:
        """What was unanswered in `slot` of this attach has been answered late."""
        columns = self._unanswered.get(slot)
        if columns is not None:
            columns.discard(column)
            if not columns:
                del self._unanswered[slot]

    def attach_gone(self, column: object) -> None:
        """A newer attach drained this one (F3): its commands can no longer take effect."""
        for slot in [slot for slot, columns in self._unanswered.items() if column in columns]:
            self.answered(slot, column)

    def hold(self, slot: int) -> None:
        """A reader depends on what is in `slot`."""
        self._readers[slot] += 1

    def release(self, slot: int) -> None:
        """A reader is done with `slot`."""
        self._readers[slot] -= 1
        if not self._readers[slot]:
            del self._readers[slot]

    def _in_use(self, slot: int) -> bool:
        return slot < len(self.entries) and bool(self.entries["epoch"][slot])

    def _is_free(self, slot: int) -> bool:
        return not (self._in_use(slot) or slot in self._readers or slot in self._writing or slot in self._unanswered)

    def emptiest(self, count: int, blocks_max: int, without: Iterable[int] = ()) -> list[int]:
        """Up to `count` slots with the fewest live blocks, fewer than `blocks_max` each, emptiest first; none of
        `without`."""
        live = self.entries["live"]
        wanted = (self.entries["epoch"] != 0) & (live < blocks_max)
        left_out = [slot for slot in without if slot < len(wanted)]
        wanted[left_out] = False
        used = np.flatnonzero(wanted)
        chosen: list[int] = used[np.argsort(live[used], kind="stable")][:count].tolist()
        return chosen
