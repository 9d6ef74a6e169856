"""Tokens of operators: what each may do, and until when.

A token is 256 random bits, so that nothing is gained by guessing, and one round of SHA-256 is enough to keep: a slow
hash protects secrets that people choose. It is found by a part of its hash and compared in constant time, which tells
nothing to one who does not have it.
"""

import enum
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any, Final, Self

from head_node.authority.errors import Conflict, NotAllowed, NotFound, Unauthorised
from head_node.authority.ledger import OPERATOR_KEY, Ledger, name_key, operator_token_key, revision_of
from head_node.authority.reports import Reports
from head_node.store.errors import RecordMalformed
from head_node.store.interface import ABSENT
from sled_controller.environment import Environment

TOKENS_MAX: Final = 256
BOOTSTRAP: Final = "bootstrap"
"""The name of the token that the authority makes for itself in a file, to make others with."""
_PREFIX: Final = "po1."
_FORM: Final = re.compile(r"po1\.[0-9a-f]{64}")
_KIND: Final = "operator-token"


class Role(enum.StrEnum):
    """What a token may do; each may also do what those before it may."""

    VIEWER = "viewer"
    """Look at everything that is no secret."""
    OPERATOR = "operator"
    """Work with volumes and their hosts, short of accepting a loss of data."""
    ADMIN = "admin"
    """Say who belongs to the rack and is trusted (nodes, tokens, keys, backups), and accept a loss of data."""

    def includes(self, other: "Role") -> bool:
        roles = list(Role)
        return roles.index(self) >= roles.index(other)


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """A token as the store has it. `expires_ms` is None for the bootstrap token only."""

    id: str
    name: str
    role: Role
    sha256: str
    created_ms: int
    created_by: str
    expires_ms: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "role": self.role.value,
            "sha256": self.sha256,
            "created_ms": self.created_ms,
            "created_by": self.created_by,
            "expires_ms": self.expires_ms,
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Raises RecordMalformed."""
        try:
            return cls(
                str(data["id"]),
                str(data["name"]),
                Role(data["role"]),
                str(data["sha256"]),
                int(data["created_ms"]),
                str(data["created_by"]),
                None if data["expires_ms"] is None else int(data["expires_ms"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordMalformed("operator token", error) from error

    def check(self, needed: Role) -> None:
        """Raises NotAllowed when this takes a higher role."""
        if not self.role.includes(needed):
            raise NotAllowed(f"the token {self.name} has the role {self.role}; this takes the role {needed}")

    @property
    def actor(self) -> str:
        """How the audit trail calls its holder: a name may be given again, an id is not."""
        return f"token:{self.name}:{self.id}"


class OperatorTokens:
    """Makes, checks, lists and revokes them."""

    def __init__(self, ledger: Ledger, reports: Reports, env: Environment) -> None:
        self._ledger = ledger
        self._reports = reports
        self._env = env

    async def holder(self, authorization: str | None) -> OperatorToken:
        """The live token that an Authorization header carries. Raises Unauthorised."""
        scheme, _, given = (authorization or "").partition(" ")
        text = given.strip()
        if scheme.lower() != "bearer" or not text:
            raise Unauthorised("operators send `Authorization: Bearer <operator token>`")
        digest = _sha256(text)
        found = await self._token(_id_of(digest)) if _FORM.fullmatch(text) else None
        if not hmac.compare_digest(digest, "0" * 64 if found is None else found.sha256) or found is None:
            raise Unauthorised("the operator token is unknown or revoked; the first one is in the authority's state")
        if found.expires_ms is not None and found.expires_ms <= self._env.clock.wall_ms():
            raise Unauthorised(f"the operator token {found.name} has expired; ask an admin for another one")
        return found

    async def create(self, name: str, role: Role, term_ms: int, created_by: str) -> tuple[str, OperatorToken]:
        """Make a token; its text is shown only here. Raises Conflict when the name is in use."""
        if len(await self.list()) >= TOKENS_MAX:
            raise Conflict(f"{TOKENS_MAX} operator tokens are open; revoke some")
        text, token = self._fresh(name, role, term_ms, created_by)
        key = name_key(_KIND, name)

        async def attempt() -> None:
            if await self._ledger.json(key) is not None:
                raise Conflict(f"there is an operator token {name} already")
            await self._ledger.commit(
                compare={key: ABSENT}, put={key: token.id, operator_token_key(token.id): token.to_json()}
            )

        await self._ledger.until_settled(attempt)
        self._reports.add_event(
            "operator-token-created", name=name, token=token.id, role=role.value, expires_ms=token.expires_ms
        )
        return text, token

    async def list(self) -> list[OperatorToken]:
        """All of them by name, expired ones too until they are cleared away."""
        found = await self._ledger.json_list(operator_token_key(""))
        return sorted((OperatorToken.from_json(entry.value) for entry in found.values()), key=lambda token: token.name)

    async def revoke(self, name_or_id: str) -> None:
        """Make a token worthless from now on. Raises NotFound."""
        for token in await self.list():
            if name_or_id in (token.id, token.name):
                await self._drop(token)
                self._reports.add_event("operator-token-revoked", name=token.name, token=token.id)
                return
        raise NotFound(f"there is no operator token {name_or_id}")

    async def clear_expired(self) -> None:
        """A token whose time was over once is gone for good, even if the clock is set back."""
        now_ms = self._env.clock.wall_ms()
        for token in await self.list():
            if token.expires_ms is not None and token.expires_ms <= now_ms:
                await self._drop(token)
                self._reports.add_event("operator-token-expired", name=token.name, token=token.id)

    async def drop_all(self) -> None:
        """The store is a backup's: it does not know which tokens were revoked since."""
        await self.drop_given()
        pointer = await self._ledger.json(OPERATOR_KEY)
        delete = [] if pointer is None else [operator_token_key(pointer.value["token"]), name_key(_KIND, BOOTSTRAP)]
        await self._ledger.commit(compare={}, put={}, delete=[OPERATOR_KEY, *delete])

    async def drop_given(self) -> None:
        """The same while the authority runs on an old copy: all but the token in the authority's own directory."""
        pointer = await self._ledger.json(OPERATOR_KEY)
        for token in await self.list():
            if pointer is None or token.id != pointer.value["token"]:
                await self._drop(token)

    async def bootstrap(self, known: str | None) -> str:
        """The text of the bootstrap token: `known` if that is it, revoked or not, else a new one in its place."""
        pointer = await self._ledger.json(OPERATOR_KEY)
        if known and pointer is not None and pointer.value["token"] == _id_of(_sha256(known)):
            return known
        text, token = self._fresh(BOOTSTRAP, Role.ADMIN, None, "authority")
        name = name_key(_KIND, BOOTSTRAP)
        put = {OPERATOR_KEY: {"token": token.id}, operator_token_key(token.id): token.to_json(), name: token.id}
        delete = [] if pointer is None else [operator_token_key(pointer.value["token"])]
        await self._ledger.commit(compare={OPERATOR_KEY: revision_of(pointer)}, put=put, delete=delete)
        self._reports.add_event("operator-token-created", name=BOOTSTRAP, token=token.id, role=token.role.value)
        return text

    async def _token(self, token_id: str) -> OperatorToken | None:
        found = await self._ledger.json(operator_token_key(token_id))
        return None if found is None else OperatorToken.from_json(found.value)

    async def _drop(self, token: OperatorToken) -> None:
        delete = [operator_token_key(token.id), name_key(_KIND, token.name)]
        await self._ledger.commit(compare={}, put={}, delete=delete)

    def _fresh(self, name: str, role: Role, term_ms: int | None, created_by: str) -> tuple[str, OperatorToken]:
        text = _PREFIX + self._env.entropy.bytes(32).hex()
        digest, now_ms = _sha256(text), self._env.clock.wall_ms()
        expires_ms = None if term_ms is None else now_ms + term_ms
        return text, OperatorToken(_id_of(digest), name, role, digest, now_ms, created_by, expires_ms)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _id_of(digest: str) -> str:
    """What a token is called in the store, lists and logs."""
    return digest[:16]
