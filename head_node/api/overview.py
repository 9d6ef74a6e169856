"""What operators see of nodes and volumes: the records, and beside them what live heads report."""

from collections import defaultdict
from uuid import UUID

from head_node.api import models
from head_node.authority.authority import Authority
from head_node.authority.errors import NotFound
from head_node.authority.ledger import Rack, freeze_key
from head_node.store.records import HeadRecord, VolumeRecord, VolumeState, column_blocks


async def volume_status(authority: Authority, record: VolumeRecord) -> models.VolumeStatus:
    """Record and health of one volume."""
    said = authority.reports.of_volume(record)
    exposed = record.state is VolumeState.ACTIVE and record.exposed
    primary = said.get(record.primary) if record.primary is not None else None
    exposed = exposed or (primary is not None and bool(primary.get("exposed")))
    notice = None
    if record.state is VolumeState.FROZEN:
        notice = await authority.ledger.json(freeze_key(record.volume))
    return models.VolumeStatus(
        **models.VolumeDocument.model_validate(record.to_json()).model_dump(),
        health=models.HealthDocument(
            exposed=exposed,
            primary_live=record.primary is not None and authority.reports.is_live(record.primary),
            serving=primary is not None and bool(primary.get("serving")),
            stopped="" if primary is None else str(primary.get("stopped", "")),
            members=len(record.current),
            degraded=await _degraded(authority, record),
            reports={head: dict(report) for head, report in said.items()},
        ),
        frozen_because=None if notice is None else str(notice.value["reason"]),
        recover_wait_ms=authority.recovery.wait_ms(record.volume) if record.state is VolumeState.FROZEN else None,
    )


async def _degraded(authority: Authority, record: VolumeRecord) -> str:
    """Which columns a volume that serves lacks, and what is in their way."""
    named = {column.index for column in record.columns}
    missing = [sled for index, sled in enumerate(record.sleds) if index not in named]
    if not missing or record.state is not VolumeState.ACTIVE:
        return ""
    rack = await authority.ledger.rack()
    reasons = []
    for sled in missing:
        name = rack.sleds[sled].value.name if sled in rack.sleds else str(sled)
        left = sorted(entry.value.name for entry in rack.cleanups.values() if sled in entry.value.sleds)
        reasons.append(name + (f" (still holds deleted volumes: {', '.join(left[:4])})" if left else ""))
    return f"{len(record.columns)} of {record.geometry.columns} columns exist; none on {', '.join(reasons)}"


def unreadable(authority: Authority, record: VolumeRecord) -> models.UnreadableDocument:
    """What the primary says of blocks that it could not read; nothing while it has not reported."""
    said = authority.reports.of_volume(record)
    primary = said.get(record.primary, {}) if record.primary is not None else {}
    engine = primary.get("engine") or {}
    return models.UnreadableDocument(
        blocks=engine.get("blocks_unreadable", 0),
        more=engine.get("blocks_unreadable_more", False),
        ranges=[
            models.RangeDocument(first=first, blocks=blocks)
            for first, blocks in engine.get("blocks_unreadable_ranges", ())
        ],
        lost=engine.get("blocks_lost", 0),
    )


def heads(authority: Authority, rack: Rack) -> list[models.HeadStatus]:
    """All heads by name, with roles and latest report."""
    roles: defaultdict[UUID, list[models.RoleDocument]] = defaultdict(list)
    for entry in rack.volumes.values():
        volume = entry.value
        for head in dict.fromkeys([*volume.heads, *(member.head for member in volume.current)]):
            role = "secondary" if volume.member(head) else "assigned"
            if head == volume.primary:
                role = "primary"
            roles[head].append(
                models.RoleDocument(volume=volume.volume, name=volume.name, role=role, epoch=volume.epoch)
            )
    found = []
    for record in sorted((entry.value for entry in rack.heads.values()), key=lambda head: head.name):
        report = authority.reports.report(record.id)
        found.append(
            models.HeadStatus(
                **models.HeadDocument.model_validate(record.to_json()).model_dump(),
                live=authority.reports.is_live(record.id),
                reported_ms=None if report is None else report.received_ms,
                roles=roles[record.id],
                report=None if report is None else dict(report.status),
            )
        )
    return found


def sleds(authority: Authority, rack: Rack) -> list[models.SledStatus]:
    """All sleds by name, with what is placed on them."""
    placed: defaultdict[UUID, list[VolumeRecord]] = defaultdict(list)
    for entry in rack.volumes.values():
        for sled in entry.value.sleds:
            placed[sled].append(entry.value)
    return [
        models.SledStatus(
            **models.SledDocument.model_validate(entry.value.to_json()).model_dump(),
            reachable=authority.reports.sled_reachable(entry.value.id),
            refused=authority.starts.refused.get(entry.value.id, ""),
            volumes=[volume.volume for volume in placed[entry.value.id]],
            allocated_blocks=sum(column_blocks(v.size_bytes, v.geometry) for v in placed[entry.value.id]),
        )
        for entry in sorted(rack.sleds.values(), key=lambda entry: entry.value.name)
    ]


def find_head(rack: Rack, name_or_id: str) -> HeadRecord:
    """The head of that id or name, enrolled ones before revoked ones; raises NotFound."""
    matching = [entry.value for entry in rack.heads.values() if name_or_id in (str(entry.value.id), entry.value.name)]
    if not matching:
        raise NotFound(f"there is no head {name_or_id}")
    return min(matching, key=lambda head: head.revoked)
