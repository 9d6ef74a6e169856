"""How a volume is stopped for an operator, and how an operator sets it going again (F4, F7).

A volume freezes when a valid credential newer than its record turns up, when the store was restored, when two logs
part below what was committed (D1), or because an operator says so. It goes on only after the term of every credential
that may be about: whoever holds one may serve clients alone until then, and nobody else could know (F7).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from head_node.authority import transitions
from head_node.authority.errors import Conflict, MayLose, NotEligible, RequestRefused, TooEarly
from head_node.authority.key_push import KeyPush
from head_node.authority.keyring import Keyring
from head_node.authority.ledger import Ledger, Versioned, freeze_key, head_key, revision_of, volume_key
from head_node.authority.nodes import Fencer
from head_node.authority.reports import Reports
from head_node.store.interface import RESTORED_REVISIONS_SKIPPED
from head_node.store.records import HeadRecord, LogEnd, Member, VolumeRecord, VolumeState
from sled_controller.credential import parse_credential, verify
from sled_controller.environment import Environment
from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.keyset import KeySet

CLOCK_MARGIN_DIVISOR: Final = 10
"""Clocks of heads may run slower than this one's by as much as the lease's guard allows: a tenth."""
NS_PER_MS: Final = 1_000_000

_log = logging.getLogger(__name__)


@runtime_checkable
class FenceReader(Protocol):
    """What can ask a volume's sleds for their fences."""

    async def passed(self, record: VolumeRecord) -> dict[UUID, int]:
        """Raise the fences of the sleds that answer to the record's epoch; those that have a higher one, and which."""


@dataclass(frozen=True, slots=True)
class Heir:
    """A head from whose log alone a volume is to go on. `may_lose`: the operator has read what that may lose."""

    head: HeadRecord
    may_lose: bool


class Recovery:
    """Freezes and recovers volume records."""

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        reports: Reports,
        env: Environment,
        *,
        key_push: KeyPush,
        root_public: bytes,
        term_ms: int,
        fencer: Fencer | None = None,
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._key_push = key_push
        self._reports = reports
        self._env = env
        self._root_public = root_public
        self._term_ms = term_ms
        self._fencer = fencer
        # A former run may have signed until this one began.
        self._started_ns = env.clock.boottime_ns()
        self._frozen_ns: dict[UUID, int] = {}

    async def judge_credential(self, head: UUID, raw: bytes) -> VolumeRecord:
        """Freeze the volume of a valid credential that is newer than its record (F4), whichever head hands it in.

        Raises RequestRefused when it is not a valid credential, NotFound when there is no such volume, NotEligible when
        the head has no part in it: it is told nothing of it.
        """
        ring = await self._keyring.current()
        try:
            credential = verify(parse_credential(raw), KeySet.open(ring.signed_set, self._root_public))
        except (CredentialMalformed, CredentialRefused) as error:
            raise RequestRefused(f"not a valid credential: {error}") from error

        async def attempt() -> VolumeRecord:
            found = await self._ledger.volume(credential.volume)
            if credential.epoch <= found.value.epoch:
                return found.value
            reason = f"head {head} handed in a valid credential of epoch {credential.epoch}"
            return await self._freeze(found, reason, credential.epoch)

        record = await self._ledger.until_settled(attempt)
        if record.epoch < credential.epoch:
            self._note("volume-frozen", record, seen=credential.epoch)
        _check_assigned(record, head)
        return record

    async def freeze(self, volume: UUID, reason: str) -> VolumeRecord:
        """Stop a volume: no takeover, renewal or change until it is recovered. Raises NotFound, Conflict."""

        async def attempt() -> VolumeRecord:
            found = await self._ledger.volume(volume)
            if found.value.state is VolumeState.DELETING:
                raise Conflict(f"volume {volume} is being deleted")
            return await self._freeze(found, reason, found.value.epoch)

        record = await self._ledger.until_settled(attempt)
        self._note("volume-frozen", record, reason=reason)
        return record

    async def freeze_diverged(
        self, head: UUID, volume: UUID, *, epoch: int, claim: str, parted: int, ends: Sequence[LogEnd]
    ) -> VolumeRecord:
        """Stop a volume of which one log holds committed records that the log of its primary lacks (D1).

        Both logs are kept, and only an operator, who names the head whose log counts, sets the volume going again.
        `parted`: the last operation that the logs share. Raises NotEligible, NotFound.
        """

        async def attempt() -> VolumeRecord:
            requester = await self._ledger.enrolled(head)
            found = await self._ledger.volume(volume)
            for said in (head, *(end.head for end in ends)):
                _check_assigned(found.value, said)
            if found.value.state is not VolumeState.FROZEN:
                transitions.check_renewal(found.value, head, epoch)
                await self._ledger.check_claim(volume, epoch, claim)
                reason = f"two logs part after operation {parted}, below what was committed: {await self._shown(ends)}"
                compare = {head_key(head): requester.revision}
                return await self._freeze(found, reason, found.value.epoch, logs=ends, compare_also=compare)
            return found.value

        record = await self._ledger.until_settled(attempt)
        self._note("volume-diverged", record, parted=parted, logs=[end.to_json() for end in ends])
        return record

    async def _shown(self, ends: Sequence[LogEnd]) -> str:
        said = []
        for end in ends:
            found = await self._ledger.head(end.head)
            said.append(
                f"head {end.head if found is None else found.value.name} ends at operation {end.tail} of epoch"
                f" {end.tail_epoch} and knows operation {end.committed} of epoch {end.committed_epoch} as committed"
            )
        return "; ".join(said) + "; both logs are kept: name the head whose log counts (force-takeover)"

    async def freeze_all(self, reason: str) -> list[VolumeRecord]:
        """Freeze every volume after a restore from a backup, at versions above all that heads may have seen since."""
        frozen = []
        for volume in (await self._ledger.rack()).volumes:

            async def attempt(volume: UUID = volume) -> VolumeRecord:
                found = await self._ledger.volume(volume)
                return await self._freeze(found, reason, found.value.epoch, RESTORED_REVISIONS_SKIPPED, old_store=True)

            frozen.append(await self._ledger.until_settled(attempt))
            self._note("volume-frozen", frozen[-1], reason=reason)
        return frozen

    def wait_ms(self, volume: UUID) -> int:
        """Milliseconds until no credential of a frozen volume can be good for serving any more."""
        since_ns = self._frozen_ns.get(volume, self._started_ns)
        term_ms = self._term_ms + self._term_ms // CLOCK_MARGIN_DIVISOR
        left_ns = since_ns + term_ms * NS_PER_MS - self._env.clock.boottime_ns()
        return max(0, -(-left_ns // NS_PER_MS))

    async def recover(self, volume: UUID, epoch: int, heir: Heir | None = None) -> VolumeRecord:
        """Set a frozen volume going above `epoch`, the highest seen anywhere; with an heir, from its log alone.

        A volume whose logs part below what was committed needs an heir. Where no key signs the epoch after `epoch`, the
        keys are rotated at once: only a stolen one can have gone so far. Raises Conflict, RequestRefused, MayLose (and
        says what), TooEarly.
        """

        async def attempt() -> VolumeRecord:
            found = await self._ledger.volume(volume)
            notice = await self._ledger.json(freeze_key(volume))
            before = VolumeState.ACTIVE if notice is None else VolumeState(notice.value["before"])
            seen = 0 if notice is None else int(notice.value["epoch_seen"])
            if epoch < seen:
                raise RequestRefused(f"a credential of epoch {seen} was seen; the epoch must be at least that")
            end = (await self._keyring.current()).epochs_end
            if epoch >= end:
                raise RequestRefused(
                    f"no signing key of this rack has signed epoch {end} or a higher one; if a sled does show epoch"
                    f" {epoch}, rotate the keys (rackctl keys rotate --now) until one could have, and ask again"
                )
            parted = notice is not None and bool(notice.value.get("logs"))
            if parted and heir is None:
                raise Conflict(
                    f"two logs of volume {found.value.name} part below what was committed: name the head whose log"
                    " counts; the log of the other head is set aside"
                )
            member = None if heir is None else self._log_of(heir.head, found.value, any_log=parted)
            if heir is not None and not heir.may_lose:
                raise MayLose(self._loss(heir.head, found.value))
            record = transitions.recover(found.value, epoch, before, member)
            if wait_ms := self.wait_ms(volume):
                raise TooEarly(wait_ms)
            if record.epoch >= end:
                await self._key_push.rotate_at_once()
            if notice is not None and notice.value.get("old_store"):
                await self._check_fences(record)
            await self._ledger.commit(
                compare={volume_key(volume): found.revision, freeze_key(volume): revision_of(notice)},
                put={volume_key(volume): record.to_json()},
                delete=[freeze_key(volume)],
            )
            return record

        record = await self._ledger.until_settled(attempt)
        self._frozen_ns.pop(volume, None)
        if heir is None:
            self._note("volume-recovered", record)
        else:
            self._note("volume-forced", record, head=str(heir.head.id))
        return record

    async def _check_fences(self, record: VolumeRecord) -> None:
        """Raise the fences of an old store's volume to the epoch in which it goes on, and refuse one that a sled has
        passed: there no head could write, and the store would not know why. Sleds that are away are not waited for.

        The epoch is signed for a key that the authority draws and forgets, to read: if the record is not put after it,
        the volume stays frozen, and what it goes on in is higher (F4)."""
        if not isinstance(self._fencer, FenceReader):
            return
        found = await self._fencer.passed(record)
        # An epoch above which nothing can go on is no reason to stay: only a sled that lies has it.
        passed = {sled: epoch for sled, epoch in found.items() if epoch < transitions.EPOCH_MAX}
        if passed:
            sleds = ", ".join(f"{sled} has epoch {epoch}" for sled, epoch in passed.items())
            raise RequestRefused(
                f"sleds were given higher epochs since this store was copied: {sleds}; recover with epoch"
                f" {max(passed.values())}"
            )

    def _log_of(self, head: HeadRecord, record: VolumeRecord, *, any_log: bool) -> Member:
        """The log of a volume that a live head has. The only member's is chosen without naming it, unless `any_log` or
        it has lost committed records. Raises Conflict."""
        log = self._engine(head.id, record.volume).get("log_id")
        if not self._reports.is_live(head.id) or not isinstance(log, str):
            raise Conflict(f"head {head.name} does not report a log of volume {record.name}; is it running?")
        member = Member(head.id, UUID(log))
        whole = not any_log and not self._engine(head.id, record.volume).get("missing")
        if record.current == (member,) and whole:
            raise Conflict(
                f"head {head.name} is a member of volume {record.name} and has all that was acknowledged: recover the"
                " volume without naming a head"
            )
        return member

    def _loss(self, head: HeadRecord, record: VolumeRecord) -> str:
        """What an operator should know before a head that is no member goes on alone, from the reports there are."""
        kept = self._engine(head.id, record.volume)
        ends = f"its log ends at operation {kept.get('tail')} of epoch {kept.get('epoch')}"
        if record.member(head.id) is None:
            after = "every write that was acknowledged after it had left is lost"
            parts = [f"head {head.name} is no member of volume {record.name}: {ends}, and {after}"]
        else:
            parts = [f"head {head.name} goes on alone: {ends}, and every write that only another log has is lost"]
        if missing := kept.get("missing"):
            parts.append(f"{missing} committed operations are gone from its own log")
        for member in record.current:
            if member.head == head.id:
                continue
            report = self._reports.report(member.head)
            engine = self._engine(member.head, record.volume)
            if report is not None and "committed" in engine:
                age_s = (self._env.clock.boottime_ns() - report.received_ns) // (1000 * NS_PER_MS)
                parts.append(
                    f"member {member.head} last reported operation {engine['committed']} as committed, {age_s} s ago"
                )
            else:
                parts.append(f"what member {member.head} had is not known here")
        parts.append(
            "older blocks whose place on the sleds was used again since cannot be read; the log of a head that has"
            " more is set aside, not removed, when that head is back"
        )
        return "; ".join(parts)

    def _engine(self, head: UUID, volume: UUID) -> Mapping[str, Any]:
        """What a head last said about its log of a volume."""
        report = self._reports.report(head)
        said: Any = {} if report is None else report.status
        for key in ("volumes", str(volume), "engine"):
            said = said.get(key) if isinstance(said, Mapping) else None
        return said if isinstance(said, Mapping) else {}

    async def _freeze(
        self,
        found: Versioned[VolumeRecord],
        reason: str,
        epoch_seen: int,
        versions_skipped: int = 0,
        logs: Sequence[LogEnd] = (),
        compare_also: Mapping[str, int] | None = None,
        *,
        old_store: bool = False,
    ) -> VolumeRecord:
        volume = found.value.volume
        notice = await self._ledger.json(freeze_key(volume))
        before, seen, shown = found.value.state.value, epoch_seen, [end.to_json() for end in logs]
        if notice is not None:
            before, seen = notice.value["before"], max(seen, int(notice.value["epoch_seen"]))
            old_store = old_store or bool(notice.value.get("old_store"))
            if kept := notice.value.get("logs"):
                # Whatever else stops the volume: an operator still has to choose, and has to read between what.
                reason, shown = notice.value["reason"], kept
        already = found.value.state is VolumeState.FROZEN
        stands = already and not versions_skipped
        record = found.value if stands else transitions.freeze(found.value, versions_skipped)
        try:
            await self._ledger.commit(
                compare={
                    volume_key(volume): found.revision,
                    freeze_key(volume): revision_of(notice),
                    **(compare_also or {}),
                },
                put={
                    volume_key(volume): record.to_json(),
                    freeze_key(volume): {
                        "reason": reason,
                        "epoch_seen": seen,
                        "before": before,
                        "logs": shown,
                        "old_store": old_store,
                    },
                },
            )
        finally:
            if not already:
                # Nothing is signed for the volume from now on, if it was frozen; whether it was may be unknown yet.
                self._frozen_ns[volume] = self._env.clock.boottime_ns()
        return record

    def _note(self, kind: str, record: VolumeRecord, **fields: object) -> None:
        _log.warning("event=%s volume=%s epoch=%d version=%d", kind, record.volume, record.epoch, record.version)
        self._reports.add_event(kind, volume=str(record.volume), epoch=record.epoch, version=record.version, **fields)


def _check_assigned(record: VolumeRecord, head: UUID) -> None:
    """Raises NotEligible."""
    if not record.assigned(head):
        raise NotEligible(f"head {head} is not assigned to volume {record.volume}")
