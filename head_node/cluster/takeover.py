"""Whether, when and how a member asks for the next epoch (F4, F5, F7; design: failover).

The order is the point: pre-check and ask the other members for their tails (tails.py), seal, ask the authority. What
follows the grant (attach, lead, serve) is the primary's business (primary.py).
"""

import enum
import logging
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from head_node.authority.errors import AuthorityError
from head_node.cluster.errors import TakeoverImpossible
from head_node.cluster.lease import MS
from head_node.store.records import VolumeRecord, VolumeState
from sled_controller.credential import parse_credential
from sled_controller.environment import Environment
from sled_controller.errors import CredentialMalformed

log = logging.getLogger(__name__)

FIRST_TURN_MS: Final = 3000
"""A new volume is begun by its preferred head; each later one in the list waits this much longer for it."""

WHOLE_PLACEMENT_MS: Final = 10_000
"""A new volume waits this long for all sleds of its placement, which may be starting like this head, before it begins
without those that are away; they get their columns when they come."""


TAIL_WAIT_MS: Final = 10_000
"""More than a head takes to start on a busy machine: heads that lost their power together wait for each other."""


class Step(enum.Enum):
    """What a head that is not primary should do about a volume."""

    IDLE = "idle"
    FOLLOW = "follow"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decision depends on. Times in nanoseconds of CLOCK_BOOTTIME."""

    record: VolumeRecord
    head: UUID
    log: UUID
    now_ns: int
    bound_until_ns: int
    first_seen_ns: int


def next_step(situation: Situation) -> tuple[Step, int | None]:
    """What to do, and the time at which to look again if nothing else happens.

    A member in `current` follows as long as its promise binds it; after that the primary has been silent for a whole
    TTL (or it is this head itself, restarted: F4), and the member becomes a candidate.
    """
    record = situation.record
    if record.state is VolumeState.FROZEN or situation.head not in record.heads:
        return Step.IDLE, None
    if not record.current:
        turn = record.heads.index(situation.head)
        at = max(situation.first_seen_ns + turn * FIRST_TURN_MS * MS, situation.bound_until_ns if turn else 0)
        return (Step.CANDIDATE, None) if situation.now_ns >= at else (Step.IDLE, at)
    member = record.member(situation.head)
    if member is None or member.log != situation.log:
        return (Step.FOLLOW, None) if record.primary != situation.head else (Step.IDLE, None)
    if situation.now_ns >= situation.bound_until_ns:
        return Step.CANDIDATE, None
    following = record.primary is not None and record.primary != situation.head
    return (Step.FOLLOW if following else Step.IDLE), situation.bound_until_ns


def receipts_needed(record: VolumeRecord) -> int:
    """N - m: with fewer column sleds a new primary could miss what was committed, and could not destage (F7). One more
    for a new volume: as many as a stripe that is redundant needs (D1)."""
    return record.geometry.data_shards + (not record.columns)


class ReachableSleds(Protocol):
    def reachable(self, sleds: tuple[UUID, ...]) -> int: ...


def check_sleds(record: VolumeRecord, sleds: ReachableSleds, known_ns: int) -> None:
    """A candidate that cannot reach enough sleds never bumps the epoch. Raises TakeoverImpossible. `known_ns`: for how
    long this head has known of the volume."""
    patient = not record.columns and known_ns < WHOLE_PLACEMENT_MS * MS
    needed = record.geometry.columns if patient else receipts_needed(record)
    reachable = sleds.reachable(record.sleds)
    if reachable < needed:
        raise TakeoverImpossible(f"{reachable} sleds are reachable, {needed} are needed")


@dataclass(frozen=True, slots=True)
class Grant:
    """An epoch that this process holds. `term_end_ns`: when the credential's term ends, on this head's clock."""

    record: VolumeRecord
    credential: bytes
    term_end_ns: int
    half_term_ns: int


class TakeoverApi(Protocol):
    async def takeover(
        self, volume: UUID, *, expected_version: int, log_id: UUID, in_doubt: bool = False
    ) -> tuple[VolumeRecord, bytes]: ...  # fmt: skip


async def ask(
    api: TakeoverApi, record: VolumeRecord, log_id: UUID, env: Environment, *, in_doubt: bool = False
) -> Grant:  # fmt: skip
    """Ask for the next epoch. Only a sealed member may call this (F5).

    Raises TakeoverImpossible: refused, somebody else was faster, or no answer. In the last case the epoch may be
    burned (F4); the record must be read again before another try.
    """
    asked_ns = env.clock.boottime_ns()
    try:
        granted, credential = await api.takeover(
            record.volume, expected_version=record.version, log_id=log_id, in_doubt=in_doubt
        )
        term_ns = credential_term_ns(credential)
    except (AuthorityError, CredentialMalformed) as error:
        raise TakeoverImpossible(f"the authority did not grant epoch {record.epoch + 1}: {error}") from error
    log.info("event=epoch_granted volume=%s epoch=%d version=%d", granted.volume, granted.epoch, granted.version)
    return Grant(granted, credential, asked_ns + term_ns, asked_ns + term_ns // 2)


def credential_term_ns(credential: bytes) -> int:
    """How long a credential is good for, from issue to expiry. Counted from before it was asked for, its holder's
    term ends before the sleds' does, whatever the clocks say. Raises CredentialMalformed."""
    shown = parse_credential(credential).credential
    return (shown.expires_ms - shown.issued_ms) * MS
