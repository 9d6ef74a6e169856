"""What a fenced-off answer proves (F6)."""

from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.cluster import KEY_SET, VOLUME, credential_of

from head_node.cluster.stepdown import Verdict, judge
from sled_controller.errors import FencedOff
from sled_controller.keyset import KeySet

FORGER = Ed25519PrivateKey.from_private_bytes(b"x" * 32)


def verdict(credential: bytes | None, key_set: KeySet | None = KEY_SET) -> Verdict:
    return judge(FencedOff(6, credential), volume=VOLUME, epoch=5, key_set=key_set).verdict


def test_a_genuine_newer_credential_is_a_successor() -> None:
    assert verdict(credential_of(6)) is Verdict.SUCCEEDED


def test_one_that_has_run_out_has_still_raised_the_fence() -> None:
    assert verdict(credential_of(6, term_ms=1)) is Verdict.SUCCEEDED


def flipped(credential: bytes) -> bytes:
    """One bit of the signature is another; setting its last byte would change nothing one time in sixteen."""
    return credential[:-1] + bytes([credential[-1] ^ 1])


@pytest.mark.parametrize(
    "credential",
    [
        credential_of(6, key=FORGER),
        credential_of(5),
        credential_of(4),
        credential_of(6, volume=UUID(int=8)),
        b"garbage",
        flipped(credential_of(6)),
    ],
    ids=["forged", "equal epoch", "older epoch", "other volume", "garbage", "flipped"],
)
def test_anything_else_is_the_word_of_a_faulty_sled(credential: bytes) -> None:
    assert verdict(credential) is Verdict.FAULTY


def test_without_a_credential_or_its_key_the_authority_is_asked() -> None:
    assert verdict(None) is Verdict.UNPROVEN
    assert verdict(credential_of(6), key_set=None) is Verdict.UNPROVEN
    assert verdict(credential_of(6, key_id=2)) is Verdict.UNPROVEN
