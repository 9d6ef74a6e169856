"""Groups are those of RFC 7919, exchanges agree, values that give no secret are refused."""

import hashlib

import pytest
from gmpy2 import is_prime
from kit import host

from sled_controller.errors import DhValueRefused
from sled_controller.fabric.dhchap.algorithms import (
    GENERATOR,
    GROUPS,
    VALUE_BYTES_MAX,
    DhKey,
    GroupId,
    HashId,
    prime_of,
)

# SHA-256 of each prime, big-endian, as OpenSSL 3.0 has them: `openssl genpkey -genparam -algorithm DH -pkeyopt
# group:ffdhe2048 | openssl asn1parse`.
PRIMES = {
    GroupId.FFDHE2048: "9cd3b7f336872f46c09428d1bbc19877a4d440512cda8d1c1cf0cd6e33698966",
    GroupId.FFDHE3072: "0eaf67db3a839156d5013494a5318a772b5697d270d721f37f092efc69ea5a17",
    GroupId.FFDHE4096: "4648414224ac881b3d0dc59b466f96d06a558278776807797ecf1f66ff397b3e",
    GroupId.FFDHE6144: "227ac9066b3ddd9e193670cda2388fa884f65ba0cf98b742d1fe77a6687c79c7",
    GroupId.FFDHE8192: "770b14efaf6f049929c523113b3fa99a8d11dab1b18af3609590122075d19833",
}


def key(group: GroupId, seed: str) -> DhKey:
    return DhKey(group, host.FixedEntropy(seed.encode()))


@pytest.mark.parametrize("group", GROUPS)
def test_the_primes_are_those_that_openssl_has(group: GroupId) -> None:
    assert hashlib.sha256(prime_of(group).to_bytes(group.value_bytes, "big")).hexdigest() == PRIMES[group]


def test_the_smallest_prime_is_safe_and_two_generates_its_large_subgroup() -> None:
    prime = prime_of(GroupId.FFDHE2048)
    order = (prime - 1) // 2
    assert is_prime(prime)
    assert is_prime(order)
    assert pow(GENERATOR, order, prime) == 1


@pytest.mark.parametrize("group", GroupId)
def test_both_sides_come_to_the_same_secret(group: GroupId) -> None:
    one, other = key(group, "one"), key(group, "other")
    assert one.shared(other.public) == other.shared(one.public)
    assert len(one.public) == len(one.shared(other.public)) == group.value_bytes <= VALUE_BYTES_MAX
    assert group is GroupId.NULL or one.public != other.public


def test_the_exchange_is_plain_exponentiation() -> None:
    """Computed by Python's own numbers from the bytes that the key drew."""
    drawn = int.from_bytes(host.FixedEntropy(b"one").bytes(29), "big") >> 7 | 1 << 224
    prime = prime_of(GroupId.FFDHE2048)
    made = key(GroupId.FFDHE2048, "one")
    assert made.public == pow(2, drawn, prime).to_bytes(256, "big")
    assert made.shared((12345).to_bytes(256, "big")) == pow(12345, drawn, prime).to_bytes(256, "big")


def test_a_secret_keeps_its_leading_zeroes() -> None:
    """Other implementations hash it at the length of the prime: one in 256 would fail otherwise."""
    made = key(GroupId.FFDHE2048, "one")
    short = next(shared for base in range(2, 5000) if not (shared := made.shared(base.to_bytes(256, "big")))[0])
    assert len(short) == 256


@pytest.mark.parametrize("group", [GroupId.FFDHE2048, GroupId.FFDHE8192])
def test_values_of_tiny_subgroups_are_refused(group: GroupId) -> None:
    prime, size = prime_of(group), group.value_bytes
    for value in (0, 1, prime - 1, prime, prime + 1, (1 << size * 8) - 1):
        with pytest.raises(DhValueRefused, match="out of range"):
            key(group, "one").shared(value.to_bytes(size, "big"))
    for value in (2, prime - 2):
        assert key(group, "one").shared(value.to_bytes(size, "big"))


@pytest.mark.parametrize("group", GroupId)
def test_values_of_another_length_are_refused(group: GroupId) -> None:
    for size in {group.value_bytes + 1, max(0, group.value_bytes - 1), 0, 1} - {group.value_bytes}:
        with pytest.raises(DhValueRefused, match=f"{size} bytes"):
            key(group, "one").shared(b"\x02" * size)


def test_algorithms_are_ordered_by_strength() -> None:
    assert list(HashId) == sorted(HashId, key=lambda each: each.digest_bytes)
    assert list(GroupId) == sorted(GroupId, key=lambda each: each.value_bytes)
    assert all(hashlib.new(each.algorithm).digest_size == each.digest_bytes for each in HashId)
