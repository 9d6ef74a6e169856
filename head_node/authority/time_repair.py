"""Bringing the rack back from a wrong time: an operator's command, a statement of the root key for every sled.

Issue time never falls by itself, nor does what sleds have kept. When clocks were wrong and are right again the rack
goes on in most cases, because sleds believe their own clock and the authority follows them. Where that is not enough
an operator says that the authority's clock is right now. Issue time goes on from there; each sled is brought a
statement of time; a new key signs from now on, so that what was signed in the wrong time is void a term later, and
what was promised to expire far away is brought back (docs/operations.md, "When clocks were wrong").
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from head_node.authority.errors import Conflict
from head_node.authority.issue_time import IssueTime
from head_node.authority.keyring import Keyring
from head_node.authority.ledger import ISSUED_KEY, TIME_KEY, Ledger, Versioned, revision_of
from head_node.authority.reports import Reports
from head_node.authority.retirement import Retirements
from head_node.authority.root_key import RootKey, RootKeyNeeded
from head_node.store.records import SledRecord, VolumeRecord
from sled_controller.environment import TIME_MS_MAX, Environment
from sled_controller.sled_time import RELEASED_MS
from sled_controller.time_statement import SERIAL_MAX, TimeStatement

if TYPE_CHECKING:
    from head_node.authority.nodes import Fencer

CLOCKS_APART_MS_MAX: Final = 60_000
"""How far the authority's clock and that of the operator who vouches for it may be apart."""
RESTORED_SERIALS_SKIPPED: Final = 1 << 16
"""A restored store does not know what sleds have taken since: jump over all of it."""
SLEDS_AT_ONCE_MAX: Final = 8
TAKEN: Final = "taken"
TAKEN_HIGHER: Final = "the sled has taken a statement of this or a higher serial"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SledTimeReport:
    """What a sled says of its time: 0 when it was not reached, `result` says why then."""

    sled: SledRecord
    time_ms: int
    result: str


class TimeRepair:
    """States the time to sleds, and goes on until each has taken it."""

    def __init__(
        self, ledger: Ledger, keyring: Keyring, reports: Reports, issue: IssueTime, retirements: Retirements,
        env: Environment, *, root_key: RootKey, fencer: "Fencer | None",
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._keyring = keyring
        self._reports = reports
        self._issue = issue
        self._retirements = retirements
        self._env = env
        self._root_key = root_key
        self._fencer = fencer

    async def look(self) -> tuple[int, list[UUID], list[SledTimeReport]]:
        """The serial of the last statement, the sleds that have still to take it, and what time it is for each sled."""
        found = await self._ledger.json(TIME_KEY)
        sleds = [entry.value for entry in (await self._ledger.rack("sled/")).sleds.values()]
        return _serial(found), _pending(found), await self._visit(sleds, None)

    async def set(self, operator_ms: int) -> tuple[int, list[SledTimeReport]]:
        """Take the authority's clock for right, as the operator's (`operator_ms`) says too: issue time and every sled
        follow it. Returns the statement's serial and what became of it at each sled; those that did not take it are
        tried again. Raises Conflict when the clocks differ, or the key set is full."""
        now_ms = self._env.clock.wall_ms()
        if abs(now_ms - operator_ms) > CLOCKS_APART_MS_MAX or not RELEASED_MS <= now_ms <= TIME_MS_MAX:
            raise Conflict(
                f"the authority's clock is {(now_ms - operator_ms) / 1000:+.0f} s off yours: put the clock of its"
                " machine right, or that of yours, and then say this again"
            )
        before_ms = self._issue.now_ms()
        sleds = {key: entry.value for key, entry in (await self._ledger.rack("sled/")).sleds.items()}

        async def attempt() -> int:
            found = await self._ledger.json(TIME_KEY)
            serial = _serial(found) + 1
            put = {"serial": serial, "sleds": [str(sled) for sled in sleds], "first_key": None}
            await self._ledger.commit(
                compare={TIME_KEY: revision_of(found)}, put={TIME_KEY: put, ISSUED_KEY: {"issued_ms": now_ms}}
            )
            return serial

        serial = await self._ledger.until_settled(attempt)
        self._issue.state(now_ms)
        _log.warning("event=time-stated serial=%d time_ms=%d issue_before_ms=%d", serial, now_ms, before_ms)
        with contextlib.suppress(RootKeyNeeded):  # it waits for the root key; an operator rotates keys then
            ring = await self._keyring.rotate(publish_ms=0)
            await self._change({"first_key": max(key.key_id for key in ring.keys)})
        done = await self._bring(serial, list(sleds.values()))
        said = {each.sled.name: each.result for each in done}
        self._reports.add_event("time-stated", serial=serial, set_back_ms=before_ms - now_ms, sleds=said)
        return serial, done

    async def advance(self) -> None:
        """Bring the statement to sleds that have not taken it; bring promises back when the keys of then are gone."""
        found = await self._ledger.json(TIME_KEY)
        if found is None:
            return
        pending, first_key = _pending(found), found.value["first_key"]
        if pending:
            enrolled = (await self._ledger.rack("sled/")).sleds
            if gone := [sled for sled in pending if sled not in enrolled]:
                await self._taken(gone)
            reached = [s for s in pending if s in enrolled and self._reports.sled_reachable(s) is not False]
            await self._bring(_serial(found), [enrolled[sled].value for sled in reached])
        if first_key is not None and all(key.key_id >= first_key for key in (await self._keyring.current()).keys):
            await self._retirements.bring_back()
            await self._change({"first_key": None})

    async def without_wrong(self, record: VolumeRecord) -> VolumeRecord:
        """The record without the sleds that have still to take a statement: their time is known to be wrong."""
        pending = set(_pending(await self._ledger.json(TIME_KEY)))
        if not pending:
            return record
        columns = tuple(column for column in record.columns if column.sled not in pending)
        return replace(record, sleds=tuple(sled for sled in record.sleds if sled not in pending), columns=columns)

    async def restored(self) -> None:
        """The store is an old one: sleds may have taken statements that it does not know of."""
        found = await self._ledger.json(TIME_KEY)
        serial = _serial(found) + RESTORED_SERIALS_SKIPPED
        put = {"serial": serial, "sleds": [], "first_key": None}
        await self._ledger.commit(compare={TIME_KEY: revision_of(found)}, put={TIME_KEY: put})

    async def _bring(self, serial: int, sleds: list[SledRecord]) -> list[SledTimeReport]:
        done = await self._visit(sleds, serial)
        if any(each.result == TAKEN_HIGHER for each in done):
            # Somebody has given it one on its console; those that took ours need no other.
            serial = min(2 * serial, SERIAL_MAX - 1)
            await self._change({"serial": serial})
            again = [each.sled for each in done if each.result == TAKEN_HIGHER]
            done = [each for each in done if each.result != TAKEN_HIGHER] + await self._visit(again, serial)
        if taken := [each.sled.id for each in done if each.result == TAKEN]:
            await self._taken(taken)
        for each in done:
            if each.result != TAKEN:
                _log.warning(
                    "event=time-not-stated sled=%s name=%s reason=%r", each.sled.id, each.sled.name, each.result
                )
        return done

    async def _visit(self, sleds: list[SledRecord], serial: int | None) -> list[SledTimeReport]:
        fencer, turns = self._fencer, asyncio.Semaphore(SLEDS_AT_ONCE_MAX)

        async def visit(sled: SledRecord) -> SledTimeReport:
            if fencer is None:
                return SledTimeReport(sled, 0, "this authority reaches no sleds")

            async def statement(boot_counter: int) -> bytes:
                assert serial is not None
                unsigned = TimeStatement(serial, self._issue.now_ms(), sled.id, boot_counter)
                return unsigned.signed(await self._root_key.sign(unsigned.message()))

            async with turns:
                time_ms, result = await fencer.state_time(sled, None if serial is None else statement)
            return SledTimeReport(sled, time_ms, result)

        return await asyncio.gather(*map(visit, sleds))

    async def _taken(self, sleds: Collection[UUID]) -> None:
        async def attempt() -> None:
            found = await self._ledger.json(TIME_KEY)
            left = [str(sled) for sled in _pending(found) if sled not in sleds]
            if found is not None and left != found.value["sleds"]:
                await self._ledger.commit(
                    compare={TIME_KEY: found.revision}, put={TIME_KEY: found.value | {"sleds": left}}
                )

        await self._ledger.until_settled(attempt)

    async def _change(self, members: dict[str, Any]) -> None:
        async def attempt() -> None:
            found = await self._ledger.json(TIME_KEY)
            assert found is not None
            await self._ledger.commit(compare={TIME_KEY: found.revision}, put={TIME_KEY: found.value | members})

        await self._ledger.until_settled(attempt)


def _serial(found: Versioned[Any] | None) -> int:
    return 0 if found is None else int(found.value["serial"])


def _pending(found: Versioned[Any] | None) -> list[UUID]:
    return [] if found is None else [UUID(sled) for sled in found.value["sleds"]]
