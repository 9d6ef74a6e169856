"""Who belongs to the rack: heads by join token and key, sleds by the operator's word, and how a head is put out."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import UUID

from head_node.authority import joining
from head_node.authority.errors import Conflict, EnrolmentRefused, NotFound, RequestRefused
from head_node.authority.key_push import KeySetCarrier
from head_node.authority.ledger import (
    PLACEMENT_KEY,
    Ledger,
    Versioned,
    head_key,
    identity_key,
    name_key,
    number_key,
    revision_of,
    revoking_key,
    sled_key,
    token_key,
)
from head_node.authority.reports import Reports
from head_node.authority.retirement import Retirer
from head_node.authority.surplus import SledVisitor, Surplus
from head_node.authority.unfenced import UnfencedSleds, VolumeFencer
from head_node.authority.volumes import Volumes
from head_node.host_names import HostMalformed, checked_host
from head_node.store.errors import CompareFailed
from head_node.store.records import Address, Cleanup, HeadRecord, SledRecord, VolumeRecord
from sled_controller.environment import Environment, civil_ms
from sled_controller.sled_start import SledStart

HEADS_MAX = 64
SLEDS_MAX = 512
TOKENS_MAX = 256
KEY_BYTES = 32

_log = logging.getLogger(__name__)


class Fencer(Retirer, KeySetCarrier, SledVisitor, VolumeFencer, Protocol):
    """What the authority does at a volume's sleds itself, without waiting for a head."""

    async def start_of(self, sled: SledRecord) -> SledStart | str:
        """Which start of a sled answers, as the sled has signed it, or why none does."""

    async def sled_times(self, record: VolumeRecord) -> list[int]:
        """What time it is for each sled that answers (Unix milliseconds)."""

    async def state_time(
        self, sled: SledRecord, statement: Callable[[int], Awaitable[bytes]] | None
    ) -> tuple[int, str]:
        """Bring a sled the statement of time that is made for its boot counter, if one is given; the sled's time
        before, Unix milliseconds, 0 if unknown, and `taken`, or why not."""

    async def clean(self, cleanup: Cleanup, sled: UUID, next_epoch: Callable[[int], Awaitable[int]]) -> str:
        """Delete what is left of a volume on one sled: `cleaned`, or why not. `next_epoch` is asked for an epoch above
        its argument once the sled answers."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation did. `fences` by volume of which the head may hold a credential that has not expired, and by
    sled: `fenced`, or why not yet; that is tried again until it is. `orphaned` volumes have no member left."""

    head: HeadRecord
    changed: tuple[VolumeRecord, ...]
    fences: Mapping[UUID, Mapping[UUID, str]]

    @property
    def orphaned(self) -> tuple[UUID, ...]:
        return tuple(record.volume for record in self.changed if record.epoch and not record.current)


class Nodes:
    """Enrols, lists and revokes."""

    def __init__(
        self,
        ledger: Ledger,
        volumes: Volumes,
        reports: Reports,
        env: Environment,
        *,
        root_public: bytes,
        unfenced: UnfencedSleds,
        surplus: Surplus,
    ) -> None:
        self._ledger = ledger
        self._volumes = volumes
        self._reports = reports
        self._env = env
        self._root_public = root_public
        self._unfenced = unfenced
        self._all_withdrawn = -1
        """The revision at which no record named a revoked head."""
        self._surplus = surplus

    async def new_token(self, uses: int, term_ms: int, authority_ca: bytes | None = None) -> tuple[str, dict[str, Any]]:
        """Make a join token for `uses` heads within `term_ms`; its text is shown only here. `authority_ca`: SHA-256 of
        the certificate that heads are to pin."""
        tokens = await self._ledger.json_list("token/")
        now_ms = civil_ms(self._env.clock)
        # Spent ones stay as long as there is room: a head that restarts enrols with its token once more.
        spent = [name for name, token in tokens.items() if not _usable(token.value, now_ms)]
        delete = [token_key(name) for name in spent[:64]] if len(tokens) >= TOKENS_MAX else []
        if len(tokens) - len(delete) >= TOKENS_MAX:
            raise Conflict(f"{TOKENS_MAX} join tokens are open; delete some")
        token_id, seed = self._env.entropy.bytes(8).hex(), self._env.entropy.bytes(32)
        kept = {
            "id": token_id,
            "verifier": joining.verifier_of(seed).hex(),
            "uses_left": uses,
            "expires_ms": now_ms + term_ms,
            "heads": [],
        }
        await self._ledger.commit(compare={}, put={token_key(token_id): kept}, delete=delete)
        return joining.token_text(token_id, seed, self._root_public, authority_ca), kept

    async def tokens(self) -> list[dict[str, Any]]:
        """Open and spent tokens."""
        return [token.value for token in (await self._ledger.json_list("token/")).values()]

    async def close_expired_tokens(self) -> None:
        """A token whose time was over once stays closed, even if the clock is set back."""
        now_ms = self._env.clock.wall_ms()
        for name, token in (await self._ledger.json_list("token/")).items():
            if token.value["uses_left"] > 0 and token.value["expires_ms"] <= now_ms:
                closed = {token_key(name): token.value | {"uses_left": 0}}
                with contextlib.suppress(CompareFailed):
                    await self._ledger.commit(compare={token_key(name): token.revision}, put=closed)

    async def delete_token(self, token_id: str) -> None:
        """Raises NotFound."""
        if await self._ledger.json(token_key(token_id)) is None:
            raise NotFound(f"there is no join token {token_id}")
        await self._ledger.commit(compare={}, put={}, delete=[token_key(token_id)])

    async def drop_tokens(self) -> None:
        """The store is a backup's: it does not know which tokens were deleted since."""
        for name in await self._ledger.json_list("token/"):
            await self._ledger.commit(compare={}, put={}, delete=[token_key(name)])

    async def check_proof(self, head: UUID, public_key: bytes, token_id: str, proof: bytes) -> Versioned[Any]:
        """The token with which `proof` was made for this head and key; raises EnrolmentRefused."""
        token = await self._ledger.json(token_key(token_id))
        verifier = b"" if token is None else bytes.fromhex(token.value["verifier"])
        if token is None or not joining.check(verifier, proof, self._root_public, token_id, head, public_key):
            raise EnrolmentRefused("the join token is unknown, or another one than it says")
        return token

    async def enrol_head(
        self,
        head: UUID,
        name: str,
        public_key: bytes,
        addresses: Mapping[str, Address],
        token_id: str,
        proof: bytes,
    ) -> HeadRecord:
        """Enrol a head that has proved to hold its key.

        A head that is enrolled already only updates name and addresses, and spends no use of the token.
        Raises EnrolmentRefused, Conflict.
        """

        async def attempt() -> HeadRecord:
            token = await self.check_proof(head, public_key, token_id, proof)
            found = await self._ledger.head(head)
            if found is not None and (found.value.revoked or found.value.public_key != public_key):
                raise EnrolmentRefused(f"head {head} is revoked, or enrolled with another key")
            compare = {head_key(head): revision_of(found)}
            put: dict[str, Any] = {}
            delete: list[str] = []
            if found is None:
                now_ms = civil_ms(self._env.clock)
                if not _usable(token.value, now_ms):
                    raise EnrolmentRefused("the join token is spent or expired; ask the operator for another one")
                await self._check_room(head_key(head), HEADS_MAX)
                number = await self._reserve_number(head, compare, put)
                record = HeadRecord(head, name, public_key, dict(addresses), now_ms, number=number)
                compare[token_key(token_id)] = token.revision
                put[token_key(token_id)] = token.value | {
                    "uses_left": token.value["uses_left"] - 1,
                    "heads": [*token.value["heads"], str(head)],
                }
                await self._reserve(identity_key(public_key), str(head), compare, put, "its public key")
            else:
                record = replace(found.value, name=name, addresses=dict(addresses))
                if token.value["uses_left"] > 0 and str(head) not in token.value["heads"]:
                    # It has uses that this head could take as another one: its revocation has to find it.
                    compare[token_key(token_id)] = token.revision
                    put[token_key(token_id)] = token.value | {"heads": [*token.value["heads"], str(head)]}
            if found is None or found.value.name != name:
                await self._reserve(name_key("head", name), str(head), compare, put, f"the name {name}")
                if found is not None:
                    delete.append(name_key("head", found.value.name))
            put[head_key(head)] = record.to_json()
            await self._ledger.commit(compare=compare, put=put, delete=delete)
            return record

        record = await self._ledger.until_settled(attempt)
        _log.info("event=head-enrolled head=%s name=%s", head, name)
        self._reports.add_event("head-enrolled", head=str(head), name=name, join_token=token_id)
        await self._volumes.fill_heads()
        return record

    async def announce(self, head: UUID, addresses: Mapping[str, Address]) -> HeadRecord:
        """Note where an enrolled head listens now."""

        async def attempt() -> HeadRecord:
            found = await self._ledger.enrolled(head)
            record = replace(found.value, addresses=dict(addresses))
            compare = {head_key(head): found.revision}
            put: dict[str, Any] = {}
            if not record.number:
                record = replace(record, number=await self._reserve_number(head, compare, put))
            if record != found.value:
                await self._ledger.commit(compare=compare, put={**put, head_key(head): record.to_json()})
            return record

        return await self._ledger.until_settled(attempt)

    async def enrol_sled(
        self, sled: UUID, name: str, public_key: bytes, nqn: str, address: Address, capacity_blocks: int
    ) -> SledRecord:
        """Enrol a sled, or note its new address or capacity; key and NQN of an enrolled one never change."""

        async def attempt() -> SledRecord:
            data = await self._ledger.json(sled_key(sled))
            compare = {sled_key(sled): revision_of(data)}
            put: dict[str, Any] = {}
            delete: list[str] = []
            if data is None:
                await self._check_room(sled_key(sled), SLEDS_MAX)
                record = SledRecord(sled, name, public_key, nqn, address, capacity_blocks, civil_ms(self._env.clock))
                await self._reserve(identity_key(public_key), str(sled), compare, put, "its public key")
            else:
                old = SledRecord.from_json(data.value)
                if (old.public_key, old.nqn) != (public_key, nqn):
                    raise Conflict(f"sled {sled} is enrolled with another key or NQN")
                record = replace(old, name=name, address=address, capacity_blocks=capacity_blocks)
                if record == old:
                    return old
            if data is None or data.value["name"] != name:
                await self._reserve(name_key("sled", name), str(sled), compare, put, f"the name {name}")
                if data is not None:
                    delete.append(name_key("sled", data.value["name"]))
            put |= {sled_key(sled): record.to_json(), PLACEMENT_KEY: str(sled)}
            await self._ledger.commit(compare=compare, put=put, delete=delete)
            return record

        record = await self._ledger.until_settled(attempt)
        _log.info("event=sled-enrolled sled=%s name=%s address=%s:%d", sled, name, *address)
        self._reports.add_event("sled-enrolled", sled=str(sled), name=name)
        return record

    async def revoke_head(self, head: UUID) -> Revocation:
        """Unenrol a head, take a new epoch on the volumes that it was primary of, and fence it off now wherever it may
        hold a credential that has not expired; what cannot be done now is done as soon as it can (unfenced.py).

        Its requests are refused from the first commit on. Repeating a revocation that was cut short finishes it.
        """

        with self._unfenced.revocation(head):
            return await self._revoke(head)

    async def _revoke(self, head: UUID) -> Revocation:
        async def unenrol() -> HeadRecord:
            found = await self._ledger.head(head)
            if found is None:
                raise NotFound(f"there is no head {head}")
            record = replace(found.value, revoked=True)
            name = name_key("head", record.name)
            owner = await self._ledger.json(name)
            delete = [name] if owner is not None and owner.value == str(head) else []
            # A token that it came with may have uses left, and it knows the token: it could come back as another.
            tokens = await self._ledger.json_list("token/")
            delete += [token_key(token) for token, kept in tokens.items() if str(head) in kept.value["heads"]]
            compare = {head_key(head): found.revision, name: revision_of(owner)}
            put: dict[str, Any] = {
                head_key(head): record.to_json(), PLACEMENT_KEY: str(head), revoking_key(head): {}
            }  # fmt: skip
            await self._surplus.note(compare, put)
            await self._ledger.commit(
                compare=compare,
                put=put,
                delete=delete,
            )
            return record

        record = await self._ledger.until_settled(unenrol)
        self._reports.forget(head)
        _log.warning("event=head-revoked head=%s name=%s", head, record.name)
        self._reports.add_event("head-revoked", head=str(head), name=record.name)
        changed = [volume for volume in await self._volumes_of(head) if await self._volumes.withdraw(volume, head)]
        await self._ledger.commit(compare={}, put={}, delete=[revoking_key(head)])
        fences = await self._unfenced.fence(head)
        self._surplus.wake()
        after = (await self._ledger.rack("volume/")).volumes
        return Revocation(record, tuple(after[volume].value for volume in changed if volume in after), fences)

    async def finish_revocations(self) -> None:
        """Complete what a stop of the authority has cut short: no revoked head stays in a record."""
        begun = {UUID(head) for head in await self._ledger.json_list(revoking_key(""))}
        known = await self._ledger.rack("head/")
        if not begun and known.revision == self._all_withdrawn:
            return  # every record would be read for nothing
        if begun or any(entry.value.revoked for entry in known.heads.values()):
            rack = await self._ledger.rack()
            named = {head for entry in rack.volumes.values() for head in entry.value.heads}
            named |= {member.head for entry in rack.volumes.values() for member in entry.value.current}
            begun |= {head for head in named if head in rack.heads and rack.heads[head].value.revoked}
            for head in begun:
                if not self._unfenced.being_revoked(head):
                    await self.revoke_head(head)
            if not begun:
                self._all_withdrawn = rack.revision

    async def _volumes_of(self, head: UUID) -> list[UUID]:
        """Volumes whose records name a head, or of which it may hold a credential."""
        rack = await self._ledger.rack("volume/")
        held = await self._volumes.held_by(head)
        return [volume for volume, entry in rack.volumes.items() if entry.value.assigned(head) or volume in held]

    async def _check_room(self, key: str, maximum: int) -> None:
        kind = key.split("/")[1]
        rack = await self._ledger.rack()
        enrolled = [entry for entry in rack.heads.values() if not entry.value.revoked]
        count = len(enrolled) if kind == "head" else len(rack.sleds)
        if count >= maximum:
            raise Conflict(f"a rack has at most {maximum} {kind}s")

    async def _reserve_number(self, head: UUID, compare: dict[str, int], put: dict[str, Any]) -> int:
        """The lowest number that no head ever had; where there is none, that of a revoked one, whose hosts have had
        the longest time to forget its controllers."""
        heads = [entry.value for entry in (await self._ledger.rack()).heads.values()]
        taken = {other.number for other in heads if not other.revoked}
        former = {other.number for other in heads if other.revoked}
        revoked = {str(other.id) for other in heads if other.revoked}
        for number in sorted(range(1, HEADS_MAX + 1), key=lambda number: (number in former, number)):
            if number in taken:
                continue
            # Another head may have enrolled since the heads were read: what counts is the number's own key.
            owner = await self._ledger.json(number_key(number))
            if owner is None or owner.value == str(head) or owner.value in revoked:
                compare[number_key(number)] = revision_of(owner)
                put[number_key(number)] = str(head)
                return number
        raise Conflict(f"there are {HEADS_MAX} heads already")

    async def _reserve(self, key: str, owner: str, compare: dict[str, int], put: dict[str, Any], what: str) -> None:
        taken = await self._ledger.json(key)
        if taken is not None and taken.value != owner:
            raise Conflict(f"{what} belongs to {taken.value} already")
        compare[key] = revision_of(taken)
        put[key] = owner


def checked_address(address: Address) -> Address:
    """Where a node says it is: clients, other nodes and operators' shells get it. Raises RequestRefused."""
    host, port = address
    try:
        return checked_host(host), port
    except HostMalformed as error:
        raise RequestRefused(str(error)) from None


def parse_key(text: str) -> bytes:
    """A raw Ed25519 public key from hex; raises RequestRefused."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise RequestRefused("public_key is not hex") from None
    if len(key) != KEY_BYTES:
        raise RequestRefused(f"public_key has {len(key)} bytes, an Ed25519 key has {KEY_BYTES}")
    return key


def _usable(token: Mapping[str, Any], now_ms: int) -> bool:
    return int(token["uses_left"]) > 0 and int(token["expires_ms"]) > now_ms
