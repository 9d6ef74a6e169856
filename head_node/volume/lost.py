"""Declaring blocks lost: an operator gives up what cannot be read, so that it holds nothing up any more.

Each block of the range is read first. What can be read stays as it is. The rest is named in LOST records, by version
and place, so that whatever is written or moved meanwhile wins. Every member marks the same blocks.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from head_node.volume.blockmap import LOST, Place
from head_node.volume.errors import BlockAway, BlockFenced, BlockUnreadable, LogFull, VolumeStopped
from head_node.volume.records import LOST_BLOCK, LOST_BLOCKS_MAX
from head_node.volume.stripes import Stripe

if TYPE_CHECKING:
    from head_node.volume.engine import VolumeEngine

BLOCKS_AT_A_TIME: Final = 64
"""Blocks that are read at a time."""

Version = tuple[int, Place, Stripe]


@dataclass(slots=True)
class LossReport:
    """What became of the blocks of a range."""

    lost: int = 0
    """Are marked now."""
    readable: int = 0
    """Were read, and stay."""
    away: int = 0
    """Stay because sleds are away that may have them."""


async def declare_lost(engine: "VolumeEngine", lba: int, count: int, *, sleds_away: bool) -> LossReport:
    """Mark as lost what no k shards give of a range; with `sleds_away` what the sleds give that are attached now.

    Committed on return. Raises VolumeStopped when this head is no longer primary, LogFull when the log has no room now,
    ValueError for a range outside the volume."""
    if lba < 0 or count < 1 or lba + count > engine.size_blocks:
        raise ValueError(f"blocks {lba} to {lba + count - 1} are not in a volume of {engine.size_blocks} blocks")
    report = LossReport()
    found: list[Version] = []
    for at in range(lba, lba + count, BLOCKS_AT_A_TIME):
        if not engine.serving:
            raise VolumeStopped(f"volume {engine.volume} is not served here")
        found += await _unreadable(engine, at, min(BLOCKS_AT_A_TIME, lba + count - at), sleds_away, report)
        if len(found) > LOST_BLOCKS_MAX - BLOCKS_AT_A_TIME or (found and at + BLOCKS_AT_A_TIME >= lba + count):
            await _commit(engine, found, report)
            found = []
    return report


async def _unreadable(
    engine: "VolumeEngine", lba: int, count: int, sleds_away: bool, report: LossReport
) -> list[Version]:
    state = engine.state
    versions: list[Version] = []
    for at, place in enumerate(state.map.find_range(lba, count), lba):
        if place is not None and place.slot != LOST and state.overlay.get(at) is None:
            stripe = state.stripes.get(place.slot)
            assert stripe is not None, f"block {at} is mapped to slot {place.slot}, which is empty"
            versions.append((at, place, stripe))
    # Also lets the loop turn where nothing is to be read.
    copies = (engine.reader.copy(at, place, stripe) for at, place, stripe in versions)
    for _, place, _ in versions:
        state.stripes.hold(place.slot)
    try:
        results = await asyncio.gather(asyncio.sleep(0), *copies, return_exceptions=True)
    finally:
        for _, place, _ in versions:
            state.stripes.release(place.slot)
    lost: list[Version] = []
    for version, result in zip(versions, results[1:], strict=True):
        if isinstance(result, BlockFenced):
            raise VolumeStopped(f"volume {engine.volume}: {result}")
        if isinstance(result, BlockUnreadable):
            if isinstance(result, BlockAway) and not sleds_away:
                report.away += 1
            else:
                lost.append(version)
        elif isinstance(result, BaseException):
            raise result
        else:
            report.readable += 1
    return lost


async def _commit(engine: "VolumeEngine", found: list[Version], report: LossReport) -> None:
    blocks = np.zeros(len(found), LOST_BLOCK)
    for index, (lba, place, stripe) in enumerate(found):
        blocks[index] = (lba, place.opnum, stripe.epoch, stripe.sequence, place.slot, 0)
    if not engine.serving:
        raise VolumeStopped(f"volume {engine.volume} is not served here")
    if not engine.has_room_without_data(blocks.nbytes):
        raise LogFull(f"volume {engine.volume}: no room in the log for LOST records; try again")
    await engine.wait_committed(engine.append_lost(blocks))
    engine.slots_won()
    for lba, place, _ in found:
        now = engine.state.map.find(lba)
        marked = now is not None and (now.opnum, now.slot) == (place.opnum, LOST)
        report.lost += marked and engine.state.overlay.get(lba) is None
