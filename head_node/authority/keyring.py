"""The keys that sign credentials, and the key set that tells sleds which they are.

A key is published some time before it signs, so that heads can carry the set to all sleds, and stays in the set until
every credential that it signed has expired. The root key signs sets, never credentials.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.errors import Conflict
from head_node.authority.issue_time import IssueTime
from head_node.authority.key_requests import KeyRequests, Prepared
from head_node.authority.ledger import KEYS_DUE_KEY, KEYS_KEY, Ledger, Versioned, revision_of
from head_node.authority.root_key import RootKeyNeeded
from head_node.authority.root_key import RootKeyUnusable as RootKeyUnusable
from head_node.authority.root_key import load_root_key as load_root_key
from head_node.store.errors import RecordMalformed
from sled_controller.credential import epochs_end
from sled_controller.environment import Environment
from sled_controller.keyset import KEYS_MAX, SIGNING_DOMAIN, KeySet

KIND: Final = "key-set"

# A sled's clock may run behind by this before a credential of a retired key would be refused early.
RETIRE_SLACK_MS = 60_000
# A restored store does not know the newest versions that sleds hold: jump over all that may have been issued since.
RESTORED_VERSIONS_SKIPPED = 1 << 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key; signs from `use_from_ms`, leaves the set at `retire_ms` (None: not yet decided). A backup has no private
    halves: what was signed since is not known, and a stolen one is to sign nothing."""

    key_id: int
    private: bytes
    public: bytes
    use_from_ms: int
    retire_ms: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "key_id": self.key_id,
            "private": self.private.hex(),
            "public": self.public.hex(),
            "use_from_ms": self.use_from_ms,
            "retire_ms": self.retire_ms,
        }

    @classmethod
    def from_json(cls, data: Any) -> "SigningKey":
        return cls(
            data["key_id"],
            bytes.fromhex(data.get("private", "")),
            bytes.fromhex(data["public"]),
            data["use_from_ms"],
            data["retire_ms"],
        )


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys of one moment with the set that publishes them."""

    version: int
    keys: tuple[SigningKey, ...]
    signed_set: bytes

    def signer(self, now_ms: int, epoch: int = 0) -> SigningKey:
        """The newest key that may sign now, or a newer one where only that signs epochs as high as `epoch`.

        Raises Conflict where none does: rotate the keys; RootKeyNeeded when the ring is a backup's.
        """
        if not self.usable:
            raise RootKeyNeeded("the store was restored and has no signing key: a new key set is needed")
        usable = [key for key in self.keys if key.use_from_ms <= now_ms]
        key = max(usable or self.keys, key=lambda key: key.key_id)
        if epoch >= epochs_end(key.key_id):
            key = max(self.keys, key=lambda key: key.key_id)
        if epoch >= epochs_end(key.key_id):
            raise Conflict(
                f"key {key.key_id} signs epochs below {epochs_end(key.key_id)}, not {epoch}; rotate the signing keys"
            )
        return key

    @property
    def epochs_end(self) -> int:
        """No key of the set has signed this epoch, or a higher one."""
        return max(epochs_end(key.key_id) for key in self.keys)

    @property
    def usable(self) -> bool:
        """Whether it can sign, and may be published; that of a backup cannot and must not."""
        return all(key.private for key in self.keys)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "keys": [key.to_json() for key in self.keys],
            "signed_set": self.signed_set.hex(),
        }

    @classmethod
    def from_json(cls, data: Any) -> "KeyRing":
        """Raises RecordMalformed."""
        try:
            keys = tuple(SigningKey.from_json(key) for key in data["keys"])
            return cls(data["version"], keys, bytes.fromhex(data["signed_set"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordMalformed("key ring", error) from error


class Keyring:
    """Reads, rotates and retires the keys in the store."""

    def __init__(
        self, ledger: Ledger, requests: KeyRequests, issue: IssueTime, env: Environment, *, term_ms: int,
        publish_ms: int,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._issue = issue
        self._requests = requests
        self._env = env
        self._term_ms = term_ms
        self._publish_ms = publish_ms
        requests.adjust[KIND] = self._from_now
        self.version_min = 0
        """Below it a set is an old copy's: a newer one of this root key was seen."""

    async def current(self) -> KeyRing:
        """The keys as the store has them; made at first use. Raises RootKeyNeeded while there are none to use."""
        found = await self._read()
        if found is None:
            await self._requests.check_none_waits(KIND)
            return await self.rotate(publish_ms=0)
        if self._is_old(found.value):
            raise RootKeyNeeded("the store is an old copy: a new key set waits for the root key")
        return found.value

    async def rotate(self, *, publish_ms: int | None = None, at_once: bool = False) -> KeyRing:
        """Add a key that signs after the publication time, and set an end to those before it.

        `at_once`: they leave the set with this change, and the new one signs from now on. What they signed is worth
        nothing at a sled that has the new set; those that do not have it yet are noted by the same commit. So do an old
        copy's keys always, and versions that may have been issued since are jumped over. Raises Conflict when the set
        has no room: wait until older keys have retired; RootKeyNeeded when the new set waits for the root key, or one
        that takes keys out at once does, which no other replaces.
        """

        async def attempt() -> KeyRing:
            found = await self._read()
            if not at_once and (waiting := await self.waits()) is not None and KEYS_DUE_KEY in waiting.also:
                await self._requests.check_none_waits(KIND)
            old_copy = found is not None and self._is_old(found.value)
            alone = at_once or old_copy
            versions_skipped = RESTORED_VERSIONS_SKIPPED if old_copy else 0
            now_ms = self._issue.now_ms()
            use_from_ms = now_ms + (0 if alone else self._publish_ms if publish_ms is None else publish_ms)
            old = () if found is None else found.value.keys
            if len(old) >= KEYS_MAX and not alone:
                raise Conflict(f"the key set is full ({KEYS_MAX} keys); rotate again when older ones have retired")
            retire_ms = use_from_ms + self._term_ms + RETIRE_SLACK_MS
            # An end that lies later was set while the clock was wrong.
            kept = tuple(
                SigningKey(
                    key.key_id, key.private, key.public, key.use_from_ms, min(key.retire_ms or retire_ms, retire_ms)
                )
                for key in old
            )
            private = Ed25519PrivateKey.from_private_bytes(self._env.entropy.bytes(32))
            fresh = SigningKey(
                key_id=1 + max((key.key_id for key in old), default=0),
                private=private.private_bytes_raw(),
                public=private.public_key().public_bytes_raw(),
                use_from_ms=use_from_ms,
                retire_ms=None,
            )
            if not alone:
                return await self._put(found, (*kept, fresh), versions_skipped)
            sleds = [str(sled) for sled in (await self._ledger.rack("sled/")).sleds]
            return await self._put(found, (fresh,), versions_skipped, {KEYS_DUE_KEY: sleds})

        ring = await self._ledger.until_settled(attempt)
        _log.info("event=keys-rotated version=%d key_id=%d at_once=%s", ring.version, ring.keys[-1].key_id, at_once)
        return ring

    async def restored(self) -> None:
        """What the store has is an old copy's: it neither signs nor is published again."""
        found = await self._read()
        if found is not None:
            self.version_min = max(self.version_min, found.value.version + 1)

    async def waits(self) -> Prepared | None:
        """The set that waits for the root key; one that an old copy of the store has from then does not count."""
        found = (await self._requests.waiting()).get(KIND)
        return None if found is None or found.record["version"] < self.version_min else found

    async def retire(self) -> int | None:
        """Drop keys whose time is over; returns when the next one's is (Unix milliseconds), None if no end is set."""

        async def attempt() -> KeyRing | None:
            found = await self._read()
            if found is None or not found.value.usable:
                return None
            now_ms = self._issue.now_ms()
            kept = tuple(key for key in found.value.keys if key.retire_ms is None or key.retire_ms > now_ms)
            if len(kept) == len(found.value.keys):
                return found.value
            await self._requests.check_none_waits(KIND)
            _log.info("event=keys-retired count=%d", len(found.value.keys) - len(kept))
            return await self._put(found, kept, 0)

        ring = await self._ledger.until_settled(attempt)
        return min((key.retire_ms for key in ring.keys if key.retire_ms is not None), default=None) if ring else None

    def _is_old(self, ring: KeyRing) -> bool:
        return not ring.usable or ring.version < self.version_min

    def _from_now(self, record: dict[str, Any]) -> dict[str, Any]:
        """A set that waited for its signature: what was to happen after its making happens that much later."""
        prepared_ms = int(record["prepared_ms"])
        late_ms = self._issue.now_ms() - prepared_ms
        keys = []
        for key in map(SigningKey.from_json, record["keys"]):
            use_ms, retire_ms = key.use_from_ms, key.retire_ms
            if use_ms >= prepared_ms:
                use_ms += late_ms
            if retire_ms is not None:
                retire_ms += late_ms
            keys.append(SigningKey(key.key_id, key.private, key.public, use_ms, retire_ms).to_json())
        return {**record, "keys": keys}

    async def _read(self) -> Versioned[KeyRing] | None:
        found = await self._ledger.json(KEYS_KEY)
        return None if found is None else Versioned(KeyRing.from_json(found.value), found.revision)

    async def _put(
        self,
        old: Versioned[KeyRing] | None,
        keys: tuple[SigningKey, ...],
        skipped: int,
        also: Mapping[str, list[str]] = MappingProxyType({}),
    ) -> KeyRing:
        """The one place where a key set is made and signed."""
        version = 1 + skipped + max(0 if old is None else old.value.version, self.version_min - 1)
        published = KeySet(version, {key.key_id: key.public for key in keys}, await self._issue.stamp())
        record = {**KeyRing(version, keys, b"").to_json(), "prepared_ms": self._issue.now_ms()}
        prepared = Prepared(
            KIND, KEYS_KEY, "signed_set", record, SIGNING_DOMAIN, published.body(), revision_of(old), also
        )  # fmt: skip
        return KeyRing.from_json(await self._requests.put(prepared))
