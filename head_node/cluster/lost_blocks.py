"""Ranges that an operator has declared lost: done by the primary, then taken off the record by one compare-and-put."""

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol
from uuid import UUID

from head_node.cluster.lease import MS
from head_node.cluster.membership import Membership
from head_node.store.records import LostRange, VolumeRecord
from head_node.volume.engine import VolumeEngine
from head_node.volume.lost import declare_lost

log = logging.getLogger(__name__)

PAUSE_MS: Final = 1000
"""Between two tries: the authority or the log may be short of what it takes."""


class LostApi(Protocol):
    """What this module asks of the authority."""

    async def lost_declared(
        self, volume: UUID, *, epoch: int, expected_version: int, lost: LostRange
    ) -> VolumeRecord: ...  # fmt: skip


class LostBlocks:
    """For the primary of `epoch`. Times are nanoseconds of CLOCK_BOOTTIME."""

    def __init__(
        self,
        api: LostApi,
        engine: VolumeEngine,
        membership: Membership,
        epoch: int,
        note: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._api = api
        self._engine = engine
        self._membership = membership
        self._epoch = epoch
        self._note = note
        self._paused_until_ns = 0

    def due(self, now_ns: int) -> bool:
        """Whether a range is to be declared lost, and it is time to try."""
        return bool(self._membership.record.lost) and now_ns >= self._paused_until_ns

    async def declare(self, now_ns: int) -> None:
        """Declare the first range lost. Repeating it does no harm: it only counts for what cannot be read.

        Raises RecordChanged and other AuthorityErrors, VolumeError."""
        self._paused_until_ns = now_ns + PAUSE_MS * MS
        lost = self._membership.record.lost[0]
        report = await declare_lost(self._engine, lost.first, lost.blocks, sleds_away=lost.sleds_away)
        found = {"volume": str(self._membership.record.volume), **lost.to_json(), "lost": report.lost}
        found |= {"readable": report.readable, "away": report.away}
        log.warning("event=blocks_lost epoch=%d %s", self._epoch, " ".join(f"{key}={found[key]}" for key in found))
        self._note("blocks-lost", found)
        record = self._membership.record
        record = await self._api.lost_declared(
            record.volume, epoch=self._epoch, expected_version=record.version, lost=lost
        )  # fmt: skip
        self._membership.observed(record)
        self._paused_until_ns = 0
