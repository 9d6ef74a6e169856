"""One volume on one head: a follower that keeps what the primary sends, or the primary that serves it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from head_node.files import Directory
from head_node.volume.columns import Column
from head_node.volume.geometry import Geometry
from head_node.volume.interface import ServedVolume
from sled_controller.environment import Environment

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """The last record of a log: its operation number and the epoch that wrote it."""

    opnum: int
    epoch: int


class VolumeEngine:
    """See docs/volume-engine.md. Every callback is called on the loop and may be replaced at any time."""

    volume: UUID
    log_id: UUID
    size_blocks: int
    geometry: Geometry
    served: ServedVolume
    """What EXPORT uses; only meaningful while primary."""
    tail: LogPosition
    durable: int
    """Last opnum durable in this log."""
    committed: int
    """Last opnum known committed here."""
    highest_epoch: int
    """Records below this epoch are refused (F5)."""
    lease: Callable[[], bool]
    """F7, asked at admission and before each reply; False makes requests wait."""
    on_durable: Callable[[int], None]
    on_failed: Callable[[Exception], None]
    on_append: Callable[[int, int, Sequence[Buffer]], None]
    """(first opnum, last opnum, raw records) once per loop turn that appended, as primary only."""
    on_committed: Callable[[int], None]
    """(opnum) when `committed` advanced, as primary only: tell the followers."""
    on_fenced: Callable[[int, Exception], None]
    """(column index, FencedOff or Superseded)."""

    @classmethod
    async def create(
        cls, directory: Directory, *, volume: UUID, geometry: Geometry, size_blocks: int, env: Environment
    ) -> "VolumeEngine":
        """Make a log with a new random log id in an empty directory."""
        raise NotImplementedError

    @classmethod
    async def open(cls, directory: Directory, *, volume: UUID, env: Environment) -> "VolumeEngine":
        """Recover a log. Raises LogMissing, LogForeign, LogCorrupt, DirectoryLocked."""
        raise NotImplementedError

    async def see_epoch(self, epoch: int) -> None:
        """Refuse records of lower epochs from now on, durably (F5). Raises StaleEpoch when a higher one was seen."""

    def follow_append(self, batch: Buffer) -> None:
        """Append raw records. Raises StaleEpoch, LogDiverged, BatchMalformed; nothing of the batch is kept then."""

    def follow_committed(self, opnum: int) -> None:
        """The primary says that everything up to `opnum` is committed."""

    async def truncate_after(self, opnum: int) -> None:
        """Durably cut everything after `opnum`; LogDiverged when that is committed or trimmed here (full resync)."""

    def epoch_history(self) -> list[tuple[int, int]]:
        """(epoch, first opnum) of every epoch in this log, oldest first."""
        raise NotImplementedError

    def read_log(self, from_opnum: int, max_bytes: int) -> list[Buffer] | None:
        """Raw records from `from_opnum` on, at least one if there is one; None when trimmed (full resync)."""

    async def export_checkpoint(self) -> list[Buffer]:
        """All a newcomer needs to follow from `read_log(checkpoint start)` on: map, stripes, and its log position."""
        raise NotImplementedError

    async def install_checkpoint(self, data: Buffer) -> None:
        """Replace everything here by an exported checkpoint (full resync); then follow from `tail.opnum + 1`."""

    async def lead(self, epoch: int, columns: Sequence[Column | None]) -> int:
        """Become primary of `epoch`: append its epoch record and return its opnum (not yet committed)."""
        raise NotImplementedError

    def set_required(self, members: frozenset[UUID]) -> None:
        """Heads other than this one whose durability a commit needs."""

    def member_durable(self, head: UUID, opnum: int) -> None:
        """`head` has everything up to `opnum` durable; ignored for heads not required."""

    def wait_committed(self, opnum: int) -> asyncio.Future[None]:
        """Resolved when `opnum` is committed; fails with VolumeStopped."""
        raise NotImplementedError

    def set_column(self, index: int, column: Column | None) -> None:
        """A sled came back with a new attach, or went."""

    def hold(self) -> None:
        """Acknowledge nothing until `resume` (F6)."""

    def resume(self) -> None:
        """Acknowledge again."""

    async def step_down(self) -> None:
        """Drop client requests unanswered and become a follower (F6)."""

    async def close(self, *, destage: bool = False) -> None:
        """Stop; as primary with `destage` first put everything committed into stripes."""

    def status(self) -> dict[str, Any]:
        """Counters and gauges for status reports."""
        raise NotImplementedError
