"""The newest start of each sled that the authority has seen itself; one that went back is refused (F2).

A head says which start of a sled it meets; the authority asks the sled, whose hello is signed, before it notes that: a
head with a stolen key cannot have a sled refused. What is noted is in every head's view. An operator accepts a sled
that was put back (docs/operations.md, "A sled that was put back").
"""

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from head_node.authority.errors import AuthorityError, Conflict, NotFound
from head_node.authority.ledger import Ledger, Versioned, revision_of, sled_key
from head_node.authority.reports import Reports
from head_node.store.records import SledRecord
from sled_controller.sled_start import SledStart

if TYPE_CHECKING:
    from head_node.authority.nodes import Fencer

LOOK_S: Final = 2.0
"""How often the heads' reports are compared with what is noted."""
VISITS_AT_ONCE_MAX: Final = 8

_log = logging.getLogger(__name__)


class SledStarts:
    """Notes starts, and says which sleds are refused."""

    def __init__(self, ledger: Ledger, reports: Reports, fencer: "Fencer | None") -> None:
        self._ledger = ledger
        self._reports = reports
        self._fencer = fencer
        self._noted: dict[UUID, SledStart] = {}
        """What the store has, as it was read last: most looks need no more."""
        self.refused: dict[UUID, str] = {}
        """By sled, why its start is refused."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except AuthorityError as error:
                _log.warning("event=sled-starts-not-read error=%s", error)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask sleds of which some head reports another start than the one noted."""
        said = self._reports.sled_starts()
        other = [sled for sled, starts in said.items() if any(start != self._noted.get(sled) for start in starts)]
        if not other or self._fencer is None:
            return
        enrolled = (await self._ledger.rack("sled/")).sleds
        self._noted = {sled: entry.value.start for sled, entry in enrolled.items()}
        self.refused = {sled: why for sled, why in self.refused.items() if sled in enrolled}
        differ = [
            sled for sled in other if sled in enrolled and any(start != self._noted[sled] for start in said[sled])
        ]
        turns = asyncio.Semaphore(VISITS_AT_ONCE_MAX)

        async def visit(record: SledRecord) -> None:
            async with turns:
                assert self._fencer is not None
                found = await self._fencer.start_of(record)
                if isinstance(found, SledStart):
                    await self.meet(record, found)

        await asyncio.gather(*(visit(enrolled[sled].value) for sled in differ if sled not in self.refused))

    async def meet(self, record: SledRecord, now: SledStart) -> str:
        """A sled has shown a start, signed: why it is refused, or empty. A later start than the one noted is noted."""

        async def attempt() -> str:
            found = await self._read(record.id)
            why = found.value.start.went_back(now)
            if not why and now.is_after(found.value.start):
                changed = replace(found.value, start=now)
                await self._ledger.commit(
                    compare={sled_key(record.id): revision_of(found)}, put={sled_key(record.id): changed.to_json()}
                )
                self._noted[record.id] = now
            return why

        why = await self._ledger.until_settled(attempt)
        if not why:
            self.refused.pop(record.id, None)
        elif self.refused.get(record.id) != why:
            self.refused[record.id] = why
            _log.error("event=sled-went-back sled=%s name=%s reason=%r", record.id, record.name, why)
            self._reports.add_event("sled-went-back", sled=str(record.id), name=record.name, reason=why)
        return why

    async def accept(self, sled: UUID) -> SledRecord:
        """An operator says that a sled that was put back may serve as it is: its start of now counts from here. Raises
        NotFound, Conflict when the sled does not answer."""
        if self._fencer is None:
            raise Conflict("this authority reaches no sleds")
        now = await self._fencer.start_of((await self._read(sled)).value)
        if not isinstance(now, SledStart):
            raise Conflict(f"the sled has to answer before it can be accepted: {now}")

        async def attempt() -> tuple[SledRecord, bool]:
            found = await self._read(sled)
            if not found.value.start.went_back(now):
                return found.value, False
            changed = replace(found.value, start=now, accepted=found.value.accepted + 1)
            await self._ledger.commit(compare={sled_key(sled): found.revision}, put={sled_key(sled): changed.to_json()})
            return changed, True

        record, accepted = await self._ledger.until_settled(attempt)
        self.refused.pop(sled, None)
        self._noted[sled] = record.start
        if accepted:
            _log.warning("event=sled-accepted sled=%s name=%s boot=%d", sled, record.name, now.boot_counter)
            self._reports.add_event(
                "sled-accepted", sled=str(sled), name=record.name, boot_counter=now.boot_counter
            )  # fmt: skip
        return record

    async def _read(self, sled: UUID) -> Versioned[SledRecord]:
        data = await self._ledger.json(sled_key(sled))
        if data is None:
            raise NotFound(f"there is no sled {sled}")
        return Versioned(SledRecord.from_json(data.value), data.revision)
