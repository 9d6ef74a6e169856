"""What happens to volumes: one durable compare-and-put per change, and credentials only after it (F4).

Every attempt reads the record and the requester's enrolment, decides by `transitions`, and commits comparing both;
losing a race means deciding again on what is there now. Revoking a head therefore cannot miss a change by it.
"""

import enum
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority import holders, placement, transitions
from head_node.authority.errors import Conflict, NotFound, RequestRefused, Unplaceable
from head_node.authority.issue_time import IssueTime
from head_node.authority.keyring import Keyring
from head_node.authority.ledger import (
    HORIZON_KEY,
    PLACEMENT_KEY,
    Ledger,
    Versioned,
    claim_hash,
    claim_key,
    cleanup_key,
    freeze_key,
    head_key,
    name_key,
    revision_of,
    secrets_key,
    unfenced_key,
    volume_key,
)
from head_node.authority.reports import Reports
from head_node.authority.retirement import Retirements
from head_node.store.interface import ABSENT
from head_node.store.records import (
    BLOCK_BYTES,
    VOLUME_BYTES_MAX,
    Cleanup,
    Column,
    HeadRecord,
    LostRange,
    Member,
    NbdExport,
    Unfenced,
    VolumeRecord,
    VolumeState,
    column_blocks,
)
from head_node.volume.geometry import Geometry
from sled_controller.credential import ALL_RIGHTS, Credential, Rights
from sled_controller.environment import Environment

VOLUMES_MAX = 4096


class Unchanged(enum.Enum):
    """Stands for a setting that stays as it is, where None is a value."""

    UNCHANGED = enum.auto()


_log = logging.getLogger(__name__)


class Volumes:
    """Creates, changes and deletes volume records, and signs the credentials that go with them."""

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        reports: Reports,
        issue: IssueTime,
        env: Environment,
        *,
        term_ms: int,
        heads_per_volume: int,
        geometry: Geometry,
        retirements: Retirements,
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._reports = reports
        self._issue = issue
        self._env = env
        self._term_ms = term_ms
        self._heads_per_volume = heads_per_volume
        self._geometry = geometry
        self._retirements = retirements

    async def create(
        self,
        name: str,
        size_bytes: int,
        hosts: Sequence[str] = (),
        min_current: int = 1,
        *,
        exposed_stripes: bool = True,
        read_wait_s: int | None = None,
        nbd: NbdExport = NbdExport.ON,
        nvme: bool = True,
    ) -> VolumeRecord:
        """Place a new volume that `hosts` may connect to by NVMe/TCP, served only while `min_current` heads have every
        acknowledged write (D1). The others say what it does while sleds are away, and by what clients reach it.

        Raises Conflict (name in use), Unplaceable, RequestRefused.
        """
        if not 1 <= min_current <= self._heads_per_volume:
            raise RequestRefused(
                f"min_members must be from 1 to {self._heads_per_volume}, the heads that a volume is given here"
            )
        if size_bytes % BLOCK_BYTES or not BLOCK_BYTES <= size_bytes <= VOLUME_BYTES_MAX:
            raise RequestRefused(f"size_bytes must be a multiple of {BLOCK_BYTES} from that to {VOLUME_BYTES_MAX}")
        volume = self._env.new_uuid()

        async def attempt() -> VolumeRecord:
            turn = await self._ledger.json(PLACEMENT_KEY)
            if await self._ledger.json(name_key("volume", name)) is not None:
                raise Conflict(f"there is a volume {name} already")
            rack = await self._ledger.rack()
            if len(rack.volumes) >= VOLUMES_MAX:
                raise Unplaceable(f"a rack has at most {VOLUMES_MAX} volumes")
            heads = [head.value for head in rack.heads.values() if not head.value.revoked]
            volumes = [volume.value for volume in rack.volumes.values()]
            sleds = [sled.value for sled in rack.sleds.values()]
            geometry = self._geometry
            record = VolumeRecord(
                volume=volume,
                name=name,
                size_bytes=size_bytes,
                geometry=geometry,
                heads=placement.place_heads(heads, volumes, self._reports.is_live, self._heads_per_volume),
                sleds=placement.place_columns(
                    sleds,
                    volumes,
                    self._reports.sled_reachable,
                    size_bytes,
                    geometry,
                    [cleanup.value for cleanup in rack.cleanups.values()],
                ),
                min_current=min_current,
                nbd=nbd,
                nvme=nvme,
            )
            record = replace(transitions.set_sled_policy(record, exposed_stripes, read_wait_s), version=record.version)
            for nqn in hosts:
                record = replace(transitions.admit_host(record, nqn), version=record.version)
            # The turn also stands against a revocation of a head that was just chosen.
            compare = {name_key("volume", name): ABSENT, PLACEMENT_KEY: revision_of(turn)}
            put = {volume_key(volume): record.to_json(), name_key("volume", name): str(volume), PLACEMENT_KEY: name}
            await self._ledger.commit(compare=compare, put=put)
            return record

        record = await self._ledger.until_settled(attempt)
        self._note("volume-created", record, name=name, size_bytes=size_bytes)
        return record

    async def find(self, name_or_id: str) -> VolumeRecord:
        """The volume of that id or name; raises NotFound."""
        try:
            return (await self._ledger.volume(UUID(name_or_id))).value
        except ValueError:
            found = await self._ledger.json(name_key("volume", name_or_id))
        if found is None:
            raise NotFound(f"there is no volume {name_or_id}")
        return (await self._ledger.volume(UUID(found.value))).value

    async def takeover(
        self, head: UUID, volume: UUID, *, expected_version: int, log: UUID, claim: str, in_doubt: bool
    ) -> tuple[VolumeRecord, bytes]:
        """Give `head` the next epoch in one transaction, then sign its credential (F4).

        `claim` names this very request: who does not get the answer does not know that it won, and can do nothing
        with the epoch. Raises RecordChanged, NotEligible, Frozen, NotFound.
        """

        async def attempt() -> tuple[VolumeRecord, bytes]:
            requester = await self._ledger.enrolled(head)
            found = await self._ledger.volume(volume)
            record = transitions.take_over(found.value, head, log, expected_version, in_doubt=in_doubt)
            (await self._keyring.current()).signer(self._issue.now_ms(), record.epoch)
            held, horizon = await self._ledger.json(claim_key(volume)), await self._ledger.horizon_ms()
            over_ms, now_ms = 0 if horizon is None else horizon.value, self._issue.now_ms()
            former = holders.former_of(None if held is None else held.value, head, over_ms, now_ms)
            given = {"epoch": record.epoch, "sha256": claim_hash(claim), "head": str(head), "former": former}
            compare = {HORIZON_KEY: revision_of(horizon)}
            await self._put(found, record, requester, {claim_key(volume): given}, compare)
            return record, requester.value.public_key

        record, public_key = await self._ledger.until_settled(attempt)
        credential = await self._sign(volume, record.epoch, public_key, _sleds_of(record), blocks=_blocks_of(record))
        await self._ledger.enrolled(head)  # else it must not leave
        self._note("takeover", record, head=str(head), in_doubt=in_doubt)
        return record, credential

    async def change_members(
        self,
        head: UUID,
        volume: UUID,
        *,
        epoch: int,
        expected_version: int,
        claim: str,
        add: Member | None,
        remove: Member | None,
        lost: bool,
    ) -> VolumeRecord:
        """Raises RecordChanged, NotEligible, Frozen, NotFound."""

        def change(record: VolumeRecord) -> VolumeRecord:
            return transitions.change_members(record, head, epoch, expected_version, add=add, remove=remove, lost=lost)

        record = await self._change_as_primary(head, volume, epoch, claim, change)
        self._note("members-changed", record, current=[member.to_json() for member in record.current])
        return record

    async def set_columns(
        self, head: UUID, volume: UUID, *, epoch: int, expected_version: int, claim: str, columns: Sequence[Column]
    ) -> VolumeRecord:
        """Raises RecordChanged, NotEligible, Frozen, NotFound, RequestRefused, Conflict."""
        sleds = frozenset((await self._ledger.rack()).sleds)

        def change(record: VolumeRecord) -> VolumeRecord:
            return transitions.set_columns(record, head, epoch, expected_version, columns, sleds)

        record = await self._change_as_primary(head, volume, epoch, claim, change)
        self._note("columns-set", record, columns=len(record.columns))
        return record

    async def set_sled_policy(
        self, volume: UUID, *, exposed_stripes: bool | None, read_wait_s: int | Unchanged | None
    ) -> VolumeRecord:
        """Say what the volume does while sleds are away; its primary obeys within moments. Raises NotFound,
        RequestRefused."""

        def change(record: VolumeRecord) -> VolumeRecord:
            return transitions.set_sled_policy(
                record,
                record.exposed_stripes if exposed_stripes is None else exposed_stripes,
                record.read_wait_s if isinstance(read_wait_s, Unchanged) else read_wait_s,
            )

        return await self._change_as_operator("sled-policy-set", volume, change)

    async def declare_lost(self, volume: UUID, lost: LostRange) -> VolumeRecord:
        """Ask the primary to declare blocks lost that cannot be read. Raises NotFound, RequestRefused, Conflict,
        Frozen."""
        return await self._change_as_operator(
            "blocks-lost-asked", volume, lambda record: transitions.declare_lost(record, lost)
        )

    async def lost_declared(
        self, head: UUID, volume: UUID, *, epoch: int, expected_version: int, claim: str, lost: LostRange
    ) -> VolumeRecord:
        """The primary has done so. Raises RecordChanged, NotEligible, Frozen, NotFound."""

        def change(record: VolumeRecord) -> VolumeRecord:
            return transitions.lost_declared(record, head, epoch, expected_version, lost)

        record = await self._change_as_primary(head, volume, epoch, claim, change)
        self._note("blocks-lost-declared", record, **lost.to_json())
        return record

    async def _change_as_operator(
        self, kind: str, volume: UUID, change: Callable[[VolumeRecord], VolumeRecord]
    ) -> VolumeRecord:
        async def attempt() -> VolumeRecord:
            found = await self._ledger.volume(volume)
            record = change(found.value)
            if record is not found.value:
                key = volume_key(volume)
                await self._ledger.commit(compare={key: found.revision}, put={key: record.to_json()})
            return record

        record = await self._ledger.until_settled(attempt)
        self._note(kind, record)
        return record

    async def renew(self, head: UUID, volume: UUID, *, epoch: int, claim: str) -> bytes:
        """A credential of the same epoch with a new term. Raises NotEligible, Frozen, NotFound."""

        async def check() -> tuple[VolumeRecord, bytes]:
            requester = await self._ledger.enrolled(head)
            found = await self._ledger.volume(volume)
            transitions.check_renewal(found.value, head, epoch)
            await self._ledger.check_claim(volume, epoch, claim)
            return found.value, requester.value.public_key

        record, public_key = await check()
        credential = await self._sign(volume, epoch, public_key, _sleds_of(record), blocks=_blocks_of(record))
        await check()  # what was taken away while it was signed: it must not leave
        return credential

    async def delete(self, volume: UUID) -> VolumeRecord | None:
        """Mark the volume; its primary does the rest. None when no member is left to do so and it is gone at once; then
        the authority deletes its namespaces itself."""

        async def attempt() -> VolumeRecord | None:
            found = await self._ledger.volume(volume)
            record = transitions.delete(found.value)
            if not found.value.current:
                await self._drop(found, _sleds_of(found.value))
                return None
            if record is not found.value:
                await self._ledger.commit(
                    compare={volume_key(volume): found.revision}, put={volume_key(volume): record.to_json()}
                )
            return record

        record = await self._ledger.until_settled(attempt)
        self._reports.add_event("volume-deleted" if record is None else "volume-deleting", volume=str(volume))
        return record

    async def confirm_deleted(
        self, head: UUID, volume: UUID, *, epoch: int, claim: str, strays: Collection[UUID]
    ) -> None:
        """Drop the record: its namespaces are gone but for those on `strays`. Raises NotEligible, NotFound."""

        async def attempt() -> None:
            requester = await self._ledger.enrolled(head)
            found = await self._ledger.volume(volume)
            transitions.check_deleted(found.value, head, epoch)
            await self._ledger.check_claim(volume, epoch, claim)
            strayed = [sled for sled in _sleds_of(found.value) if sled in strays]
            await self._drop(found, strayed, {head_key(head): requester.revision})

        await self._ledger.until_settled(attempt)
        self._reports.add_event("volume-deleted", volume=str(volume), epoch=epoch)
        _log.info("event=volume-deleted volume=%s epoch=%d", volume, epoch)

    async def withdraw(self, volume: UUID, head: UUID) -> VolumeRecord | None:
        """Take a revoked head off one volume, with a new epoch if it was primary; None if it had no part in it. The
        same commit notes on which sleds it may still write."""

        async def attempt() -> VolumeRecord | None:
            rack = await self._ledger.rack()
            found = rack.volumes.get(volume)
            if found is None:
                return None
            others = placement.substitutes(
                {key: entry.value for key, entry in rack.heads.items()},
                [entry.value for entry in rack.volumes.values()],
                head,
            )
            record = transitions.revoke(found.value, head, others)
            if record is not None and record.state is VolumeState.DELETING and not record.current:
                # The last who could have deleted its namespaces is gone.
                await self._drop(Versioned(record, found.revision), _sleds_of(record))
                return record
            put = {} if record is None else {volume_key(volume): record.to_json()}
            compare = {volume_key(volume): found.revision}
            await self._note_unfenced(record or found.value, head, compare, put)
            if put:
                await self._ledger.commit(compare=compare, put=put)
            return record

        record = await self._ledger.until_settled(attempt)
        if record is not None:
            self._note("head-withdrawn", record, head=str(head))
        return record

    async def _note_unfenced(
        self, record: VolumeRecord, head: UUID, compare: dict[str, int], put: dict[str, Any]
    ) -> None:  # fmt: skip
        """Add to a commit where the head's credentials that have not expired may still be good."""
        claim, horizon = await self._ledger.json(claim_key(record.volume)), await self._ledger.horizon_ms()
        if claim is None or horizon is None:
            return
        held = holders.holding_of(claim.value, head, horizon.value, self._issue.now_ms())
        if held is None:
            return
        known = await self._ledger.unfenced_of(record.volume, head)
        above = record.epoch if claim.value["epoch"] < record.epoch else 0
        if known is not None and known.value.above > held.epoch:
            above = known.value.above
        key = unfenced_key(record.volume, head)
        compare[key] = revision_of(known)
        put[key] = Unfenced(
            record.volume, head, held.epoch, above, held.end_ms, tuple(_sleds_of(record))
        ).to_json()  # fmt: skip

    async def held_by(self, head: UUID) -> list[UUID]:
        """Volumes of which a head may hold a credential that has not expired."""
        horizon, now_ms = await self._ledger.horizon_ms(), self._issue.now_ms()
        end_ms = 0 if horizon is None else horizon.value
        claims = await self._ledger.json_list(claim_key(""))
        return [UUID(key) for key, claim in claims.items() if holders.holding_of(claim.value, head, end_ms, now_ms)]

    async def take_epoch_above(self, volume: UUID, head: UUID) -> Unfenced | None:
        """Give a volume an epoch that no head is given, above that of a revoked one, so that it can be fenced off where
        no newer primary has attached; the primary of now takes the one after it. None when there is nothing to do."""

        async def attempt() -> tuple[Unfenced | None, VolumeRecord | None]:
            found, noted = await self._ledger.volume(volume), await self._ledger.unfenced_of(volume, head)
            claim = await self._ledger.json(claim_key(volume))
            if noted is None or noted.value.above:
                return (None if noted is None else noted.value), None
            # Without a claim the store is a backup's: its epoch is nobody's once the volume is recovered, not before.
            if claim is None and found.value.state is VolumeState.FROZEN:
                return None, None
            record = None
            if claim is not None and claim.value["epoch"] == found.value.epoch:
                record = transitions.pass_epoch(found.value)
            raised = replace(noted.value, above=(record or found.value).epoch)
            compare = {volume_key(volume): found.revision, unfenced_key(volume, head): noted.revision}
            put = {unfenced_key(volume, head): raised.to_json()}
            if record is not None:
                put[volume_key(volume)] = record.to_json()
            await self._ledger.commit(compare=compare, put=put)
            return raised, record

        raised, record = await self._ledger.until_settled(attempt)
        if record is not None:
            self._note("epoch-passed", record, head=str(head))
        return raised

    async def fill_heads(self) -> None:
        """Assign heads to volumes that have fewer than they should, as after an enrolment."""
        for volume, entry in (await self._ledger.rack()).volumes.items():
            if len(entry.value.heads) < self._heads_per_volume:
                await self._fill_one(volume)

    async def sign_for(
        self, volume: UUID, epoch: int, public_key: bytes, rights: Rights, sleds: Collection[UUID] | None = None
    ) -> bytes:
        """A credential for another holder than a head, that of a visit of the authority's own. It takes no space, and
        counts on `sleds` (None: on those of the volume's record). Raises NotFound."""
        places = _sleds_of((await self._ledger.volume(volume)).value) if sleds is None else sleds
        return await self._sign(volume, epoch, public_key, places, rights)

    async def _fill_one(self, volume: UUID) -> None:
        async def attempt() -> None:
            rack = await self._ledger.rack()
            found = rack.volumes.get(volume)
            if found is None:
                return
            others = placement.substitutes(
                {key: entry.value for key, entry in rack.heads.items()},
                [entry.value for entry in rack.volumes.values()],
                UUID(int=0),
            )
            missing = self._heads_per_volume - len(found.value.heads)
            fresh = tuple(head for head in others if head not in found.value.heads)[: max(missing, 0)]
            if fresh:
                record = replace(found.value, heads=(*found.value.heads, *fresh), version=found.value.version + 1)
                compare = {volume_key(volume): found.revision}
                compare |= {head_key(head): rack.heads[head].revision for head in fresh}
                await self._ledger.commit(compare=compare, put={volume_key(volume): record.to_json()})

        await self._ledger.until_settled(attempt)

    async def _change_as_primary(
        self,
        head: UUID,
        volume: UUID,
        epoch: int,
        claim: str,
        change: Callable[[VolumeRecord], VolumeRecord],
    ) -> VolumeRecord:
        async def attempt() -> VolumeRecord:
            requester = await self._ledger.enrolled(head)
            found = await self._ledger.volume(volume)
            record = change(found.value)
            await self._ledger.check_claim(volume, epoch, claim)
            if record is not found.value:
                await self._put(found, record, requester, {}, {})
            return record

        return await self._ledger.until_settled(attempt)

    async def _put(
        self,
        found: Versioned[VolumeRecord],
        record: VolumeRecord,
        requester: Versioned[HeadRecord],
        also: Mapping[str, Any],
        compare_also: Mapping[str, int],
    ) -> None:
        key = volume_key(record.volume)
        compare = {key: found.revision, head_key(requester.value.id): requester.revision, **compare_also}
        await self._ledger.commit(compare=compare, put={key: record.to_json(), **also})

    async def _drop(
        self, found: Versioned[VolumeRecord], strays: Collection[UUID], compare_also: Mapping[str, int] | None = None
    ) -> None:
        """The record goes; what may be left of the volume is named by the same commit."""
        record, volume = found.value, found.value.volume
        heads = dict.fromkeys([*record.heads, *(member.head for member in record.current)])
        blocks = column_blocks(record.size_bytes, record.geometry)
        left = tuple(strays) if record.epoch else ()  # without an epoch no head could have made a namespace
        cleanup = Cleanup(volume, record.name, record.epoch, blocks, left, tuple(heads))
        compare = {volume_key(volume): found.revision, **(compare_also or {})}
        put: dict[str, Any] = {PLACEMENT_KEY: str(volume), cleanup_key(volume): cleanup.to_json()}
        await self._retirements.tombstone(record, compare, put)
        await self._ledger.commit(
            compare=compare,
            put=put,
            delete=[
                volume_key(volume), name_key("volume", found.value.name), claim_key(volume), freeze_key(volume),
                secrets_key(volume),
            ],
        )  # fmt: skip

    async def _sign(
        self,
        volume: UUID,
        epoch: int,
        public_key: bytes,
        sleds: Collection[UUID],
        rights: Rights = ALL_RIGHTS,
        *,
        blocks: int = 0,
    ) -> bytes:
        """A credential; with `blocks`, for one namespace of that size on each sled."""
        now_ms = await self._issue.stamp()
        key = (await self._keyring.current()).signer(now_ms, epoch)
        credential = Credential(
            key_id=key.key_id,
            volume=volume,
            head_key=public_key,
            epoch=epoch,
            rights=rights,
            issued_ms=now_ms,
            expires_ms=now_ms + self._term_ms,
            serial=int.from_bytes(self._env.entropy.bytes(8), "big"),
            blocks=blocks,
            namespaces=1 if blocks else 0,
            sleds=tuple(sleds),
        )
        await self._retirements.cover(credential.expires_ms)
        signed = credential.sign(Ed25519PrivateKey.from_private_bytes(key.private))
        await self._retirements.note_signed(volume, epoch)
        return signed

    def _note(self, kind: str, record: VolumeRecord, **fields: object) -> None:
        _log.info("event=%s volume=%s epoch=%d version=%d", kind, record.volume, record.epoch, record.version)
        self._reports.add_event(kind, volume=str(record.volume), epoch=record.epoch, version=record.version, **fields)


def _blocks_of(record: VolumeRecord) -> int:
    """How much of a sled a volume needs: its columns are on different sleds, so one namespace."""
    return column_blocks(record.size_bytes, record.geometry)


def _sleds_of(record: VolumeRecord) -> list[UUID]:
    """Wherever a volume may have a namespace: one may be made before the record names it."""
    return list(dict.fromkeys([*record.sleds, *(column.sled for column in record.columns)]))
