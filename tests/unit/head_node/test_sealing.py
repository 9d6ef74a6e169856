"""Seals: opened by whom they are for, for what they are for, and by nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from head_node.sealing import SealBroken, seal, unseal

KEY, OTHER = host.private_key(host.HEAD_KEY), host.private_key(host.OTHER_HEAD_KEY)
PUBLIC = host.public_key(host.HEAD_KEY)


def sealed(data: bytes = b"secret", purpose: bytes = b"test", seed: bytes = b"seal") -> bytes:
    return seal(PUBLIC, purpose, data, host.FixedEntropy(seed))


@given(st.binary(max_size=300))
def test_the_holder_of_the_key_reads_what_was_sealed(data: bytes) -> None:
    assert unseal(KEY, b"test", sealed(data)) == data


@pytest.mark.parametrize("number", range(1, 40))
def test_every_identity_key_can_be_sealed_to(number: int) -> None:
    """The sign of a point's x, which the map forgets, makes no difference."""
    data = seal(host.public_key(number), b"", b"secret", host.FixedEntropy())
    assert unseal(host.private_key(number), b"", data) == b"secret"


def test_nobody_else_does_nor_for_another_purpose() -> None:
    with pytest.raises(SealBroken):
        unseal(OTHER, b"test", sealed())
    with pytest.raises(SealBroken):
        unseal(KEY, b"other", sealed())


def test_a_seal_changed_anywhere_is_broken() -> None:
    data = sealed()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(SealBroken):
            unseal(KEY, b"test", bytes(changed))
        with pytest.raises(SealBroken):
            unseal(KEY, b"test", data[:position])


def test_what_is_sealed_twice_looks_different_and_shows_nothing() -> None:
    one, two = sealed(), sealed(seed=b"again")
    assert one[32:] != two[32:]
    assert b"secret" not in one


def test_degenerate_keys_are_refused() -> None:
    for public in ((1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")):
        with pytest.raises(SealBroken, match="degenerate"):
            seal(public, b"", b"secret", host.FixedEntropy())
    with pytest.raises(SealBroken, match="degenerate"):
        unseal(KEY, b"", bytes(32 + 16))
