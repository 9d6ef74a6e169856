"""The keys that sign credentials, and the key set that tells sleds which they are.

A key is published some time before it signs, so that heads can carry the set to all sleds, and stays in the set until
every credential that it signed has expired. The root key signs sets (and answers to heads), never credentials.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.errors import AuthorityError, Conflict
from head_node.authority.issue_time import IssueTime
from head_node.authority.ledger import KEYS_KEY, Ledger, Versioned, revision_of
from head_node.store.errors import RecordMalformed
from sled_controller.durable import replace_file
from sled_controller.environment import Environment
from sled_controller.keyset import KEYS_MAX, KeySet

# A sled's clock may run behind by this before a credential of a retired key would be refused early.
RETIRE_SLACK_MS = 60_000
# A restored store does not know the newest versions that sleds hold: jump over all that may have been issued since.
RESTORED_VERSIONS_SKIPPED = 1 << 16

_log = logging.getLogger(__name__)


class RootKeyUnusable(AuthorityError):
    """The root key file cannot be read, or is not the rack's: put back the right one."""

    slug = "root-key-unusable"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key; signs from `use_from_ms`, leaves the set at `retire_ms` (None: not yet decided)."""

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
            bytes.fromhex(data["private"]),
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

    def signer(self, now_ms: int) -> SigningKey:
        """The newest key that may sign now."""
        usable = [key for key in self.keys if key.use_from_ms <= now_ms]
        return max(usable or self.keys, key=lambda key: key.key_id)

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
        self, ledger: Ledger, root_key: Ed25519PrivateKey, issue: IssueTime, env: Environment, *, term_ms: int,
        publish_ms: int,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._issue = issue
        self._root_key = root_key
        self._env = env
        self._term_ms = term_ms
        self._publish_ms = publish_ms

    async def current(self) -> KeyRing:
        """The keys as the store has them; made at first use."""
        found = await self._read()
        return found.value if found is not None else await self.rotate(publish_ms=0)

    async def rotate(self, *, publish_ms: int | None = None, versions_skipped: int = 0) -> KeyRing:
        """Add a key that signs after the publication time, and set an end to those before it.

        Raises Conflict when the set has no room: wait until older keys have retired.
        """

        async def attempt() -> KeyRing:
            found = await self._read()
            now_ms = self._issue.now_ms()
            use_from_ms = now_ms + (self._publish_ms if publish_ms is None else publish_ms)
            old = () if found is None else found.value.keys
            if len(old) >= KEYS_MAX:
                raise Conflict(f"the key set is full ({KEYS_MAX} keys); rotate again when older ones have retired")
            retire_ms = use_from_ms + self._term_ms + RETIRE_SLACK_MS
            kept = tuple(
                SigningKey(key.key_id, key.private, key.public, key.use_from_ms, key.retire_ms or retire_ms)
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
            return await self._put(found, (*kept, fresh), versions_skipped)

        ring = await self._ledger.until_settled(attempt)
        _log.info("event=keys-rotated version=%d key_id=%d", ring.version, ring.keys[-1].key_id)
        return ring

    async def retire(self) -> int | None:
        """Drop keys whose time is over; returns when the next one's is (Unix milliseconds), None if no end is set."""

        async def attempt() -> KeyRing | None:
            found = await self._read()
            if found is None:
                return None
            now_ms = self._issue.now_ms()
            kept = tuple(key for key in found.value.keys if key.retire_ms is None or key.retire_ms > now_ms)
            if len(kept) == len(found.value.keys):
                return found.value
            _log.info("event=keys-retired count=%d", len(found.value.keys) - len(kept))
            return await self._put(found, kept, 0)

        ring = await self._ledger.until_settled(attempt)
        return min((key.retire_ms for key in ring.keys if key.retire_ms is not None), default=None) if ring else None

    async def _read(self) -> Versioned[KeyRing] | None:
        found = await self._ledger.json(KEYS_KEY)
        return None if found is None else Versioned(KeyRing.from_json(found.value), found.revision)

    async def _put(self, old: Versioned[KeyRing] | None, keys: tuple[SigningKey, ...], skipped: int) -> KeyRing:
        version = 1 + skipped + (0 if old is None else old.value.version)
        published = KeySet(version, {key.key_id: key.public for key in keys}, await self._issue.stamp())
        ring = KeyRing(version, keys, published.sign(self._root_key))
        await self._ledger.commit(compare={KEYS_KEY: revision_of(old)}, put={KEYS_KEY: ring.to_json()})
        return ring


def load_root_key(path: Path, env: Environment, *, may_create: bool) -> Ed25519PrivateKey:
    """Read the root key (PKCS #8, PEM), or make it with mode 0600 at the first start. Raises RootKeyUnusable."""
    try:
        if may_create and not path.exists():
            _write_private(path, Ed25519PrivateKey.from_private_bytes(env.entropy.bytes(32)))
        mode = path.stat().st_mode & 0o077
        if mode:
            raise RootKeyUnusable(f"{path}: others than its owner may use it (mode {mode:03o}); chmod 600 it")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise RootKeyUnusable(f"{path}: {error.strerror}; put the rack's root key there") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RootKeyUnusable(f"{path}: is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RootKeyUnusable(f"{path}: is not an Ed25519 key")
    return key


def _write_private(path: Path, key: Ed25519PrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_file(path, text.decode(), 0o600)
