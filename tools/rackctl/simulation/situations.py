"""Situations that runs must get into sometimes: what no single branch of the code says (those are in `branches`).

Each was once the only one in which a rule mattered, or is the point of a fault that the simulator makes.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import wraps
from typing import Any
from unittest import mock

from head_node.volume.blockmap import BlockMap
from head_node.volume.engine import VolumeEngine
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.log import WriteLog
from head_node.volume.overlay import Entry, Overlay
from head_node.volume.replica import Replica
from head_node.volume.service import ClientService


class Situation(StrEnum):
    """What it is; the text is what a run that never saw it says."""

    RESYNC_BRINGS_OLD_LOG = "a full resync brings blocks from segments older than the commit point's"
    PUT_BACK_BELOW_NEWER = "blocks of a stripe that was given up go back below newer ones"
    TRIM_OF_LEAVING = "a trim hits a block whose stripe is being written"
    MOVE_LOSES = "a block is overwritten or trimmed while compaction moves it"
    COMPACTED = "compaction has moved blocks"
    TRIMMED = "a log is trimmed while its volume is served"
    RECOVERED_TRIMMED = "a trimmed log is recovered"
    LEADS_TRIMMED = "a head leads whose log was trimmed"
    OVERLAY_FULL = "clients wait for room in memory"
    LOG_FULL = "clients wait for room in the log"
    UNANSWERED_FULL = "clients wait for answers to others"
    LEASE_LOST_BY_WORK = "a lease ends while its primary computes"


class Situations:
    """Counts them in one world."""

    def __init__(self) -> None:
        self.seen: Counter[Situation] = Counter()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Count while the block runs."""
        looks: tuple[tuple[Any, str, Callable[..., Callable[[Any], None] | None]], ...] = (
            (Replica, "export_checkpoint", self._exports),
            (Overlay, "put_back", self._puts_back),
            (Overlay, "discard", self._discards),
            (BlockMap, "move", self._moves),
            (WriteLog, "trim_before", self._trims),
            (Replica, "_adopt", self._adopts),
            (VolumeEngine, "lead", self._leads),
            (VolumeEngine, "has_room", self._asks_for_room),
            (ClientService, "_room", self._asks_for_answers),
            (VolumeEngine, "_commit", self._commits),
        )
        with contextlib.ExitStack() as stack:
            for owner, name, look in looks:
                stack.enter_context(mock.patch.object(owner, name, _watched(getattr(owner, name), look)))
            yield

    def _note(self, situation: Situation, met: object) -> None:
        if met:
            self.seen[situation] += 1

    def _exports(self, replica: Replica) -> None:
        log = replica._log
        older = log.index_of(replica._needed_from()) < log.index_of(replica.committed + 1)
        self._note(Situation.RESYNC_BRINGS_OLD_LOG, older)

    def _puts_back(self, overlay: Overlay, taken: list[tuple[int, Entry]]) -> None:
        left = [entry[0] for lba, entry in taken if overlay.leaving.get(lba) is entry and lba not in overlay.fresh]
        oldest = next(iter(overlay.fresh.values()), None)
        self._note(Situation.PUT_BACK_BELOW_NEWER, left and oldest is not None and min(left) < oldest[0])

    def _discards(self, overlay: Overlay, lba: int, count: int) -> None:
        self._note(Situation.TRIM_OF_LEAVING, any(lba <= at < lba + count for at in overlay.leaving))

    def _moves(self, block_map: BlockMap, lbas: Any, *_: Any) -> Callable[[Any], None]:
        def moved(result: Any) -> None:
            self._note(Situation.COMPACTED, result[1])
            self._note(Situation.MOVE_LOSES, result[1] < len(lbas))

        return moved

    def _trims(self, log: WriteLog, sequence: int) -> None:
        self._note(Situation.TRIMMED, log._segments[0].sequence < sequence)

    def _adopts(self, replica: Replica, log: WriteLog) -> None:
        self._note(Situation.RECOVERED_TRIMMED, log._segments[0].sequence > 1)

    def _leads(self, engine: VolumeEngine, *_: Any, **__: Any) -> None:
        self._note(Situation.LEADS_TRIMMED, engine._log._segments[0].sequence > 1)

    def _asks_for_room(self, engine: VolumeEngine, length: int) -> None:
        limits, log = engine.limits, engine._log
        self._note(Situation.OVERLAY_FULL, len(engine.state.overlay) * BLOCK_BYTES >= limits.overlay_bytes_max)
        used = log.used_bytes + log.pending_bytes + 2 * length
        self._note(Situation.LOG_FULL, used > limits.client_log_bytes_max)

    def _asks_for_answers(self, service: ClientService, length: int) -> None:
        unanswered = service._unanswered_bytes
        over = unanswered and unanswered + length > service._engine.limits.unanswered_bytes_max
        self._note(Situation.UNANSWERED_FULL, over)

    def _commits(self, engine: VolumeEngine, *_: Any) -> Callable[[Any], None]:
        held = engine.serving and engine.lease()

        def committed(_: Any) -> None:
            self._note(Situation.LEASE_LOST_BY_WORK, held and engine.serving and not engine.lease())

        return committed


def _watched(function: Callable[..., Any], look: Callable[..., Callable[[Any], None] | None]) -> Callable[..., Any]:
    @wraps(function)
    def watched(*args: Any, **options: Any) -> Any:
        then = look(*args, **options)
        result = function(*args, **options)
        if then is not None:
            then(result)
        return result

    return watched
