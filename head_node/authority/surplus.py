"""What a revoked head may have taken on sleds beyond what its volumes need, and its return.

A credential bounds what a volume takes on a sled; within that a head may have made another namespace than the needed
one. So the commit that revokes it notes every sled in the store, until the authority has looked there: at once, and
again after the last credential of that head is over. Namespaces of a volume that its record neither names nor needs are
deleted, in an epoch that no head is given. What belongs to no volume that is known here is reported, never deleted.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from head_node.authority import transitions
from head_node.authority.errors import AuthorityError
from head_node.authority.issue_time import IssueTime
from head_node.authority.ledger import (
    SURPLUS_KEY,
    Ledger,
    cleanup_key,
    revision_of,
    tombstone_key,
    volume_key,
)
from head_node.authority.reports import Reports
from head_node.store.interface import ABSENT
from head_node.store.records import Cleanup, SledRecord, VolumeRecord, VolumeState, column_blocks
from sled_controller.environment import Environment

if TYPE_CHECKING:
    from sled_controller.fabric.vendor import NamespaceEntry

PAUSE_S_MIN: Final = 1.0
PAUSE_S_MAX: Final = 900.0
"""Between two looks; it doubles. Each that finds something to give back costs a live volume an epoch, even where the
sled then fails."""
SETTLE_MS: Final = 5_000
"""A sled's clock may run behind this one's."""
AT_ONCE_MAX: Final = 8
GIVEN_BACK: Final = "given back"

_log = logging.getLogger(__name__)


class SledVisitor(Protocol):
    """What is done at sleds."""

    async def namespaces(self, sled: SledRecord) -> "list[NamespaceEntry] | None":
        """The namespace table of a sled, None when it does not answer."""

    async def give_back(self, record: VolumeRecord, sled: SledRecord, surplus: Collection[int]) -> str:
        """Attach with the record's epoch, which no head has, and delete these namespaces of its volume: `given back`,
        or why not."""


def surplus_of(record: VolumeRecord, sled: UUID, entries: "Sequence[NamespaceEntry]") -> list[int]:
    """Namespace ids among the volume's own on `sled` that its record neither names nor, for a column that is placed
    there and not named yet, needs."""
    named = {column.nsid for column in record.columns if column.sled == sled}
    missing = {index for index, placed in enumerate(record.sleds) if placed == sled}
    missing -= {column.index for column in record.columns}
    blocks = column_blocks(record.size_bytes, record.geometry)
    surplus = []
    for entry in entries:
        if entry.volume != record.volume or entry.nsid in named:
            continue
        if entry.column in missing and entry.blocks == blocks:
            missing.remove(entry.column)
        else:
            surplus.append(entry.nsid)
    return surplus


class Surplus:
    """Notes the sleds, looks, and gives back."""

    def __init__(
        self,
        ledger: Ledger,
        reports: Reports,
        issue: IssueTime,
        env: Environment,
        visitor: SledVisitor | None,
        *,
        term_ms: int,
    ) -> None:
        self._ledger = ledger
        self._reports = reports
        self._issue = issue
        self._env = env
        self._visitor = visitor
        self._term_ms = term_ms
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._unknown: set[tuple[UUID, int]] = set()
        """(sled, nsid) that were reported in this run."""

    async def note(self, compare: dict[str, int], put: dict[str, Any]) -> None:
        """Add what a commit that revokes a head has to compare and to put."""
        found = await self._ledger.json(SURPLUS_KEY)
        sleds = [str(sled) for sled in (await self._ledger.rack("sled/")).sleds]
        over_ms = self._issue.now_ms() + self._term_ms + SETTLE_MS
        compare[SURPLUS_KEY] = revision_of(found)
        put[SURPLUS_KEY] = {"sleds": sleds, "over_ms": over_ms}

    def wake(self) -> None:
        """A revocation is through: look now."""
        self._wake.set()

    async def due(self) -> frozenset[UUID]:
        """Sleds that are still to be looked at."""
        found = await self._ledger.json(SURPLUS_KEY)
        return frozenset() if found is None else frozenset(map(UUID, found.value["sleds"]))

    async def run(self) -> None:
        """Look until nothing is due, and again after each revocation; until cancelled."""
        pause_s = PAUSE_S_MIN
        while True:
            self._wake.clear()
            try:
                done = await self.look()
            except AuthorityError as error:
                _log.warning("event=surplus-look-failed error=%s", error)
                done = False
            jitter = 1 + self._env.entropy.bytes(1)[0] / 512
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if done else pause_s * jitter):
                    await self._wake.wait()
            pause_s = PAUSE_S_MIN if done or self._wake.is_set() else min(pause_s * 2, PAUSE_S_MAX)

    async def look(self) -> bool:
        """Look at every sled that is due; whether none is left."""
        async with self._turn:
            return await self._look()

    async def _look(self) -> bool:
        found = await self._ledger.json(SURPLUS_KEY)
        if found is None or not found.value["sleds"] or self._visitor is None:
            return True
        over = self._issue.now_ms() >= found.value["over_ms"]
        enrolled = (await self._ledger.rack("sled/")).sleds
        due = [enrolled[sled].value for sled in map(UUID, found.value["sleds"]) if sled in enrolled]
        tables = await self._tables(due)
        left = {sled.id for sled in due if sled.id not in tables} | await self._return(tables, enrolled_of(due))
        if over:
            await self._settle(left, found.value["over_ms"])
        return over and not left

    async def _tables(self, sleds: Sequence[SledRecord]) -> "dict[UUID, list[NamespaceEntry]]":
        visitor = self._visitor
        assert visitor is not None
        turns = asyncio.Semaphore(AT_ONCE_MAX)
        tables: dict[UUID, list[NamespaceEntry]] = {}

        async def read(sled: SledRecord) -> None:
            async with turns:
                entries = await visitor.namespaces(sled)
            if entries is not None:
                tables[sled.id] = entries

        await asyncio.gather(*map(read, sleds))
        return tables

    async def _return(
        self, tables: "Mapping[UUID, list[NamespaceEntry]]", sleds: Mapping[UUID, SledRecord]
    ) -> set[UUID]:
        """Give back what is too much; the sleds on which something of it is left."""
        on: dict[UUID, dict[UUID, list[NamespaceEntry]]] = {}
        for sled, entries in tables.items():
            for entry in entries:
                on.setdefault(entry.volume, {}).setdefault(sled, []).append(entry)
        records = (await self._ledger.rack("volume/")).volumes if on else {}
        left: set[UUID] = set()
        for volume, where in on.items():
            if volume not in records:
                await self._stray(volume, where)
                continue
            record = records[volume].value
            too_much = [sled for sled, entries in where.items() if surplus_of(record, sled, entries)]
            if too_much:
                left |= await self._give_back(volume, {sled: (sleds[sled], where[sled]) for sled in too_much})
        return left

    async def _give_back(
        self, volume: UUID, where: "Mapping[UUID, tuple[SledRecord, list[NamespaceEntry]]]"
    ) -> set[UUID]:
        visitor = self._visitor
        assert visitor is not None

        async def attempt() -> VolumeRecord | None:
            found = await self._ledger.volume(volume)
            if found.value.state is VolumeState.FROZEN:
                return None  # it takes no epoch before an operator has recovered it (F4)
            record = transitions.pass_epoch(found.value)
            await self._ledger.commit(
                compare={volume_key(volume): found.revision}, put={volume_key(volume): record.to_json()}
            )
            return record

        # What the record says with this epoch is final for all epochs before: no primary of theirs can name more.
        record = await self._ledger.until_settled(attempt)
        if record is None:
            return set(where)
        sleds = {sled: (at, surplus_of(record, sled, entries)) for sled, (at, entries) in where.items()}
        results = await asyncio.gather(*(visitor.give_back(record, at, nsids) for at, nsids in sleds.values()))
        for (sled, (_, nsids)), result in zip(sleds.items(), results, strict=True):
            _log.warning(
                "event=surplus volume=%s epoch=%d sled=%s namespaces=%d result=%r",
                volume, record.epoch, sled, len(nsids), result,
            )  # fmt: skip
            self._reports.add_event("surplus", volume=str(volume), sled=str(sled), namespaces=len(nsids), result=result)
        return {sled for sled, result in zip(sleds, results, strict=True) if result != GIVEN_BACK}

    async def _stray(self, volume: UUID, where: "Mapping[UUID, list[NamespaceEntry]]") -> None:
        """Something of a volume without a record: left to its clean-up, if there is word of its deletion here."""

        async def attempt() -> bool:
            found = await self._ledger.cleanup(volume)
            tombstone = await self._ledger.json(tombstone_key(volume))
            if found is None and tombstone is None:
                return False
            if found is not None:
                value, revision = found.value, found.revision
            else:
                assert tombstone is not None
                blocks = max(entry.blocks for entries in where.values() for entry in entries)
                value, revision = Cleanup(volume, str(volume), int(tombstone.value["epoch"]), blocks), ABSENT
            sleds = tuple(dict.fromkeys([*value.sleds, *where]))
            if sleds != value.sleds:
                key = cleanup_key(volume)
                await self._ledger.commit(compare={key: revision}, put={key: replace(value, sleds=sleds).to_json()})
            return True

        if await self._ledger.until_settled(attempt):
            return
        for sled, entries in where.items():
            for entry in entries:
                if (sled, entry.nsid) not in self._unknown:
                    self._unknown.add((sled, entry.nsid))
                    _log.warning("event=namespace-unknown volume=%s sled=%s nsid=%d", volume, sled, entry.nsid)

    async def _settle(self, left: Collection[UUID], over_ms: int) -> None:
        async def attempt() -> None:
            found = await self._ledger.json(SURPLUS_KEY)
            if found is None or found.value["over_ms"] != over_ms:
                return  # another head was revoked meanwhile
            sleds = [sled for sled in found.value["sleds"] if UUID(sled) in left]
            if sleds != found.value["sleds"]:
                put = {SURPLUS_KEY: found.value | {"sleds": sleds}}
                await self._ledger.commit(compare={SURPLUS_KEY: found.revision}, put=put)

        await self._ledger.until_settled(attempt)


def enrolled_of(sleds: Sequence[SledRecord]) -> dict[UUID, SledRecord]:
    """By id."""
    return {sled.id: sled for sled in sleds}
