"""Join tokens: how a head proves that the operator invited it, and how it knows the authority that it joins.

The token `pj2.<id>.<seed>.<root key>.<CA>` goes from the operator to the head by other means and is never sent. Its
seed makes an Ed25519 key: the head signs its own id and public key with it, and the authority keeps only the public
half, so nothing that is stored there enrols a head. The token names the rack's root key, by which every answer is
checked, and the SHA-256 of the certificate that signs the authority's TLS certificate (`-` without one).
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from head_node.authority.errors import EnrolmentRefused

NO_CA: Final = "-"
_PREFIX: Final = "pj2"
_FORM: Final = re.compile(r"pj2\.([0-9a-f]{16})\.([0-9a-f]{64})\.([0-9a-f]{64})\.([0-9a-f]{64}|-)")


def verifier_of(seed: bytes) -> bytes:
    """What the authority keeps of a token: the public key that checks proofs and makes none."""
    return _key(seed).public_key().public_bytes_raw()


def check(verifier: bytes, proof: bytes, root_public: bytes, token_id: str, head: UUID, public_key: bytes) -> bool:
    """Whether a holder of the token has signed for this head and key."""
    try:
        Ed25519PublicKey.from_public_bytes(verifier).verify(proof, _signed(root_public, token_id, head, public_key))
    except (InvalidSignature, ValueError):
        return False
    return True


def token_text(token_id: str, seed: bytes, root_public: bytes, authority_ca: bytes | None) -> str:
    """The token as the operator hands it on; `authority_ca` is the SHA-256 of a certificate."""
    ca = NO_CA if authority_ca is None else authority_ca.hex()
    return ".".join((_PREFIX, token_id, seed.hex(), root_public.hex(), ca))


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in the hands of a head."""

    id: str
    seed: bytes
    root_public: bytes
    """The rack's root key: an authority whose answers it did not sign is another one."""
    authority_ca: bytes | None
    """SHA-256 of the certificate (DER) to pin for TLS."""

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Raises EnrolmentRefused when `text` is not a token."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise EnrolmentRefused("the join token is malformed: expected pj2.<16 hex digits>.<64>.<64>.<64 or ->")
        ca = None if found[4] == NO_CA else bytes.fromhex(found[4])
        return cls(found[1], bytes.fromhex(found[2]), bytes.fromhex(found[3]), ca)

    def proof(self, head: UUID, public_key: bytes) -> bytes:
        """64 bytes that only a holder of the token can make for this head and key."""
        return _key(self.seed).sign(_signed(self.root_public, self.id, head, public_key))


def _signed(root_public: bytes, token_id: str, head: UUID, public_key: bytes) -> bytes:
    return b"palisade join proof v2" + root_public + token_id.encode() + head.bytes + public_key


def _key(seed: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"palisade join token v2" + seed).digest())
