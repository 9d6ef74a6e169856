"""The key that signs the authority's replies to heads, certified by the root key; the root itself signs no reply.

Who steals it can answer heads in the authority's place, where it can reach them, until they have seen its successor or
its term is over. It signs no credential and no key set: no sled takes anything for it.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.issue_time import KEPT_STEP_MS, IssueTime
from head_node.authority.key_requests import KeyRequests, Prepared
from head_node.authority.ledger import REPLY_KEY, Ledger, Versioned, revision_of
from head_node.authority.reply_certificate import SIGNING_DOMAIN, CertificateRefused, ReplyCertificate
from head_node.store.errors import RecordMalformed
from sled_controller.environment import Environment

KIND: Final = "reply-key"
RENEW_DIVISOR: Final = 2
"""A new one is made when that part of the term is left."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplyKey:
    """What signs replies now."""

    certificate: ReplyCertificate
    raw: bytes
    private: Ed25519PrivateKey


class ReplyKeys:
    """Loads, makes and renews the reply key. `current` is None until the root key has certified one."""

    def __init__(
        self, ledger: Ledger, requests: KeyRequests, issue: IssueTime, env: Environment, *, root_public: bytes,
        term_ms: int,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._requests = requests
        self._issue = issue
        self._env = env
        self._root_public = root_public
        self._term_ms = term_ms
        self.current: ReplyKey | None = None

    async def load(self) -> None:
        """Take what the store has, if it is good. Raises RecordMalformed."""
        found = await self._ledger.json(REPLY_KEY)
        self.current = None if found is None else self._opened(found.value)

    async def keep_up(self) -> None:
        """Have a key, a new one when half of the term is over, or when time was set back behind its issue: heads count
        its term from when they first met it. Raises RootKeyNeeded."""
        current = self.current
        if current is not None:
            left_ms = current.certificate.expires_ms - self._issue.now_ms()
            term_ms = current.certificate.term_ms
            if term_ms // RENEW_DIVISOR < left_ms <= term_ms + KEPT_STEP_MS:  # a restart may forget that much
                return
        await self._requests.check_none_waits(KIND)
        await self.rotate()

    async def rotate(self, *, numbers_skipped: int = 0) -> ReplyKey:
        """A new key, which makes the one before worthless at every head that has seen it. Raises RootKeyNeeded."""

        async def attempt() -> ReplyKey:
            found = await self._ledger.json(REPLY_KEY)
            now_ms = await self._issue.stamp()
            private = Ed25519PrivateKey.from_private_bytes(self._env.entropy.bytes(32))
            certificate = ReplyCertificate(
                number=1 + numbers_skipped + _number(found),
                public=private.public_key().public_bytes_raw(),
                issued_ms=now_ms,
                expires_ms=now_ms + self._term_ms,
            )
            record = {"number": certificate.number, "private": private.private_bytes_raw().hex()}
            prepared = Prepared(
                KIND, REPLY_KEY, "certificate", record, SIGNING_DOMAIN, certificate.body(), revision_of(found), {}
            )  # fmt: skip
            return self._opened_or_raise(await self._requests.put(prepared))

        self.current = await self._ledger.until_settled(attempt)
        _log.info("event=reply-key-made number=%d", self.current.certificate.number)
        return self.current

    def _opened(self, data: Any) -> ReplyKey | None:
        """None for the record of a backup, which has no private half."""
        return None if "private" not in data else self._opened_or_raise(data)

    def _opened_or_raise(self, data: Any) -> ReplyKey:
        try:
            raw = bytes.fromhex(data["certificate"])
            private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(data["private"]))
            return ReplyKey(ReplyCertificate.open(raw, self._root_public), raw, private)
        except (KeyError, TypeError, ValueError, CertificateRefused) as error:
            raise RecordMalformed("reply key", type(error).__name__) from None


def _number(found: Versioned[Any] | None) -> int:
    return 0 if found is None else int(found.value["number"])
