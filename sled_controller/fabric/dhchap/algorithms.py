"""The hash functions and Diffie-Hellman groups of DH-HMAC-CHAP, by the identifiers that travel.

Identifiers: NVM Express Base 2.0, 8.13.5.1. Groups: RFC 7919, whose primes are computed here from the formula that
its appendix A gives for them, p = 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1, with its X for each.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

from gmpy2 import powmod_sec

from sled_controller.environment import Entropy
from sled_controller.errors import DhValueRefused


class HashId(IntEnum):
    """Hash functions, weakest first."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3

    @property
    def algorithm(self) -> str:
        """The name that hashlib and hmac know it by."""
        return self.name.lower()

    @property
    def digest_bytes(self) -> int:
        """The length of a digest."""
        return DIGEST_BYTES[self]


DIGEST_BYTES: Final = {HashId.SHA256: 32, HashId.SHA384: 48, HashId.SHA512: 64}
DIGEST_BYTES_MAX: Final = 64


class GroupId(IntEnum):
    """Diffie-Hellman groups, weakest first. NULL exchanges nothing: challenges travel unaugmented."""

    NULL = 0
    FFDHE2048 = 1
    FFDHE3072 = 2
    FFDHE4096 = 3
    FFDHE6144 = 4
    FFDHE8192 = 5

    @property
    def value_bytes(self) -> int:
        """The length of a public value and of the shared secret, both padded to that of the prime; 0 for NULL."""
        return 0 if self is GroupId.NULL else GROUPS[self].bits // 8


@dataclass(frozen=True, slots=True)
class Group:
    """A group of RFC 7919: bits of its prime, the X of its formula, bits of a secret exponent (its appendix A)."""

    bits: int
    x: int
    exponent_bits: int


GROUPS: Final = {
    GroupId.FFDHE2048: Group(2048, 560316, 225),
    GroupId.FFDHE3072: Group(3072, 2625351, 275),
    GroupId.FFDHE4096: Group(4096, 5736041, 325),
    GroupId.FFDHE6144: Group(6144, 15705020, 375),
    GroupId.FFDHE8192: Group(8192, 10965728, 400),
}
GENERATOR: Final = 2  # of all of them, of the subgroup of order (p - 1) / 2
VALUE_BYTES_MAX: Final = 1024
_GUARD_BITS: Final = 64  # so that the truncated terms of the series for e don't reach the bits that count


@cache
def prime_of(group: GroupId) -> int:
    """The prime of a group other than NULL."""
    bits = GROUPS[group].bits
    total, term, count = 0, 1 << (bits - 130 + _GUARD_BITS), 0
    while term:
        total += term
        count += 1
        term //= count
    scaled_e = total >> _GUARD_BITS
    return int((1 << bits) - (1 << (bits - 64)) + ((scaled_e + GROUPS[group].x) << 64) - 1)


class DhKey:
    """One side's ephemeral key in a group: `public` to send, `shared` with what the other side sent. Used once.

    GMP's `mpz_powm_sec` neither branches nor indexes memory by the secret exponent. 0.5 ms per operation in FFDHE2048,
    11 ms in FFDHE8192: the terms of a host say what is spent (docs/authentication.md).
    """

    __slots__ = ("_exponent", "group", "public")

    def __init__(self, group: GroupId, entropy: Entropy) -> None:
        self.group = group
        self._exponent = 0
        self.public = b""
        if group is not GroupId.NULL:
            bits = GROUPS[group].exponent_bits
            drawn = int.from_bytes(entropy.bytes(-(-bits // 8)), "big") >> -bits % 8
            self._exponent = drawn | 1 << bits - 1  # the length is known anyway; never 0
            self.public = self._power(GENERATOR)

    def shared(self, peer: bytes) -> bytes:
        """The shared secret, as long as the prime; empty for NULL.

        Raises DhValueRefused for a value of the wrong length, or one in a subgroup so small that the secret is known
        (RFC 7919, 5.1: 1 < y < p - 1).
        """
        if len(peer) != self.group.value_bytes:
            raise DhValueRefused(f"{len(peer)} bytes of Diffie-Hellman value, not {self.group.value_bytes}")
        if self.group is GroupId.NULL:
            return b""
        value = int.from_bytes(peer, "big")
        if not 1 < value < prime_of(self.group) - 1:
            raise DhValueRefused("a Diffie-Hellman value out of range")
        return self._power(value)

    def _power(self, base: int) -> bytes:
        return int(powmod_sec(base, self._exponent, prime_of(self.group))).to_bytes(self.group.value_bytes, "big")
