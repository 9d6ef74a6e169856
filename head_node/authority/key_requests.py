"""What waits for a root key that is away: made here, signed elsewhere, installed here.

Whatever needs the root's signature prepares a record of the store with a place for it. Where the root key answers the
record is put at once; where it is away the record waits, with its private halves, and only what is to be signed leaves
the authority. A request of one kind replaces the former one of that kind; it is installed only over the record that it
was made from.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from head_node.authority.errors import Conflict, NotFound, RequestRefused
from head_node.authority.ledger import Ledger, revision_of
from head_node.authority.root_key import HOW_TO_SIGN, RootKey, RootKeyNeeded

PENDING_PREFIX: Final = "root-request/"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record that lacks a signature: `field` of the JSON at `key` becomes `body` and the signature of `domain` and
    `body`. `revision` is that of the record it replaces; `also` is put with it."""

    kind: str
    key: str
    field: str
    record: Mapping[str, Any]
    domain: bytes
    body: bytes
    revision: int
    also: Mapping[str, Any]

    def signed(self, signature: bytes) -> dict[str, Any]:
        return {**self.record, self.field: (self.body + signature).hex()}

    def to_json(self) -> dict[str, Any]:
        """As it waits in the store."""
        return {
            "kind": self.kind, "key": self.key, "field": self.field, "record": dict(self.record),
            "domain": self.domain.hex(), "body": self.body.hex(), "revision": self.revision, "also": dict(self.also),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Prepared":
        return cls(
            data["kind"], data["key"], data["field"], data["record"], bytes.fromhex(data["domain"]),
            bytes.fromhex(data["body"]), data["revision"], data["also"],
        )  # fmt: skip


class KeyRequests:
    """Signs prepared records, or keeps them until their signature comes."""

    def __init__(self, ledger: Ledger, root: RootKey) -> None:
        self._ledger = ledger
        self._root = root
        self.adjust: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        """By kind, what an installation does to the unsigned part of a record first."""
        self.on_installed: Callable[[str], Awaitable[None]] | None = None
        """Called with the kind of what was installed."""

    async def put(self, prepared: Prepared) -> dict[str, Any]:
        """Sign and put a record; returns it. Raises RootKeyNeeded when it waits for the root key from now on,
        CompareFailed."""
        try:
            signature = await self._root.sign(prepared.domain + prepared.body)
        except RootKeyNeeded:
            await self._ledger.commit(compare={}, put={PENDING_PREFIX + prepared.kind: prepared.to_json()})
            _log.warning("event=root-key-needed what=%s", prepared.kind)
            raise
        record = prepared.signed(signature)
        await self._put(prepared, record)
        return record

    async def waiting(self) -> dict[str, Prepared]:
        """What waits for the root key, by kind."""
        found = await self._ledger.json_list(PENDING_PREFIX)
        return {kind: Prepared.from_json(entry.value) for kind, entry in found.items()}

    async def check_none_waits(self, kind: str) -> None:
        """Raises RootKeyNeeded while one of that kind waits: making another would void what is on its way."""
        if await self._ledger.json(PENDING_PREFIX + kind) is not None:
            raise RootKeyNeeded(f"a {kind} waits for the root key: {HOW_TO_SIGN}")

    async def sign_waiting(self) -> None:
        """Sign what waits, now that the root key may be back; one behind a command, which may ask a person, is used
        only for what an operator asks for. Raises RootKeyNeeded."""
        if self._root.kind == "command":
            return
        for kind, prepared in (await self.waiting()).items():
            signature = await self._root.sign(prepared.domain + prepared.body)
            await self.install(kind, prepared.body, signature)

    async def install(self, kind: str, body: bytes, signature: bytes) -> None:
        """Put a record whose signature has come. Raises NotFound, RequestRefused, Conflict."""
        prepared = (await self.waiting()).get(kind)
        if prepared is None:
            raise NotFound(f"nothing of the kind {kind!r:.40} waits for the root key")
        if prepared.body != body:
            raise Conflict(f"another {kind} waits by now: request it again, and have that one signed")
        try:
            root = Ed25519PublicKey.from_public_bytes(self._root.public)
            root.verify(signature, prepared.domain + prepared.body)
        except InvalidSignature:
            raise RequestRefused(f"the signature of the {kind} is not the root key's") from None
        found = await self._ledger.json(prepared.key)
        if revision_of(found) != prepared.revision:
            raise Conflict(f"the {kind} was changed since it was requested: request it again")
        record, adjust = prepared.signed(signature), self.adjust.get(kind)
        await self._put(prepared, record if adjust is None else adjust(record))
        _log.warning("event=root-signed what=%s", kind)
        if self.on_installed is not None:
            await self.on_installed(kind)

    async def _put(self, prepared: Prepared, record: Mapping[str, Any]) -> None:
        await self._ledger.commit(
            compare={prepared.key: prepared.revision},
            put={prepared.key: record, **prepared.also},
            delete=[PENDING_PREFIX + prepared.kind],
        )
