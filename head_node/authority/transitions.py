"""Which changes of a volume record are allowed: pure functions from a record to its successor (F4, F5).

Each raises what the requester should know, and never changes its argument. The authority puts the result by one
durable compare-and-put; nothing here knows of stores, keys or time.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from uuid import UUID

from head_node.authority.errors import Conflict, Frozen, NotEligible, NotFound, RecordChanged, RequestRefused
from head_node.store.records import (
    BLOCK_BYTES,
    Column,
    LostRange,
    Member,
    NbdExport,
    VolumeRecord,
    VolumeState,
    column_blocks,
)
from sled_controller.credential import KEY_ID_MAX, epochs_end

# What no key signs is no epoch.
EPOCH_MAX = epochs_end(KEY_ID_MAX) - 1
MEMBERS_MAX = 16
# As many as may be connected to one head at once; a list is part of every head's view.
HOSTS_MAX = 64
NQN_CHARS_MAX = 223
ANY_HOST = "*"
# A day: who waits longer waits for ever, which is the default.
READ_WAIT_S_MAX = 86_400
# Ranges that a primary has yet to declare lost; a record is part of every head's view.
LOST_RANGES_MAX = 64
HOST_NQN = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[!-~]+")


def take_over(
    record: VolumeRecord, head: UUID, log: UUID, expected_version: int, *, in_doubt: bool = False
) -> VolumeRecord:  # fmt: skip
    """The record after `head` with log directory `log` has taken the next epoch (F4).

    The first primary of a new volume is any assigned head; every later one is in `current` with the same log (F5).
    `in_doubt`: the head recovered its log from disk and does not know where all the others end.
    """
    _check(record, expected_version)
    member = Member(head, log)
    if not record.current and record.state is VolumeState.CREATING:
        if head not in record.heads:
            raise NotEligible(f"head {head} is not assigned to volume {record.volume}")
        current: tuple[Member, ...] = (member,)
    elif member in record.current:
        current = record.current
    elif record.member(head) is not None:
        raise NotEligible(f"head {head} is a member with another log than {log}; join as a new member (F5)")
    else:
        raise NotEligible(f"head {head} is not a member of volume {record.volume}")
    epoch = _next_epoch(record)
    doubtful = epoch if in_doubt else record.doubtful_epoch
    return replace(
        record, epoch=epoch, primary=head, current=current, version=record.version + 1, doubtful_epoch=doubtful
    )  # fmt: skip


def change_members(
    record: VolumeRecord,
    head: UUID,
    epoch: int,
    expected_version: int,
    *,
    add: Member | None,
    remove: Member | None,
    lost: bool = False,
) -> VolumeRecord:
    """The record after the primary of `epoch` has added and removed a member (F5).

    Below `min_current` nobody is removed: whoever is away may be the only other one that has every acknowledged write
    (D1). `lost`: the removed log is gone, as its head says itself, so that keeping its name would keep nothing.
    """
    _check_primary(record, head, epoch, expected_version)
    if add is None and remove is None:
        raise RequestRefused("neither a member to add nor one to remove is given")
    current = record.current
    if remove is not None:
        if remove.head == head:
            raise NotEligible("a primary cannot remove itself")
        if remove not in current:
            raise NotEligible(f"head {remove.head} with log {remove.log} is not a member")
        current = tuple(member for member in current if member != remove)
        if len(current) < record.min_current and not lost:
            raise NotEligible(f"volume {record.volume} must keep {record.min_current} members")
    if add is not None and add not in current:
        if add.head not in record.heads:
            raise NotEligible(f"head {add.head} is not assigned to volume {record.volume}")
        if any(member.head == add.head for member in current):
            raise NotEligible(f"head {add.head} is a member with another log; remove that one first")
        if len(current) >= MEMBERS_MAX:
            raise NotEligible(f"a volume has at most {MEMBERS_MAX} members")
        current = (*current, add)
    if current == record.current:
        return record
    return replace(record, current=current, version=record.version + 1)


def set_columns(
    record: VolumeRecord,
    head: UUID,
    epoch: int,
    expected_version: int,
    columns: Sequence[Column],
    sleds: Collection[UUID],
) -> VolumeRecord:
    """The record with `columns` named, by the primary of `epoch`; `sleds` are the enrolled ones.

    A column that holds shards never changes its place here. The volume becomes active when enough of its columns for
    a redundant stripe (k + 1) exist.
    """
    _check_primary(record, head, epoch, expected_version)
    if record.state is VolumeState.DELETING:
        raise NotEligible(f"volume {record.volume} is being deleted")
    geometry = record.geometry
    ordered = tuple(sorted(columns, key=lambda column: column.index))
    if len({column.index for column in ordered}) != len(ordered) or len({c.sled for c in ordered}) != len(ordered):
        raise RequestRefused("each column needs an index and a sled of its own")
    if not geometry.data_shards < len(ordered) <= geometry.columns:
        raise RequestRefused(f"{len(ordered)} columns, {geometry.data_shards + 1} to {geometry.columns} are needed")
    blocks = column_blocks(record.size_bytes, geometry)
    for column in ordered:
        if not 0 <= column.index < geometry.columns:
            raise RequestRefused(f"column index {column.index} is not below {geometry.columns}")
        if column.sled not in sleds:
            raise RequestRefused(f"sled {column.sled} is not enrolled")
        if column not in record.columns and column.sled != record.sleds[column.index]:
            raise RequestRefused(f"column {column.index} is placed on sled {record.sleds[column.index]}")
        if column.blocks != blocks:
            raise RequestRefused(f"column {column.index} has {column.blocks} blocks, {blocks} are needed")
    if missing := set(record.columns) - set(ordered):
        raise Conflict(f"columns {sorted(column.index for column in missing)} exist and must stay as they are")
    state = VolumeState.ACTIVE if record.state is VolumeState.CREATING else record.state
    if ordered == record.columns and state is record.state:
        return record
    return replace(record, columns=ordered, state=state, version=record.version + 1)


def check_renewal(record: VolumeRecord, head: UUID, epoch: int) -> None:
    """Raise unless `head` is the primary of `epoch` of a volume that is not frozen."""
    _check_primary(record, head, epoch, record.version)


def revoke(record: VolumeRecord, head: UUID, substitutes: Sequence[UUID]) -> VolumeRecord | None:
    """The record without `head`, None when it has nothing to do with it.

    A primary costs the volume its epoch: its credential is stale from then on, wherever the new epoch has attached.
    The next member is named primary, but holds no credential before it takes the epoch after this one. A secondary
    just leaves `current`: it holds no credential of this epoch, and the primary goes on.
    """
    if head not in record.heads and record.member(head) is None:
        return None
    heads = tuple(other for other in record.heads if other != head)
    heads += tuple(other for other in substitutes if other not in heads)[: len(record.heads) - len(heads)]
    member = record.member(head)
    changed = replace(record, heads=heads, version=record.version + 1)
    if member is None:
        return changed
    current = tuple(other for other in record.current if other != member)
    if record.primary != head:
        return replace(changed, current=current)
    successor = next((other.head for other in current), None)
    return replace(changed, current=current, primary=successor, epoch=_next_epoch(record))


def pass_epoch(record: VolumeRecord) -> VolumeRecord:
    """The record in an epoch that no head is given, to raise a fence with; its primary takes the next one."""
    return replace(record, epoch=_next_epoch(record), version=record.version + 1)


def freeze(record: VolumeRecord, versions_skipped: int = 0) -> VolumeRecord:
    """The record with everything stopped until an operator recovers it (F4)."""
    return replace(record, state=VolumeState.FROZEN, version=record.version + 1 + versions_skipped)


def recover(record: VolumeRecord, epoch: int, state: VolumeState, member: Member | None = None) -> VolumeRecord:
    """The frozen record set going again in `state` above `epoch`, the highest that anybody has seen.

    With `member` from that log alone, which no rule vouches for: only an operator may say so (F5, F7).
    """
    if record.state is not VolumeState.FROZEN:
        raise Conflict(f"volume {record.volume} is {record.state}, not frozen")
    if not record.epoch <= epoch < EPOCH_MAX:
        raise RequestRefused(f"the epoch must lie between {record.epoch} (the record's) and {EPOCH_MAX - 1}")
    going = replace(record, state=state, epoch=epoch + 1, version=record.version + 1)
    if member is None:
        return going
    if state is not VolumeState.ACTIVE:
        raise Conflict(f"volume {record.volume} was {state} before, not active: there is nothing to take over")
    if member.head not in record.heads:
        raise NotEligible(f"head {member.head} is not assigned to volume {record.volume}")
    return replace(going, primary=member.head, current=(member,), forced_epoch=going.epoch)


def delete(record: VolumeRecord) -> VolumeRecord:
    """The record of a volume on its way out."""
    if record.state is VolumeState.FROZEN:
        raise Frozen(f"volume {record.volume} is frozen; recover it first")
    if record.state is VolumeState.DELETING:
        return record
    return replace(record, state=VolumeState.DELETING, version=record.version + 1)


def check_deleted(record: VolumeRecord, head: UUID, epoch: int) -> None:
    """Raise unless `head`, as primary of `epoch`, may say that the volume's namespaces are gone."""
    _check_primary(record, head, epoch, record.version)
    if record.state is not VolumeState.DELETING:
        raise NotEligible(f"volume {record.volume} is {record.state}, not deleting")


def set_sled_policy(record: VolumeRecord, exposed_stripes: bool, read_wait_s: int | None) -> VolumeRecord:
    """The record with what the volume does while sleds are away; the same when it says so already."""
    if read_wait_s is not None and not 0 <= read_wait_s <= READ_WAIT_S_MAX:
        raise RequestRefused(f"read_wait_s must be from 0 to {READ_WAIT_S_MAX} seconds, or null for ever")
    if (exposed_stripes, read_wait_s) == (record.exposed_stripes, record.read_wait_s):
        return record
    return replace(record, exposed_stripes=exposed_stripes, read_wait_s=read_wait_s, version=record.version + 1)


def declare_lost(record: VolumeRecord, lost: LostRange) -> VolumeRecord:
    """The record that asks the primary to declare blocks of that range lost; the same when it does already."""
    blocks = record.size_bytes // BLOCK_BYTES
    if lost.first < 0 or lost.blocks < 1 or lost.first + lost.blocks > blocks:
        raise RequestRefused(f"volume {record.name} has blocks 0 to {blocks - 1} of {BLOCK_BYTES} bytes")
    if record.state is VolumeState.FROZEN:
        raise Frozen(f"volume {record.volume} is frozen; recover it first")
    if record.state is not VolumeState.ACTIVE:
        raise Conflict(f"volume {record.name} is {record.state}, not active")
    if lost in record.lost:
        return record
    if len(record.lost) >= LOST_RANGES_MAX:
        raise Conflict(f"{LOST_RANGES_MAX} ranges wait to be declared lost already; wait for the primary")
    return replace(record, lost=(*record.lost, lost), version=record.version + 1)


def lost_declared(record: VolumeRecord, head: UUID, epoch: int, expected_version: int, lost: LostRange) -> VolumeRecord:
    """The record after the primary of `epoch` has declared the blocks of that range lost."""
    _check_primary(record, head, epoch, expected_version)
    if lost not in record.lost:
        return record
    left = tuple(other for other in record.lost if other != lost)
    return replace(record, lost=left, version=record.version + 1)


def admit_host(record: VolumeRecord, nqn: str) -> VolumeRecord:
    """The record that lets the host of that name connect by NVMe/TCP, `*` any host; the same when it does already."""
    if not host_nqn_fits(nqn):
        raise RequestRefused(f"{nqn!r} is no host's NQN (nqn.yyyy-mm.domain:...), nor *")
    if nqn in record.hosts:
        return record
    if len(record.hosts) >= HOSTS_MAX:
        raise Conflict(f"a volume's list has at most {HOSTS_MAX} hosts; remove some")
    return replace(record, hosts=(*record.hosts, nqn), version=record.version + 1)


def expel_host(record: VolumeRecord, nqn: str) -> VolumeRecord:
    """The record without that host; raises NotFound."""
    if nqn not in record.hosts:
        raise NotFound(f"host {nqn} is not on the list of volume {record.name}")
    return replace(record, hosts=tuple(host for host in record.hosts if host != nqn), version=record.version + 1)


def choose_exports(record: VolumeRecord, nbd: NbdExport, nvme: bool) -> VolumeRecord:
    """The record that is reached by these; the same when it is already."""
    if (nbd, nvme) == (record.nbd, record.nvme):
        return record
    return replace(record, nbd=nbd, nvme=nvme, version=record.version + 1)


def host_nqn_fits(nqn: str) -> bool:
    """Whether it is `*`, or has the form of an NQN (NVM Express Base 2.0, 4.5)."""
    return nqn == ANY_HOST or (len(nqn) <= NQN_CHARS_MAX and HOST_NQN.fullmatch(nqn) is not None)


def _check(record: VolumeRecord, expected_version: int) -> None:
    if record.version != expected_version:
        raise RecordChanged(record)
    if record.state is VolumeState.FROZEN:
        raise Frozen(f"volume {record.volume} is frozen until an operator recovers it")


def _check_primary(record: VolumeRecord, head: UUID, epoch: int, expected_version: int) -> None:
    if record.primary != head or record.epoch != epoch:
        raise NotEligible(
            f"head {head} is not the primary of epoch {epoch}: volume {record.volume} is in epoch {record.epoch}"
            f" of {record.primary}"
        )
    _check(record, expected_version)


def _next_epoch(record: VolumeRecord) -> int:
    if record.epoch >= EPOCH_MAX:
        raise Conflict(f"volume {record.volume} has used up its epochs")
    return record.epoch + 1
