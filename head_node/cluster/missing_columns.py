"""Columns that a volume still lacks: made where a sled of its placement is attached, and named in the record, by one
compare-and-put at the primary's epoch, before the first shard goes there (design: columns)."""

from typing import Final, Protocol
from uuid import UUID

from head_node.cluster.attachments import VolumeAttachments
from head_node.cluster.errors import TakeoverImpossible
from head_node.cluster.lease import MS
from head_node.cluster.membership import Membership
from head_node.cluster.takeover import receipts_needed
from head_node.store.records import Column, VolumeRecord, column_blocks

PAUSE_MS: Final = 5000
"""Between two tries: a sled without room wins none within moments, and each try is a put."""


class ColumnsApi(Protocol):
    """What this module asks of the authority."""

    async def set_columns(
        self, volume: UUID, *, epoch: int, expected_version: int, columns: list[Column]
    ) -> VolumeRecord: ...  # fmt: skip


class MissingColumns:
    """For the primary of `epoch`. Times are nanoseconds of CLOCK_BOOTTIME."""

    def __init__(self, api: ColumnsApi, attachments: VolumeAttachments, membership: Membership, epoch: int) -> None:
        self._api = api
        self._attachments = attachments
        self._membership = membership
        self._epoch = epoch
        self._paused_until_ns = 0

    def due(self, now_ns: int) -> bool:
        """Whether a sled is attached that has no column in the record, and it is time to make one."""
        return now_ns >= self._paused_until_ns and self._attachments.unnamed

    async def add(self, now_ns: int) -> None:
        """Make and name what can be made now, then give the columns out.

        A sled that refuses is left out. Raises TakeoverImpossible when there are too few columns for a stripe that is
        redundant, AuthorityError. Repeating it after an unknown outcome does no harm: sled and record keep what is
        there already."""
        self._paused_until_ns = now_ns + PAUSE_MS * MS
        record = self._membership.record
        made = await self._attachments.create_namespaces(column_blocks(record.size_bytes, record.geometry))
        record = self._membership.record
        columns = {column.index: column for column in made} | {column.index: column for column in record.columns}
        if not record.columns and len(columns) < receipts_needed(record):
            raise TakeoverImpossible(f"{len(columns)} columns could be made, {receipts_needed(record)} are needed")
        if made:
            record = await self._api.set_columns(
                record.volume, epoch=self._epoch, expected_version=record.version,
                columns=[columns[index] for index in sorted(columns)],
            )  # fmt: skip
            self._membership.observed(record)
        self._attachments.name_columns(record.columns)
        self._attachments.activate()
