"""Join tokens: how a head proves that the operator invited it, and the authority that it is the one that did.

The token `pj1.<id>.<secret>` goes from the operator to the head by other means and is never sent: the head sends a MAC
that binds the secret to its own id and public key, and gets one that binds it to the rack's root key.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from uuid import UUID

from head_node.authority.errors import EnrolmentRefused

_PREFIX = "pj1"
_FORM = re.compile(r"pj1\.([0-9a-f]{16})\.([0-9a-f]{64})")


def verifier_of(secret_hex: str) -> bytes:
    """What the authority keeps of a token's secret: enough to check proofs, not to write the token."""
    return hashlib.sha256(b"palisade join token v1" + bytes.fromhex(secret_hex)).digest()


def proof_of(verifier: bytes, head: UUID, public_key: bytes) -> bytes:
    """32 bytes that only a holder of the token can make for this head and key."""
    return hmac.digest(verifier, b"palisade join proof v1" + head.bytes + public_key, "sha256")


def welcome_of(verifier: bytes, root_public: bytes, public_key: bytes) -> bytes:
    """32 bytes by which the authority vouches for the root key towards the holder of the token."""
    return hmac.digest(verifier, b"palisade join welcome v1" + root_public + public_key, "sha256")


def token_text(token_id: str, secret_hex: str) -> str:
    """The token as the operator hands it on."""
    return f"{_PREFIX}.{token_id}.{secret_hex}"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in the hands of a head."""

    id: str
    verifier: bytes

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Raises EnrolmentRefused when `text` is not a token."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise EnrolmentRefused("the join token is malformed: expected pj1.<16 hex digits>.<64 hex digits>")
        return cls(found[1], verifier_of(found[2]))

    def proof(self, head: UUID, public_key: bytes) -> bytes:
        return proof_of(self.verifier, head, public_key)

    def is_welcome(self, welcome: bytes, root_public: bytes, public_key: bytes) -> bool:
        return hmac.compare_digest(welcome, welcome_of(self.verifier, root_public, public_key))
