"""The store as the authority reads and writes it: typed records, and store errors turned into refusals.

The key layout is here and nowhere else. Nothing is kept between calls.
"""

import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from head_node.authority.errors import AuthorityUnavailable, NotEligible, NotFound, Unenrolled
from head_node.store.errors import CompareFailed, OutcomeUnknown, RecordMalformed, StoreFailed
from head_node.store.host_secrets import HostSecrets
from head_node.store.interface import ABSENT, Entry, Store
from head_node.store.records import Cleanup, HeadRecord, SledRecord, Unfenced, VolumeRecord

# Lost races before giving up; each means that somebody else's change was put.
ATTEMPTS_MAX = 32

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A value with the revision of its key, for comparing when it is replaced."""

    value: T
    revision: int


@dataclass(frozen=True, slots=True)
class Rack:
    """Everything enrolled and every volume, of one moment."""

    revision: int
    heads: dict[UUID, Versioned[HeadRecord]]
    sleds: dict[UUID, Versioned[SledRecord]]
    volumes: dict[UUID, Versioned[VolumeRecord]]
    secrets: dict[UUID, Versioned[HostSecrets]]
    cleanups: dict[UUID, Versioned[Cleanup]]


def volume_key(volume: UUID) -> str:
    return f"rack/volume/{volume}"


def head_key(head: UUID) -> str:
    return f"rack/head/{head}"


def sled_key(sled: UUID) -> str:
    return f"rack/sled/{sled}"


def secrets_key(volume: UUID) -> str:
    """What a volume's hosts have to know."""
    return f"rack/secrets/{volume}"


def cleanup_key(volume: UUID) -> str:
    """What may be left of a deleted volume."""
    return f"rack/cleanup/{volume}"


def name_key(kind: str, name: str) -> str:
    """The key that makes a name unique among its kind."""
    return f"name/{kind}/{name}"


def number_key(number: int) -> str:
    """The key that makes a head's number unique."""
    return f"number/{number}"


def identity_key(public_key: bytes) -> str:
    """The key that makes a node's public key unique."""
    return f"identity/{public_key.hex()}"


def claim_key(volume: UUID | str) -> str:
    """Which takeover request the volume's epoch was given to."""
    return f"claim/{volume}"


def claim_hash(claim: str) -> str:
    """What the store keeps of a claim (128 random bits, so that no hash has to be slow): enough to check it, not to
    act with it."""
    return hashlib.sha256(claim.encode()).hexdigest()


def unfenced_key(volume: UUID, head: UUID) -> str:
    """On which sleds a revoked head may still write to a volume."""
    return f"unfenced/{volume}/{head}"


def revoking_key(head: UUID | str) -> str:
    """The head's revocation has begun, and has not reached all its volumes."""
    return f"revoking/{head}"


def freeze_key(volume: UUID) -> str:
    """Why a volume is frozen, and what it was before."""
    return f"freeze/{volume}"


def tombstone_key(volume: UUID | str) -> str:
    """What is still to be done about a deleted volume."""
    return f"tombstone/{volume}"


def token_key(token_id: str) -> str:
    return f"token/{token_id}"


def operator_token_key(token_id: str) -> str:
    return f"operator-token/{token_id}"


KEYS_KEY = "keys"
# The key that signs replies to heads, with its certificate.
REPLY_KEY = "reply-key"
# Sleds on which a revoked head may have left more than its volumes need.
SURPLUS_KEY = "surplus"
# Sleds that have yet to take the newest key set, after one that took keys out at once.
KEYS_DUE_KEY = "keys-due"
ISSUED_KEY = "issued"
# The last statement of time, and the sleds that have not taken it yet.
TIME_KEY = "time-statement"
RACK_KEY = "rack-identity"
# Which operator token is the one that the authority made for itself.
OPERATOR_KEY = "operator"
# Every credential ever signed expires before this time, Unix milliseconds.
HORIZON_KEY = "horizon"
# Put by everything that changes what is placed where, so that two placements cannot miss each other.
PLACEMENT_KEY = "placement"


class Ledger:
    """Typed access to a `Store`; raises AuthorityUnavailable where the store fails."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def json(self, key: str) -> Versioned[Any] | None:
        """The JSON value at `key`."""
        return _decoded(await self._guard(self.store.get(key)), lambda data: data)

    async def json_list(self, prefix: str) -> dict[str, Versioned[Any]]:
        """JSON values by what follows `prefix` in their key."""
        snapshot = await self._guard(self.store.list(prefix))
        return {entry.key.removeprefix(prefix): Versioned(_parse(entry), entry.revision) for entry in snapshot.entries}

    async def volume(self, volume: UUID) -> Versioned[VolumeRecord]:
        """Raises NotFound."""
        found = _decoded(await self._guard(self.store.get(volume_key(volume))), VolumeRecord.from_json)
        if found is None:
            raise NotFound(f"there is no volume {volume}")
        return found

    async def check_claim(self, volume: UUID, epoch: int, claim: str) -> None:
        """Raises NotEligible unless `claim` names the request that the volume's epoch was given to."""
        found = await self.json(claim_key(volume))
        if (
            found is None
            or found.value["epoch"] != epoch
            or not hmac.compare_digest(found.value["sha256"], claim_hash(claim))
        ):
            raise NotEligible(f"epoch {epoch} of volume {volume} was not given to this process; take over first")

    async def head(self, head: UUID) -> Versioned[HeadRecord] | None:
        return _decoded(await self._guard(self.store.get(head_key(head))), HeadRecord.from_json)

    async def enrolled(self, head: UUID) -> Versioned[HeadRecord]:
        """Raises Unenrolled when the head is revoked, or not known. What a commit does for a head compares this."""
        found = await self.head(head)
        if found is None or found.value.revoked:
            raise Unenrolled(f"head {head} is not enrolled")
        return found

    async def host_secrets(self, volume: UUID) -> Versioned[HostSecrets] | None:
        return _decoded(await self._guard(self.store.get(secrets_key(volume))), HostSecrets.from_json)

    async def cleanup(self, volume: UUID) -> Versioned[Cleanup] | None:
        return _decoded(await self._guard(self.store.get(cleanup_key(volume))), Cleanup.from_json)

    async def unfenced(self) -> list[Unfenced]:
        """What every revoked head may still reach."""
        snapshot = await self._guard(self.store.list("unfenced/"))
        return [Unfenced.from_json(_parse(entry)) for entry in snapshot.entries]

    async def unfenced_of(self, volume: UUID, head: UUID) -> Versioned[Unfenced] | None:
        return _decoded(await self._guard(self.store.get(unfenced_key(volume, head))), Unfenced.from_json)

    async def horizon_ms(self) -> Versioned[int] | None:
        """Every credential ever signed expires before this time; None while none was."""
        return _decoded(await self._guard(self.store.get(HORIZON_KEY)), int)

    async def rack(self, kind: str = "") -> Rack:
        """One consistent look at all nodes and volumes, or at one kind only: `head/`, `sled/`, ...

        What looks again and again reads no volumes: thousands of records cost the loop hundreds of milliseconds.
        """
        snapshot = await self._guard(self.store.list(f"rack/{kind}"))
        rack = Rack(snapshot.revision, {}, {}, {}, {}, {})
        for entry in snapshot.entries:
            kind, data = entry.key.split("/")[1], _parse(entry)
            if kind == "head":
                head = HeadRecord.from_json(data)
                rack.heads[head.id] = Versioned(head, entry.revision)
            elif kind == "sled":
                sled = SledRecord.from_json(data)
                rack.sleds[sled.id] = Versioned(sled, entry.revision)
            elif kind == "volume":
                volume = VolumeRecord.from_json(data)
                rack.volumes[volume.volume] = Versioned(volume, entry.revision)
            elif kind == "secrets":
                secrets = HostSecrets.from_json(data)
                rack.secrets[secrets.volume] = Versioned(secrets, entry.revision)
            elif kind == "cleanup":
                cleanup = Cleanup.from_json(data)
                rack.cleanups[cleanup.volume] = Versioned(cleanup, entry.revision)
        return rack

    async def commit(self, *, compare: Mapping[str, int], put: Mapping[str, Any], delete: Collection[str] = ()) -> int:
        """Put JSON values durably. Raises CompareFailed, and AuthorityUnavailable when the outcome is unknown.

        In that case nothing that depends on it may be done: the requester reads again, which shows durable state only.
        """
        encoded = {key: json.dumps(value, separators=(",", ":")).encode() for key, value in put.items()}
        return await self._guard(self.store.commit(compare=compare, put=encoded, delete=delete))

    async def until_settled(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run a read-decide-commit `attempt`, again from the reading when it loses a race."""
        for _ in range(ATTEMPTS_MAX):
            try:
                return await attempt()
            except CompareFailed:
                continue
        raise AuthorityUnavailable(f"lost {ATTEMPTS_MAX} races for the record in a row; try again")

    async def _guard(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except OutcomeUnknown as error:
            raise AuthorityUnavailable(
                "the outcome of the change is unknown: read the record before anything depends on it"
            ) from error
        except StoreFailed as error:
            raise AuthorityUnavailable(f"the metadata store fails: {error}") from error


def revision_of(versioned: Versioned[Any] | None) -> int:
    """What to compare for a key that may not exist yet."""
    return ABSENT if versioned is None else versioned.revision


def _parse(entry: Entry) -> Any:
    try:
        return json.loads(entry.value)
    except (ValueError, RecursionError) as error:
        raise RecordMalformed(entry.key, error) from error


def _decoded(entry: Entry | None, decode: Callable[[Any], T]) -> Versioned[T] | None:
    return None if entry is None else Versioned(decode(_parse(entry)), entry.revision)
