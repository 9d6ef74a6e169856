"""Fixed keys, entropy and clocks, and the golden bytes made of them: what the tests of the head's side share."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sled_controller.credential import ALL_RIGHTS, Credential
from sled_controller.environment import Environment
from sled_controller.keyset import KeySet
from sled_controller.session import HeadHandshake, SessionKeys, SledHandshake

GOLDEN = Path(__file__).parents[1] / "golden"

SLED = UUID("11111111-1111-4111-8111-111111111111")
VOLUME = UUID("22222222-2222-4222-8222-222222222222")
HEAD = UUID("33333333-3333-4333-8333-333333333333")
NQN = f"nqn.2014-08.org.nvmexpress:uuid:{SLED}"
NOW_MS = 1_700_000_000_000
TERM_MS = 600_000
SPACE_BLOCKS, SPACE_NAMESPACES = 1 << 20, 16


def private_key(number: int) -> Ed25519PrivateKey:
    """A fixed Ed25519 key."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def public_key(number: int) -> bytes:
    """Its raw public key."""
    return private_key(number).public_key().public_bytes_raw()


ROOT, AUTHORITY, SLED_KEY, HEAD_KEY, OTHER_HEAD_KEY = 1, 2, 3, 4, 5


@dataclass
class FixedEntropy:
    """Bytes that depend on the seed and on how many were taken."""

    seed: bytes = b"seed"
    taken: int = 0

    def bytes(self, count: int) -> bytes:
        self.taken += 1
        return hashlib.shake_256(self.seed + self.taken.to_bytes(4, "little")).digest(count)


@dataclass
class FixedClock:
    """A clock that a test moves."""

    now_ms: int = NOW_MS
    boot_ns: int = 10**9

    def boottime_ns(self) -> int:
        return self.boot_ns

    def wall_ms(self) -> int:
        return self.now_ms


def environment(seed: str = "seed") -> Environment:
    """An environment whose bytes depend on `seed` only."""
    return Environment(FixedClock(), FixedEntropy(seed.encode()))


def key_set(version: int = 1) -> KeySet:
    """The key set that `credential` is signed under."""
    return KeySet(version, {7: public_key(AUTHORITY)}, NOW_MS)


def credential(
    *, epoch: int = 5, head: int = HEAD_KEY, volume: UUID = VOLUME, issued_ms: int = NOW_MS, serial: int = 9,
    blocks: int = SPACE_BLOCKS, namespaces: int = SPACE_NAMESPACES, sleds: tuple[UUID, ...] = (SLED,),
) -> Credential:  # fmt: skip
    """A credential for the fixed head and volume."""
    return Credential(
        7, volume, public_key(head), epoch, ALL_RIGHTS, issued_ms, issued_ms + TERM_MS, serial, blocks, namespaces,
        sleds,
    )  # fmt: skip


def signed(**fields: object) -> bytes:
    """`credential(...)`, signed by the authority."""
    return credential(**fields).sign(private_key(AUTHORITY))  # type: ignore[arg-type]


def handshakes(seed: str = "seed") -> tuple[SledHandshake, HeadHandshake]:
    """Both ends of one handshake, with fixed ephemerals."""
    sled = SledHandshake(private_key(SLED_KEY), SLED, NQN, 3, 17, environment(seed + "sled"))
    head = HeadHandshake(private_key(HEAD_KEY), SLED, public_key(SLED_KEY), NQN, 3, environment(seed + "head"))
    return sled, head


def session(seed: str = "seed") -> tuple[SessionKeys, SessionKeys]:
    """(the sled's keys, the head's keys) of one session."""
    sled, head = handshakes(seed)
    return sled.accept(head.reply(sled.hello())), head.keys


def golden(name: str) -> bytes:
    """The bytes of tests/golden/NAME.hex: 16 a line, each line opened by its offset."""
    lines = (GOLDEN / f"{name}.hex").read_text(encoding="ascii").splitlines()
    data = bytearray()
    for line in lines:
        if line.startswith("#"):
            continue
        offset, _, text = line.partition(":")
        assert int(offset, 16) == len(data), f"{name}: the line of offset {offset} is out of place"
        data += bytes.fromhex(text)
    return bytes(data)


@dataclass
class NonceLedger:
    """Every (key, nonce) that a tag was made under; the same pair twice fails at once."""

    seen: set[tuple[bytes, bytes]] = field(default_factory=set)

    def note(self, key: bytes, nonce: bytes) -> None:
        assert (key, nonce) not in self.seen, f"nonce {nonce.hex()} twice under one key"
        self.seen.add((key, nonce))
