"""Committed blocks that are in the log and not yet in a stripe: what reads look at first and destage takes from.

`fresh` is in commit order, because a block that is written again moves to the end; so the first entry is also the
oldest record that the log must keep. `leaving` holds blocks of stripes that are being written.

`spoiled` holds blocks that lost their content in memory and have no good copy in this log: they are taken by no stripe
and read as errors until they are written again, and the log keeps their records.

Every block has memory of its own: what comes in is a slice of a receive buffer or of a whole batch, and one block that
stays while its neighbours are overwritten would keep all of that.
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TypeAlias

from head_node.volume.interface import BLOCK_BYTES
from spdk_bindings.device import Buffer

Entry: TypeAlias = tuple[int, int, bytes]
"""(opnum, CRC-32C, 4096 bytes)."""


class Overlay:
    """lba -> newest committed block not yet in a stripe."""

    def __init__(self) -> None:
        self.fresh: dict[int, Entry] = {}
        self.leaving: dict[int, Entry] = {}
        self.spoiled: dict[int, Entry] = {}
        self._oldest_apart: int | None = 0
        """The oldest opnum in `leaving` and `spoiled`, which are in no order; 0: to be looked for, None: they are
        empty. Asked once per commit, changed once per stripe."""

    def __len__(self) -> int:
        return len(self.fresh) + len(self.leaving) + len(self.spoiled)

    def get(self, lba: int) -> Entry | None:
        """The newest committed block in the overlay."""
        return self.fresh.get(lba) or self.leaving.get(lba) or (self.spoiled and self.spoiled.get(lba)) or None

    def put(self, opnum: int, lba: int, crcs: tuple[int, ...], data: Buffer) -> None:
        """A committed WRITE; `data` is copied unless it is a block of `bytes` already."""
        fresh = self.fresh
        if self.spoiled:
            self._oldest_apart = 0
            for at in range(lba, lba + len(crcs)):
                self.spoiled.pop(at, None)
        if len(crcs) == 1:
            fresh.pop(lba, None)
            fresh[lba] = (opnum, crcs[0], bytes(data))
            return
        view = memoryview(data)
        at = 0
        for crc in crcs:
            fresh.pop(lba, None)
            fresh[lba] = (opnum, crc, bytes(view[at : at + BLOCK_BYTES]))
            lba += 1
            at += BLOCK_BYTES

    def discard(self, lba: int, count: int) -> None:
        """A committed ZERO: older blocks are dead, in stripes being written too."""
        self._oldest_apart = 0
        for blocks in (self.fresh, self.leaving, self.spoiled):
            if count <= len(blocks):
                for at in range(lba, lba + count):
                    blocks.pop(at, None)
            else:
                for at in [key for key in blocks if lba <= key < lba + count]:
                    del blocks[at]

    def settle(self, lba: int, opnum: int) -> bool:
        """A committed STRIPE holds `lba` as of `opnum`: True (and forgotten here) if that is still the newest."""
        newer = self.fresh.get(lba)
        if newer is not None:
            if newer[0] != opnum:
                self._forget_leaving(lba, opnum)
                return False
            del self.fresh[lba]
            return True
        for blocks in (self.leaving, self.spoiled):
            entry = blocks.get(lba)
            if entry is not None and entry[0] == opnum:
                del blocks[lba]
                self._oldest_apart = 0
                return True
        return False

    def _forget_leaving(self, lba: int, opnum: int) -> None:
        entry = self.leaving.get(lba)
        if entry is not None and entry[0] == opnum:
            del self.leaving[lba]
            self._oldest_apart = 0

    def take(self, count: int) -> list[tuple[int, Entry]]:
        """Move the `count` oldest fresh blocks to `leaving` and return them."""
        self._oldest_apart = 0
        taken = list(islice(self.fresh.items(), count))
        for lba, entry in taken:
            del self.fresh[lba]
            self.leaving[lba] = entry
        return taken

    def put_back(self, taken: list[tuple[int, Entry]]) -> None:
        """The stripe of these blocks was given up: they are fresh again unless superseded."""
        self._oldest_apart = 0
        back = []
        for lba, (opnum, _, _) in taken:
            entry = self.leaving.get(lba)  # by its version: it may have been corrected meanwhile
            if entry is not None and entry[0] == opnum:
                del self.leaving[lba]
                if lba not in self.fresh:
                    back.append((lba, entry))
        if back:
            merged = sorted([*back, *self.fresh.items()], key=lambda item: item[1][0])
            self.fresh = dict(merged)

    def put_all_back(self) -> None:
        """No stripe is being written any more (role change)."""
        self.put_back(list(self.leaving.items()))
        self.leaving.clear()

    def correct(self, lba: int, opnum: int, data: bytes) -> None:
        """Take the content of one version from its record again."""
        for blocks in (self.fresh, self.leaving):
            entry = blocks.get(lba)
            if entry is not None and entry[0] == opnum:
                blocks[lba] = (opnum, entry[1], data)

    def spoil(self, lba: int, entry: Entry) -> None:
        """A block that was taken has no good copy here."""
        self._oldest_apart = 0
        del self.leaving[lba]
        if lba not in self.fresh:
            self.spoiled[lba] = entry

    def oldest_opnum(self) -> int | None:
        """The oldest record that the log must keep for this overlay, None when it is empty."""
        if self._oldest_apart == 0:
            entries = chain(self.leaving.values(), self.spoiled.values())
            self._oldest_apart = min((entry[0] for entry in entries), default=None)
        apart = self._oldest_apart
        for opnum, _, _ in self.fresh.values():
            return opnum if apart is None else min(opnum, apart)
        return apart

    def within(self, lba: int, count: int) -> Iterator[int]:
        """The lbas of a range that are here."""
        if count <= len(self):
            return (at for at in range(lba, lba + count) if self.get(at) is not None)
        return (at for at in {*self.fresh, *self.leaving, *self.spoiled} if lba <= at < lba + count)
