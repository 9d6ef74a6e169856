"""Where a revoked head may still write: sleds whose fence is not known to be above what it holds. Intentions in the
store, made by the commit that takes the head off the volume, and tried until each sled is fenced (F1, F2).

A sled is visited with an epoch that no head was given, if there is one above the head's: it raises the fence, or is
refused by a newer one. Where the volume has gone on with another primary there is none. Then the head's own epoch is
tried, with another key: a sled that has a newer fence refuses, one that never saw that epoch is fenced with it, as an
equal epoch of another holder is refused; only where the head itself stands does the volume need one epoch more. So a
primary that has receipts of all sleds is left alone (docs/decisions/0006-revoking-a-secondary.md).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Protocol
from uuid import UUID

from head_node.authority.errors import AuthorityError, NotFound
from head_node.authority.ledger import Ledger, unfenced_key
from head_node.authority.reports import Reports
from head_node.authority.retries import LOOK_S, SledRetries
from head_node.store.records import Unfenced, VolumeRecord
from sled_controller.environment import Environment

FENCED: Final = "fenced"
OTHER_HOLDER: Final = "the epoch stands there with another holder"
"""At an epoch that no head was given, that is a fence which another visit has raised."""
AT_ONCE_MAX: Final = 8
"""Volumes. Each connects to all its sleds."""

_log = logging.getLogger(__name__)


class VolumeFencer(Protocol):
    """Raises fences."""

    async def fence(self, record: VolumeRecord) -> dict[UUID, str]:
        """Attach with the record's epoch at each of its sleds; what came of it by sled: `fenced` (by this epoch or a
        newer one), OTHER_HOLDER, or why not."""


TakeEpoch = Callable[[UUID, UUID], Awaitable[Unfenced | None]]
"""(volume, head): give the volume an epoch above the head's that no head is given; None when there is nothing to do."""


class UnfencedSleds:
    """Reads, carries out and settles them."""

    def __init__(
        self, ledger: Ledger, reports: Reports, env: Environment, fencer: VolumeFencer | None, take_epoch: TakeEpoch
    ) -> None:
        self._ledger = ledger
        self._reports = reports
        self._fencer = fencer
        self._take_epoch = take_epoch
        self._retries = SledRetries(reports, env)
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._being_revoked: set[UUID] = set()

    @contextmanager
    def revocation(self, head: UUID) -> Iterator[None]:
        """A revocation is under way, which fences the head off itself: `look` leaves it to that."""
        self._being_revoked.add(head)
        try:
            yield
        finally:
            self._being_revoked.discard(head)

    def being_revoked(self, head: UUID) -> bool:
        return head in self._being_revoked

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except AuthorityError as error:
                _log.warning("event=fencing-failed error=%s", error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Try every sled that is not fenced yet and may answer."""
        entries = [entry for entry in await self._ledger.unfenced() if not self.being_revoked(entry.head)]
        self._retries.keep_only({(entry.volume, entry.head) for entry in entries})
        if not entries:
            return
        sleds = (await self._ledger.rack("sled/")).sleds
        tried = []
        for entry in entries:
            for gone in [sled for sled in entry.sleds if sled not in sleds]:
                await self.settle(entry.volume, entry.head, [gone])
            due = [s for s in entry.sleds if s in sleds and self._retries.due((entry.volume, entry.head), s)]
            if due:
                tried.append(self._fence(replace(entry, sleds=tuple(due))))
        await asyncio.gather(*tried)

    async def fence(self, head: UUID) -> dict[UUID, Mapping[UUID, str]]:
        """Fence a head off everywhere now, several volumes at a time; what came of it, by volume and sled."""
        entries = [entry for entry in await self._ledger.unfenced() if entry.head == head]
        results = await asyncio.gather(*(self._fence(entry) for entry in entries))
        return {entry.volume: result for entry, result in zip(entries, results, strict=True)}

    async def settle(self, volume: UUID, head: UUID, sleds: list[UUID]) -> bool:
        """These sleds are fenced, or do not matter any more; False if that was known."""

        async def attempt() -> bool:
            key = unfenced_key(volume, head)
            found = await self._ledger.unfenced_of(volume, head)
            if found is None or not set(found.value.sleds) & set(sleds):
                return False
            left = replace(found.value, sleds=tuple(sled for sled in found.value.sleds if sled not in sleds))
            put, delete = ({key: left.to_json()}, []) if left.sleds else ({}, [key])
            await self._ledger.commit(compare={key: found.revision}, put=put, delete=delete)
            return True

        return await self._ledger.until_settled(attempt)

    async def give_up(self, volume: UUID, head: UUID, sled: UUID) -> None:
        """An operator says that this sled will not come back. Raises NotFound."""
        if not await self.settle(volume, head, [sled]):
            raise NotFound(f"sled {sled} is not to be fenced for volume {volume} against head {head}")
        self._reports.add_event("fencing-given-up", volume=str(volume), head=str(head), sled=str(sled))

    async def _fence(self, entry: Unfenced) -> dict[UUID, str]:
        """Visit the sleds that `entry` names."""
        fencer = self._fencer
        if fencer is None:
            return dict.fromkeys(entry.sleds, "this authority visits no sleds")
        async with self._turns:
            try:
                record = (await self._ledger.volume(entry.volume)).value
            except NotFound:
                # What is left of a deleted volume is visited in newer epochs (cleanups.py).
                await self.settle(entry.volume, entry.head, list(entry.sleds))
                return dict.fromkeys(entry.sleds, "the volume is deleted")
            for sled in entry.sleds:
                self._retries.begun((entry.volume, entry.head), sled)
            try:
                results = await self._visit(fencer, record, entry)
            except AuthorityError as error:  # the store fails, or the volume has just been deleted: it is tried again
                results = dict.fromkeys(entry.sleds, f"{type(error).__name__}: {error}")
        fenced = [sled for sled, result in results.items() if result == FENCED]
        for sled, result in results.items():
            if result != FENCED:
                self._retries.failed((entry.volume, entry.head), sled)
                _log.warning(
                    "event=not-fenced volume=%s head=%s epoch=%d sled=%s reason=%r",
                    entry.volume, entry.head, entry.epoch, sled, result,
                )  # fmt: skip
        await self.settle(entry.volume, entry.head, fenced)
        said = {str(sled): result for sled, result in results.items()}
        self._reports.add_event("fenced-now", volume=str(entry.volume), head=str(entry.head), sleds=said)
        return results

    async def _visit(self, fencer: VolumeFencer, record: VolumeRecord, entry: Unfenced) -> dict[UUID, str]:
        if entry.above:
            return await _fence_above(fencer, record, entry)
        results = await fencer.fence(replace(record, epoch=entry.epoch, sleds=entry.sleds, columns=()))
        if OTHER_HOLDER not in results.values():
            return results
        raised = await self._take_epoch(entry.volume, entry.head)
        if raised is None:
            return results
        # All that answer, so that the primary that loses its epoch by it hears of that at once and takes the next one.
        answer = tuple(sled for sled, result in results.items() if result in (FENCED, OTHER_HOLDER))
        return results | await _fence_above(fencer, record, replace(raised, sleds=answer))


async def _fence_above(fencer: VolumeFencer, record: VolumeRecord, entry: Unfenced) -> dict[UUID, str]:
    """With an epoch that no head was given: the holder there is this authority."""
    results = await fencer.fence(replace(record, epoch=entry.above, sleds=entry.sleds, columns=()))
    return {sled: FENCED if result == OTHER_HOLDER else result for sled, result in results.items()}
