"""Where a new volume goes: pure functions over one look at the rack."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from uuid import UUID

from head_node.authority.errors import Unplaceable
from head_node.store.records import Cleanup, HeadRecord, SledRecord, VolumeRecord, column_blocks
from head_node.volume.geometry import Geometry


def place_columns(
    sleds: Collection[SledRecord],
    volumes: Collection[VolumeRecord],
    reachable: Callable[[UUID], bool | None],
    size_bytes: int,
    geometry: Geometry,
    cleanups: Collection[Cleanup] = (),
) -> tuple[UUID, ...]:
    """k + m distinct sleds, those with the most free space first; raises Unplaceable.

    Where something of a deleted volume still takes the room, a column is placed only when there is no other sled: the
    volume runs without it until the cleanup is done. So it is with a sled that heads cannot reach: right after a start
    nobody has been reached, and the volume stays in `creating` until they are. Unknown capacities count as unlimited,
    least used first.
    """
    wanted_blocks = column_blocks(size_bytes, geometry)
    used: Counter[UUID] = Counter()
    for volume in volumes:
        for sled_id in volume.sleds:
            used[sled_id] += column_blocks(volume.size_bytes, volume.geometry)
    held: Counter[UUID] = Counter()
    for cleanup in cleanups:
        for sled_id in cleanup.sleds:
            held[sled_id] += cleanup.blocks
    roomy = [s for s in sleds if not s.capacity_blocks or s.capacity_blocks - used[s.id] >= wanted_blocks]
    if len(roomy) < geometry.columns:
        raise Unplaceable(
            f"{geometry.columns} sleds with {wanted_blocks} free blocks each are needed; of {len(sleds)} enrolled,"
            f" {len(roomy)} have room"
        )

    def preference(sled: SledRecord) -> tuple[bool, bool, bool, int, str]:
        # Known capacity sorts by free blocks; unknown by what is used, after those that are known to have room.
        free = sled.capacity_blocks - used[sled.id] if sled.capacity_blocks else -used[sled.id]
        taken = bool(sled.capacity_blocks) and free - held[sled.id] < wanted_blocks
        return (taken, reachable(sled.id) is False, not sled.capacity_blocks, held[sled.id] - free, sled.name)

    return tuple(sled.id for sled in sorted(roomy, key=preference)[: geometry.columns])


def place_heads(
    heads: Collection[HeadRecord],
    volumes: Collection[VolumeRecord],
    is_live: Callable[[UUID], bool],
    count: int,
) -> tuple[UUID, ...]:
    """Up to `count` heads, the preferred primary first: live ones before others, least busy first.

    Raises Unplaceable when there is none.
    """
    if not heads:
        raise Unplaceable("no head is enrolled")
    first = Counter(volume.heads[0] for volume in volumes if volume.heads)
    any_place: Counter[UUID] = Counter(head for volume in volumes for head in volume.heads)
    ranked = sorted(heads, key=lambda head: (not is_live(head.id), first[head.id], any_place[head.id], head.name))
    primary = ranked[0]
    rest = sorted(ranked[1:], key=lambda head: (not is_live(head.id), any_place[head.id], head.name))
    return (primary.id, *(head.id for head in rest[: count - 1]))


def substitutes(heads: Mapping[UUID, HeadRecord], volumes: Collection[VolumeRecord], leaving: UUID) -> Sequence[UUID]:
    """Heads that may take the place of `leaving`, least busy first."""
    busy: Counter[UUID] = Counter(head for volume in volumes for head in volume.heads)
    others = [head for head in heads.values() if head.id != leaving and not head.revoked]
    return [head.id for head in sorted(others, key=lambda head: (busy[head.id], head.name))]
