"""What the store remembers about volumes, heads and sleds, and how each is written as JSON.

A record is an immutable value; the authority replaces it by one durable compare-and-put. Identifiers are UUIDs,
keys are 32 raw bytes (hex in JSON), times are Unix milliseconds.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

from head_node.store.errors import RecordMalformed
from head_node.volume.geometry import Geometry
from sled_controller.sled_start import UNKNOWN_START, SledStart

BLOCK_BYTES = 4096
# Twice the slots that the blocks need, so that compaction always finds free ones, and a floor for small volumes.
OVERPROVISION_FACTOR = 2
SPARE_SLOTS = 64
# With fewer members than this, losing one head may lose acknowledged writes.
MEMBERS_SAFE = 2
# 2^56 bytes: every offset of a column still fits the u64 LBA arithmetic of the sleds with room to spare.
VOLUME_BYTES_MAX = 1 << 56

Address = tuple[str, int]

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What JSON of another shape raises; an infinite number overflows."""


class VolumeState(enum.StrEnum):
    """Where a volume is in its life; `frozen` is left only through an operator."""

    CREATING = "creating"
    ACTIVE = "active"
    FROZEN = "frozen"
    DELETING = "deleting"


class NbdExport(enum.StrEnum):
    """Whom a volume is served to by NBD."""

    ON = "on"
    """Any client, by TLS or without as each head allows."""
    TLS = "tls"
    """Clients over TLS only."""
    OFF = "off"


def column_blocks(size_bytes: int, geometry: Geometry) -> int:
    """Blocks of 4096 bytes that each column's namespace of a volume of `size_bytes` has."""
    size_blocks = -(-size_bytes // BLOCK_BYTES)
    stripes = -(-size_blocks // geometry.stripe_blocks)
    return (stripes * OVERPROVISION_FACTOR + SPARE_SLOTS) * geometry.shard_blocks


@dataclass(frozen=True, slots=True)
class Member:
    """A head with the identity of its log directory: a wiped log is another member (F5)."""

    head: UUID
    log: UUID

    def to_json(self) -> dict[str, str]:
        return {"head": str(self.head), "log": str(self.log)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(UUID(data["head"]), UUID(data["log"]))


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the log of a volume on one head stands: its last durable record, and the last one known committed there."""

    head: UUID
    log: UUID
    tail: int
    tail_epoch: int
    committed: int
    committed_epoch: int

    def to_json(self) -> dict[str, str | int]:
        return {
            "head": str(self.head), "log": str(self.log), "tail": self.tail, "tail_epoch": self.tail_epoch,
            "committed": self.committed, "committed_epoch": self.committed_epoch,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """Shard `index` of every stripe lives in namespace `nsid` of `sled`, `blocks` blocks of 4096 bytes long."""

    index: int
    sled: UUID
    nsid: int
    blocks: int

    def to_json(self) -> dict[str, int | str]:
        return {"index": self.index, "sled": str(self.sled), "nsid": self.nsid, "blocks": self.blocks}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["index"]), UUID(data["sled"]), int(data["nsid"]), int(data["blocks"]))


@dataclass(frozen=True, slots=True)
class LostRange:
    """Blocks that an operator has declared lost where they cannot be read; with `sleds_away` also where only sleds
    that are away may have them."""

    first: int
    blocks: int
    sleds_away: bool = False

    def to_json(self) -> dict[str, int | bool]:
        return {"first": self.first, "blocks": self.blocks, "sleds_away": self.sleds_away}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["first"]), int(data["blocks"]), bool(data["sleds_away"]))


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """One volume. `epoch` never falls; `version` rises by one with every change.

    `primary` names the head that took `epoch`, or, after a revocation, the one that should take the next;
    `current` are the members that hold every acknowledged write, `heads` the assigned ones (preferred primary first),
    `sleds` the placement (one per column, in order), `columns` what exists there. `hosts` are the NQNs of those that
    may connect by NVMe/TCP; `*` is anybody, an empty list nobody. `nbd` and `nvme` say by what clients reach it. While
    sleds are away, stripes of exactly k shards are written if `exposed_stripes` allows it, and reads wait `read_wait_s`
    seconds for them (None: for ever). `lost` are the ranges that the primary has yet to declare lost.
    `forced_epoch` is the epoch in which an operator last chose one log to go on from alone: what was committed before,
    and is not in that log, was given up. `doubtful_epoch` is the last one that was begun by a log recovered from disk
    without knowing where all the others end.
    """

    volume: UUID
    name: str
    size_bytes: int
    geometry: Geometry = field(default_factory=Geometry)
    epoch: int = 0
    primary: UUID | None = None
    current: tuple[Member, ...] = ()
    heads: tuple[UUID, ...] = ()
    sleds: tuple[UUID, ...] = ()
    columns: tuple[Column, ...] = ()
    state: VolumeState = VolumeState.CREATING
    min_current: int = 1
    version: int = 1
    hosts: tuple[str, ...] = ()
    exposed_stripes: bool = True
    read_wait_s: int | None = None
    lost: tuple[LostRange, ...] = ()
    forced_epoch: int = 0
    doubtful_epoch: int = 0
    nbd: NbdExport = NbdExport.ON
    nvme: bool = True

    def member(self, head: UUID) -> Member | None:
        """The entry of `head` in `current`, if it has one."""
        return next((member for member in self.current if member.head == head), None)

    def assigned(self, head: UUID) -> bool:
        """Whether the record gives `head` any part in the volume; no other head has a say in it."""
        return head in self.heads or self.member(head) is not None

    @property
    def exposed(self) -> bool:
        """One member alone holds the newest writes, and the volume's policy lets that pass (D1)."""
        return self.min_current <= len(self.current) < MEMBERS_SAFE

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": str(self.volume),
            "name": self.name,
            "size_bytes": self.size_bytes,
            "geometry": self.geometry.to_json(),
            "epoch": self.epoch,
            "primary": None if self.primary is None else str(self.primary),
            "current": [member.to_json() for member in self.current],
            "heads": [str(head) for head in self.heads],
            "sleds": [str(sled) for sled in self.sleds],
            "columns": [column.to_json() for column in self.columns],
            "state": self.state.value,
            "min_current": self.min_current,
            "version": self.version,
            "hosts": list(self.hosts),
            "exposed_stripes": self.exposed_stripes,
            "read_wait_s": self.read_wait_s,
            "lost": [lost.to_json() for lost in self.lost],
            "forced_epoch": self.forced_epoch,
            "doubtful_epoch": self.doubtful_epoch,
            "nbd": self.nbd.value,
            "nvme": self.nvme,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed."""
        try:
            return cls(
                volume=UUID(data["volume"]),
                name=str(data["name"]),
                size_bytes=int(data["size_bytes"]),
                geometry=Geometry.from_json(data["geometry"]),
                epoch=int(data["epoch"]),
                primary=None if data["primary"] is None else UUID(data["primary"]),
                current=tuple(Member.from_json(member) for member in data["current"]),
                heads=tuple(UUID(head) for head in data["heads"]),
                sleds=tuple(UUID(sled) for sled in data["sleds"]),
                columns=tuple(Column.from_json(column) for column in data["columns"]),
                state=VolumeState(data["state"]),
                min_current=int(data["min_current"]),
                version=int(data["version"]),
                hosts=tuple(str(host) for host in data.get("hosts", ())),  # records of 0.1 have none
                exposed_stripes=bool(data.get("exposed_stripes", True)),
                read_wait_s=None if data.get("read_wait_s") is None else int(data["read_wait_s"]),
                lost=tuple(LostRange.from_json(lost) for lost in data.get("lost", ())),
                forced_epoch=int(data.get("forced_epoch", 0)),
                doubtful_epoch=int(data.get("doubtful_epoch", 0)),
                nbd=NbdExport(data.get("nbd", NbdExport.ON)),  # records of older authorities say nothing of exports
                nvme=bool(data.get("nvme", True)),
            )
        except _MALFORMED as error:
            raise RecordMalformed("volume record", error) from error


@dataclass(frozen=True, slots=True)
class Cleanup:
    """A deleted volume that something may be left of: its namespaces on `sleds`, its log on `heads`.

    `epoch` is the newest that the volume ever had; it still rises. `blocks` is how large each namespace is."""

    volume: UUID
    name: str
    epoch: int
    blocks: int
    sleds: tuple[UUID, ...] = ()
    heads: tuple[UUID, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": str(self.volume),
            "name": self.name,
            "epoch": self.epoch,
            "blocks": self.blocks,
            "sleds": [str(sled) for sled in self.sleds],
            "heads": [str(head) for head in self.heads],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed."""
        try:
            return cls(
                UUID(data["volume"]),
                str(data["name"]),
                int(data["epoch"]),
                int(data["blocks"]),
                tuple(UUID(sled) for sled in data["sleds"]),
                tuple(UUID(head) for head in data["heads"]),
            )
        except _MALFORMED as error:
            raise RecordMalformed("cleanup", error) from error


@dataclass(frozen=True, slots=True)
class Unfenced:
    """A revoked head that may hold a good credential of `epoch` of a volume, until `end_ms` at the latest, and the
    sleds whose fence is not known to be above it. `above` is a higher epoch that no head was given, 0 for none."""

    volume: UUID
    head: UUID
    epoch: int
    above: int
    end_ms: int
    sleds: tuple[UUID, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": str(self.volume),
            "head": str(self.head),
            "epoch": self.epoch,
            "above": self.above,
            "end_ms": self.end_ms,
            "sleds": [str(sled) for sled in self.sleds],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed."""
        try:
            return cls(
                UUID(data["volume"]),
                UUID(data["head"]),
                int(data["epoch"]),
                int(data["above"]),
                int(data["end_ms"]),
                tuple(UUID(sled) for sled in data["sleds"]),
            )
        except _MALFORMED as error:
            raise RecordMalformed("unfenced", error) from error


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """An enrolled head. `addresses` by service: `peer` (head to head), `nbd` and `nvme` (clients).

    `number`, from 1 on and no other head's, gives it NVMe controller ids of its own; 0 until it has announced itself
    to an authority that gives numbers.
    """

    id: UUID
    name: str
    public_key: bytes
    addresses: Mapping[str, Address] = field(default_factory=dict)
    enrolled_ms: int = 0
    revoked: bool = False
    number: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "name": self.name,
            "public_key": self.public_key.hex(),
            "addresses": {service: list(address) for service, address in self.addresses.items()},
            "enrolled_ms": self.enrolled_ms,
            "revoked": self.revoked,
            "number": self.number,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed."""
        try:
            return cls(
                id=UUID(data["id"]),
                name=str(data["name"]),
                public_key=bytes.fromhex(data["public_key"]),
                addresses={str(service): (str(at[0]), int(at[1])) for service, at in data["addresses"].items()},
                enrolled_ms=int(data["enrolled_ms"]),
                revoked=bool(data["revoked"]),
                number=int(data.get("number", 0)),
            )
        except _MALFORMED as error:
            raise RecordMalformed("head record", error) from error


@dataclass(frozen=True, slots=True)
class SledRecord:
    """An enrolled sled and where its NVMe/TCP target listens. `capacity_blocks` is 0 when it is not known. `start`: the
    newest that the authority has seen; `accepted`: how often an operator has accepted one that went back."""

    id: UUID
    name: str
    public_key: bytes
    nqn: str
    address: Address
    capacity_blocks: int = 0
    enrolled_ms: int = 0
    start: SledStart = UNKNOWN_START
    accepted: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "name": self.name,
            "public_key": self.public_key.hex(),
            "nqn": self.nqn,
            "address": list(self.address),
            "capacity_blocks": self.capacity_blocks,
            "enrolled_ms": self.enrolled_ms,
            "boot_counter": self.start.boot_counter,
            "boot_id": self.start.boot_id.hex(),
            "accepted": self.accepted,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed."""
        try:
            return cls(
                id=UUID(data["id"]),
                name=str(data["name"]),
                public_key=bytes.fromhex(data["public_key"]),
                nqn=str(data["nqn"]),
                address=(str(data["address"][0]), int(data["address"][1])),
                capacity_blocks=int(data["capacity_blocks"]),
                enrolled_ms=int(data["enrolled_ms"]),
                start=SledStart(int(data.get("boot_counter", 0)), bytes.fromhex(data.get("boot_id", ""))),
                accepted=int(data.get("accepted", 0)),
            )
        except _MALFORMED as error:
            raise RecordMalformed("sled record", error) from error


@dataclass(frozen=True, slots=True)
class RackView:
    """What one head may know: everyone enrolled, the signed key set, and the volumes it is assigned to.

    `revision` rises with every change; give it back as `after` to wait for the next one.
    """

    revision: int
    heads: Mapping[UUID, HeadRecord]
    sleds: Mapping[UUID, SledRecord]
    key_set: bytes
    volumes: Mapping[UUID, VolumeRecord]
    secrets: Mapping[UUID, bytes] = field(default_factory=dict)
    """By volume with hosts that have to prove themselves: `HostSecrets` as JSON, sealed to the head."""
    deleted: frozenset[UUID] = frozenset()
    """Volumes that are deleted and whose log this head has not said to have removed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "heads": [head.to_json() for head in self.heads.values()],
            "sleds": [sled.to_json() for sled in self.sleds.values()],
            "key_set": self.key_set.hex(),
            "volumes": [volume.to_json() for volume in self.volumes.values()],
            "secrets": {str(volume): sealed.hex() for volume, sealed in self.secrets.items()},
            "deleted": sorted(map(str, self.deleted)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises RecordMalformed."""
        try:
            heads = [HeadRecord.from_json(head) for head in data["heads"]]
            sleds = [SledRecord.from_json(sled) for sled in data["sleds"]]
            volumes = [VolumeRecord.from_json(volume) for volume in data["volumes"]]
            return cls(
                revision=int(data["revision"]),
                heads={head.id: head for head in heads},
                sleds={sled.id: sled for sled in sleds},
                key_set=bytes.fromhex(data["key_set"]),
                volumes={volume.volume: volume for volume in volumes},
                secrets={UUID(volume): bytes.fromhex(sealed) for volume, sealed in data["secrets"].items()},
                deleted=frozenset(UUID(volume) for volume in data["deleted"]),
            )
        except _MALFORMED as error:
            raise RecordMalformed("rack view", error) from error
