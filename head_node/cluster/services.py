"""What a volume on this head is given by the head: identity, clocks, the authority, sleds, links, clients."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from head_node.cluster.connection import PeerConnection
from head_node.cluster.frames import Purpose
from head_node.cluster.lease import LeaseTerms
from head_node.cluster.sleds import Sleds
from head_node.cluster.watch import AuthorityWatch
from head_node.store.records import Column, LogEnd, LostRange, Member, RackView, VolumeRecord
from head_node.volume.engine import VolumeEngine
from sled_controller.environment import Environment
from sled_controller.keyset import KeySet


class Authority(Protocol):
    """The calls of AuthorityClient that the cluster makes; see there for what each raises."""

    async def view(self, after: int | None = None, wait_ms: int = 0) -> RackView: ...
    async def takeover(
        self, volume: UUID, *, expected_version: int, log_id: UUID, in_doubt: bool = False
    ) -> tuple[VolumeRecord, bytes]: ...  # fmt: skip
    async def change_members(
        self, volume: UUID, *, epoch: int, expected_version: int, add: Member | None = None,
        remove: Member | None = None, lost: bool = False,
    ) -> VolumeRecord: ...  # fmt: skip
    async def set_columns(
        self, volume: UUID, *, epoch: int, expected_version: int, columns: list[Column]
    ) -> VolumeRecord: ...  # fmt: skip
    async def lost_declared(
        self, volume: UUID, *, epoch: int, expected_version: int, lost: LostRange
    ) -> VolumeRecord: ...  # fmt: skip
    async def renew(self, volume: UUID, *, epoch: int, expired: bool = False) -> bytes: ...
    async def confirm_deleted(self, volume: UUID, *, epoch: int, strays: Collection[UUID] = ()) -> None: ...
    async def confirm_log_removed(self, volume: UUID) -> None: ...
    async def report_credential(self, credential: bytes) -> VolumeRecord: ...
    async def report_divergence(
        self, volume: UUID, *, epoch: int, parted: int, logs: Sequence[LogEnd]
    ) -> VolumeRecord: ...  # fmt: skip
    async def report(self, status: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Shared by all volumes of this head."""

    head: UUID
    env: Environment
    terms: LeaseTerms
    authority: Authority
    watch: AuthorityWatch
    sleds: Sleds
    key_set: Callable[[], KeySet | None]
    dial: Callable[[UUID, Purpose, UUID], Awaitable[PeerConnection]]
    """(head, purpose, volume) -> an authenticated link; raises LinkClosed."""
    drop_clients: Callable[[UUID], None]
    """Reset every client connection of a volume, requests unanswered (F6)."""
    role_changed: Callable[[UUID], None]
    """What this head is to a volume has changed: paths to it are worth something else."""
    open_engine: Callable[[VolumeRecord], Awaitable[VolumeEngine]]
    """Open, or make, the volume's log directory. Raises VolumeError, OSError."""
    remove_log: Callable[[UUID], Awaitable[None]]
    """Remove a deleted volume's log directory."""
    set_log_aside: Callable[[UUID], Awaitable[None]]
    """Keep the volume's log, closed, under another name, so that `open_engine` makes a new one. Raises OSError."""
    tail_wait_ms: int
    """How long a member whose log was recovered from disk waits for where the logs of the others end."""
    note: Callable[[str, dict[str, Any]], None]
    """(kind, fields): an event for the authority's list; kinds are in docs/cluster.md."""
