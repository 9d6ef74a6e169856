"""The session between a head and a sled, or two heads: who is there, and the keys that only those two have.

Both sides give a fresh X25519 key (RFC 7748) and an Ed25519 signature over the transcript; HKDF-SHA256 (RFC 5869)
makes the keys. Nothing is resumed: keys live as long as one association. No I/O here: bytes in, bytes out.
"""

import hashlib
import hmac
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from struct import Struct
from typing import Final
from uuid import UUID

from construct import Bytes, Const, Int16ul, Int64ul
from construct import Struct as Layout
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sled_controller.environment import Environment
from sled_controller.errors import HandshakeFailed, NonceReused
from sled_controller.sled_start import BOOT_ID_BYTES, UNKNOWN_START, SledStart
from spdk_bindings.device import Buffer

VERSION: Final = 1
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16
RECEIPT_TAG_BYTES: Final = 32
HELLO_MAGIC: Final = b"PLHE"
REPLY_MAGIC: Final = b"PLRE"
HELLO_BODY_BYTES: Final = 96
HELLO_BYTES: Final = HELLO_BODY_BYTES + SIGNATURE_BYTES
REPLY_BODY_BYTES: Final = 80
REPLY_BYTES: Final = REPLY_BODY_BYTES + SIGNATURE_BYTES
JOIN_BYTES_MAX: Final = 32 * 1024  # above, hashing piece by piece is cheaper than one contiguous copy

SLED_DOMAIN: Final = b"palisade session sled v1\0"
HEAD_DOMAIN: Final = b"palisade session head v1\0"
TRANSCRIPT_DOMAIN: Final = b"palisade session transcript v1\0"
QUEUE_LABEL: Final = b"palisade queue key v1\0"
RECEIPT_LABEL: Final = b"palisade receipt key v1\0"
RECEIPT_DOMAIN: Final = b"palisade receipt v1\0"

HELLO_LAYOUT: Final = Layout(
    "magic" / Const(HELLO_MAGIC),
    "version" / Const(VERSION, Int16ul),
    "controller_id" / Int16ul,
    "boot_counter" / Int64ul,
    "sled_id" / Bytes(16),
    "nonce" / Bytes(32),
    "ephemeral" / Bytes(KEY_BYTES),
    "signature" / Bytes(SIGNATURE_BYTES),
)
HELLO: Final = Struct("<4sHHQ16s32s32s")

REPLY_LAYOUT: Final = Layout(
    "magic" / Const(REPLY_MAGIC),
    "version" / Const(VERSION, Int16ul),
    "controller_id" / Int16ul,
    "zero" / Const(0, Int64ul),
    "head_key" / Bytes(KEY_BYTES),
    "ephemeral" / Bytes(KEY_BYTES),
    "signature" / Bytes(SIGNATURE_BYTES),
)
REPLY: Final = Struct("<4sHHQ32s32s")


class Direction(IntEnum):
    """Which way authenticated bytes travel; each way has keys of its own."""

    FORWARD = 0  # head to sled, initiator to responder
    BACKWARD = 1  # sled to head, responder to initiator


def nonce_of(count: int) -> bytes:
    """The 12-byte nonce of a count (0 to 2^64 - 1)."""
    return b"\0\0\0\0" + count.to_bytes(8, "big")


class QueueMac:
    """AES-256-GMAC of one queue and direction; the count of authenticated messages is the nonce and never repeats.

    Nonce: four zero bytes, then the count as a big-endian 64-bit number. The side that makes tags is refused a count
    that does not exceed the last one. The side that checks may check late (R2T), so it takes a count by
    `next_count` when the command arrives and checks with it when the data is complete.
    """

    __slots__ = ("_algorithm", "_gcm", "_last", "_next")

    def __init__(self, key: bytes) -> None:
        self._gcm = AESGCM(key)
        self._algorithm = algorithms.AES(key)
        self._next = 0
        self._last = -1

    def next_count(self) -> int:
        """Take the next count; starts at 0, is never reset."""
        count = self._next
        self._next = count + 1
        return count

    def tag(self, count: int, data: Buffer) -> bytes:
        """The 16-byte tag of `data` under `count`; raises NonceReused unless `count` exceeds every former one."""
        self._spend(count)
        return self._gcm.encrypt(nonce_of(count), b"", data)

    def tag_parts(self, count: int, parts: Sequence[Buffer]) -> bytes:
        """`tag` of the concatenation of `parts`; large parts are not copied."""
        self._spend(count)
        return self._tag_of(count, parts)

    def check(self, count: int, tag: Buffer, data: Buffer) -> bool:
        """Whether `tag` is that of `data` under `count`, in constant time."""
        return hmac.compare_digest(self._gcm.encrypt(nonce_of(count), b"", data), tag)

    @property
    def opener(self) -> Callable[[bytes, Buffer, Buffer], bytes]:
        """`opener(nonce_of(count), tag, data)` raises InvalidTag unless `check` would be true.

        For the one loop per received buffer that cannot afford a call in between.
        """
        return self._gcm.decrypt

    def check_parts(self, count: int, tag: Buffer, parts: Sequence[Buffer]) -> bool:
        """`check` of the concatenation of `parts`; large parts are not copied."""
        return hmac.compare_digest(self._tag_of(count, parts), tag)

    def _tag_of(self, count: int, parts: Sequence[Buffer]) -> bytes:
        if sum(map(len, parts)) <= JOIN_BYTES_MAX:
            return self._gcm.encrypt(nonce_of(count), b"", b"".join(parts))
        encryptor = Cipher(self._algorithm, modes.GCM(nonce_of(count))).encryptor()
        for part in parts:
            encryptor.authenticate_additional_data(part)
        encryptor.finalize()
        return encryptor.tag

    def _spend(self, count: int) -> None:
        if count <= self._last:
            raise NonceReused(count, self._last)
        self._last = count


class SessionKeys:
    """What both sides derive: a MAC per (queue id, direction), each made once, and the key of receipts."""

    def __init__(
        self, secret: bytes, transcript: bytes, head_public: bytes, start: SledStart = UNKNOWN_START
    ) -> None:  # fmt: skip
        self.head_public = head_public
        self.start = start
        self._pseudorandom_key = hmac.digest(transcript, secret, "sha256")  # HKDF-Extract, the transcript as salt
        self._receipt_key = self._expand(RECEIPT_LABEL)
        self._macs: dict[tuple[int, Direction], QueueMac] = {}

    def queue_mac(self, queue_id: int, direction: Direction = Direction.FORWARD) -> QueueMac:
        """The MAC of a queue (id 0 to 65535) and direction: always the same object, so its count never starts again."""
        mac = self._macs.get((queue_id, direction))
        if mac is None:
            mac = QueueMac(self._expand(QUEUE_LABEL + queue_id.to_bytes(2, "little") + bytes([direction])))
            self._macs[queue_id, direction] = mac
        return mac

    def receipt_tag(self, data: Buffer) -> bytes:
        """32 bytes: HMAC-SHA256 of a receipt under the sled-to-head key; without a nonce, so it may be read twice."""
        return hmac.digest(self._receipt_key, RECEIPT_DOMAIN + bytes(data), "sha256")

    def _expand(self, label: bytes) -> bytes:
        return HKDFExpand(hashes.SHA256(), KEY_BYTES, label).derive(self._pseudorandom_key)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a sled says first: its persisted boot counter and what it contributes to the keys. The nonce begins with the
    boot id, which all hellos of one start share."""

    controller_id: int
    boot_counter: int
    sled_id: UUID
    nonce: bytes
    ephemeral: bytes

    @property
    def start(self) -> SledStart:
        """Which start of the sled this is of."""
        return SledStart(self.boot_counter, self.nonce[:BOOT_ID_BYTES])

    def body(self) -> bytes:
        """The 96 bytes that are signed, after the domain and the NQN."""
        return HELLO.pack(
            HELLO_MAGIC, VERSION, self.controller_id, self.boot_counter, self.sled_id.bytes, self.nonce, self.ephemeral
        )

    @classmethod
    def parse(cls, data: bytes) -> "Hello":
        """Read the fields without believing them; raises HandshakeFailed."""
        if len(data) != HELLO_BYTES:
            raise HandshakeFailed(f"a hello of {len(data)} bytes, not {HELLO_BYTES}")
        magic, version, controller_id, boot_counter, sled_id, nonce, ephemeral = HELLO.unpack_from(data)
        if magic != HELLO_MAGIC or version != VERSION:
            raise HandshakeFailed(f"this is no hello of version {VERSION}")
        return cls(controller_id, boot_counter, UUID(bytes=sled_id), nonce, ephemeral)


class HandshakeState(Enum):
    """The life of one handshake, on either side; it is used once."""

    START = auto()
    WAITING = auto()  # our part is sent
    DONE = auto()
    FAILED = auto()


class SledHandshake:
    """The sled's side: `hello()` out, `accept(reply)` in."""

    def __init__(
        self, identity_key: Ed25519PrivateKey, sled_id: UUID, nqn: str, controller_id: int, boot_counter: int,
        env: Environment, boot_id: bytes = b"",
    ) -> None:  # fmt: skip
        """`boot_id`: that of a former handshake of this start; the first one makes it."""
        self._identity_key = identity_key
        self._nqn = nqn
        self._ephemeral = X25519PrivateKey.from_private_bytes(env.entropy.bytes(KEY_BYTES))
        nonce = env.entropy.bytes(NONCE_BYTES)
        self.boot_id = boot_id or nonce[:BOOT_ID_BYTES]
        self._fields = Hello(
            controller_id, boot_counter, sled_id, self.boot_id + nonce[BOOT_ID_BYTES:],
            self._ephemeral.public_key().public_bytes_raw(),
        )  # fmt: skip
        self._state = HandshakeState.START
        self._hello = b""

    def hello(self) -> bytes:
        """The signed hello (160 bytes), signed once: the same bytes when asked again before the reply."""
        if self._state not in (HandshakeState.START, HandshakeState.WAITING):
            raise HandshakeFailed("this handshake is over")
        if not self._hello:
            self._state = HandshakeState.WAITING
            body = self._fields.body()
            self._hello = body + self._identity_key.sign(SLED_DOMAIN + _sized(self._nqn) + body)
        return self._hello

    def accept(self, reply: Buffer) -> SessionKeys:
        """Check the head's reply; the keys name the head that proved itself. Raises HandshakeFailed, for good."""
        if self._state is not HandshakeState.WAITING:
            raise HandshakeFailed("a reply is not expected here")
        self._state = HandshakeState.FAILED
        data = bytes(reply)
        if len(data) != REPLY_BYTES:
            raise HandshakeFailed(f"a reply of {len(data)} bytes, not {REPLY_BYTES}")
        magic, version, controller_id, zero, head_key, ephemeral = REPLY.unpack_from(data)
        if magic != REPLY_MAGIC or version != VERSION or zero:
            raise HandshakeFailed(f"this is no reply of version {VERSION}")
        if controller_id != self._fields.controller_id:
            raise HandshakeFailed("the reply is for another controller")
        sled_public = self._identity_key.public_key().public_bytes_raw()
        transcript = _transcript(self._fields, self._nqn, sled_public, head_key, ephemeral)
        check_signature(head_key, data[REPLY_BODY_BYTES:], HEAD_DOMAIN + transcript, "the head")
        keys = SessionKeys(agree(self._ephemeral, ephemeral), transcript, head_key, self._fields.start)
        self._state = HandshakeState.DONE
        return keys


class HeadHandshake:
    """The head's side: `reply(hello)` checks the sled's identity, answers and leaves the keys in `keys`."""

    def __init__(
        self, head_key: Ed25519PrivateKey, expected_sled_id: UUID, expected_sled_public: bytes, nqn: str,
        controller_id: int, env: Environment,
    ) -> None:  # fmt: skip
        self._head_key = head_key
        self._sled_id = expected_sled_id
        self._sled_public = expected_sled_public
        self._nqn = nqn
        self._controller_id = controller_id
        self._env = env
        self._state = HandshakeState.START
        self._keys: SessionKeys | None = None

    @property
    def keys(self) -> SessionKeys:
        """The session's keys, once `reply` has returned."""
        if self._keys is None:
            raise HandshakeFailed("there are no keys before the reply")
        return self._keys

    def reply(self, hello: Buffer) -> bytes:
        """The signed reply (144 bytes) to the sled's hello; raises HandshakeFailed, for good."""
        if self._state is not HandshakeState.START:
            raise HandshakeFailed("a hello is answered once")
        self._state = HandshakeState.FAILED
        data = bytes(hello)
        fields = Hello.parse(data)
        if fields.sled_id != self._sled_id:
            raise HandshakeFailed(f"sled {fields.sled_id} answered, {self._sled_id} is expected")
        if fields.controller_id != self._controller_id:
            raise HandshakeFailed("the hello is of another controller")
        signed = SLED_DOMAIN + _sized(self._nqn) + data[:HELLO_BODY_BYTES]
        check_signature(self._sled_public, data[HELLO_BODY_BYTES:], signed, "the sled")
        ephemeral = X25519PrivateKey.from_private_bytes(self._env.entropy.bytes(KEY_BYTES))
        ephemeral_public = ephemeral.public_key().public_bytes_raw()
        head_public = self._head_key.public_key().public_bytes_raw()
        transcript = _transcript(fields, self._nqn, self._sled_public, head_public, ephemeral_public)
        self._keys = SessionKeys(agree(ephemeral, fields.ephemeral), transcript, head_public, fields.start)
        self._state = HandshakeState.DONE
        body = REPLY.pack(REPLY_MAGIC, VERSION, self._controller_id, 0, head_public, ephemeral_public)
        return body + self._head_key.sign(HEAD_DOMAIN + transcript)


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The X25519 shared secret; raises HandshakeFailed for a public key of small order."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise HandshakeFailed("the ephemeral key of the other side is degenerate") from None


def check_signature(public: bytes, signature: bytes, message: bytes, who: str) -> None:
    """Raise HandshakeFailed unless `signature` is `public`'s over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise HandshakeFailed(f"{who} did not prove its identity") from None


def _sized(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "little") + raw


def _transcript(hello: Hello, nqn: str, sled_public: bytes, head_public: bytes, head_ephemeral: bytes) -> bytes:
    """SHA-256 over all that both sides must agree on: version, sled, NQN, controller, boot counter, keys."""
    return hashlib.sha256(
        TRANSCRIPT_DOMAIN + hello.body() + sled_public + _sized(nqn) + head_public + head_ephemeral
    ).digest()


# --- head to head

PEER_HELLO_MAGIC: Final = b"PLPH"
PEER_ANSWER_MAGIC: Final = b"PLPA"
CONTEXT_BYTES_MAX: Final = 64
PEER_HELLO_BYTES: Final = 168
PEER_ANSWER_BODY_BYTES: Final = 104
PEER_ANSWER_BYTES: Final = PEER_ANSWER_BODY_BYTES + SIGNATURE_BYTES
PEER_PROOF_BYTES: Final = SIGNATURE_BYTES
INITIATOR_DOMAIN: Final = b"palisade peer initiator v1\0"
RESPONDER_DOMAIN: Final = b"palisade peer responder v1\0"
PEER_DOMAIN: Final = b"palisade peer transcript v1\0"

PEER_HELLO_LAYOUT: Final = Layout(
    "magic" / Const(PEER_HELLO_MAGIC),
    "version" / Const(VERSION, Int16ul),
    "context_bytes" / Int16ul,
    "public" / Bytes(KEY_BYTES),
    "nonce" / Bytes(32),
    "ephemeral" / Bytes(KEY_BYTES),
    "context" / Bytes(CONTEXT_BYTES_MAX),
)
PEER_HELLO: Final = Struct("<4sHH32s32s32s64s")
PEER_ANSWER_LAYOUT: Final = Layout(
    "magic" / Const(PEER_ANSWER_MAGIC),
    "version" / Const(VERSION, Int16ul),
    "zero" / Const(0, Int16ul),
    "public" / Bytes(KEY_BYTES),
    "nonce" / Bytes(32),
    "ephemeral" / Bytes(KEY_BYTES),
    "signature" / Bytes(SIGNATURE_BYTES),
)
PEER_ANSWER: Final = Struct("<4sHH32s32s32s")


class PeerHandshake:
    """Two heads that know each other's keys from the authority: hello (168 bytes), answer (168), proof (64).

    The initiator starts with `start()`; either side hands each message of exactly `expects` bytes to `receive` and
    sends what comes back. `expects` is 0 once `keys` are there. The context (at most 64 bytes, say what the link is
    for) travels in the hello and is part of what both sign; a responder reads it from `context` when done.
    """

    def __init__(
        self, key: Ed25519PrivateKey, peers: Collection[bytes], env: Environment, context: bytes, initiator: bool
    ) -> None:
        if len(context) > CONTEXT_BYTES_MAX:
            raise ValueError(f"a context of {len(context)} bytes, at most {CONTEXT_BYTES_MAX}")
        self._key = key
        self._peers = peers
        self._initiator = initiator
        self._env = env
        self._made: X25519PrivateKey | None = None
        self._nonce = env.entropy.bytes(32)
        self._hello = b""
        self._transcript = b""
        self._state = HandshakeState.START
        self._keys: SessionKeys | None = None
        self.context = context
        self.peer_public = b""
        self.expects = 0 if initiator else PEER_HELLO_BYTES

    @classmethod
    def initiator(
        cls, key: Ed25519PrivateKey, peer_public: bytes, env: Environment, context: bytes = b""
    ) -> "PeerHandshake":
        """The side that dials, for the head whose public key is `peer_public`."""
        return cls(key, (peer_public,), env, context, True)

    @classmethod
    def responder(cls, key: Ed25519PrivateKey, peers: Collection[bytes], env: Environment) -> "PeerHandshake":
        """The side that listens, for any head whose public key is in `peers`."""
        return cls(key, peers, env, b"", False)

    @property
    def keys(self) -> SessionKeys:
        """The keys, once the other side has proved itself; `head_public` in them is the initiator's."""
        if self._keys is None or self._state is not HandshakeState.DONE:
            raise HandshakeFailed("the other side has not proved itself yet")
        return self._keys

    def outgoing(self, channel: int = 0) -> QueueMac:
        """The MAC of what this side sends on `channel`."""
        return self.keys.queue_mac(channel, Direction.FORWARD if self._initiator else Direction.BACKWARD)

    def incoming(self, channel: int = 0) -> QueueMac:
        """The MAC of what the other side sends on `channel`."""
        return self.keys.queue_mac(channel, Direction.BACKWARD if self._initiator else Direction.FORWARD)

    def start(self) -> bytes:
        """The initiator's hello; once."""
        if not self._initiator or self._state is not HandshakeState.START:
            raise HandshakeFailed("a hello is sent once, by the initiator")
        context = self.context.ljust(CONTEXT_BYTES_MAX, b"\0")
        public = self._key.public_key().public_bytes_raw()
        self._hello = PEER_HELLO.pack(
            PEER_HELLO_MAGIC, VERSION, len(self.context), public, self._nonce, self._ephemeral_public(), context
        )
        self._advance(HandshakeState.WAITING, PEER_ANSWER_BYTES)
        return self._hello

    def receive(self, message: Buffer) -> bytes:
        """Take the other side's next message; returns what to send now. Raises HandshakeFailed, for good."""
        state, expects = self._state, self.expects
        self._advance(HandshakeState.FAILED, 0)
        data = bytes(message)
        if not expects or len(data) != expects:
            raise HandshakeFailed(f"a message of {len(data)} bytes, not {expects}")
        if self._initiator:
            return self._receive_answer(data)
        if state is HandshakeState.START:
            return self._receive_hello(data)
        check_signature(self.peer_public, data, INITIATOR_DOMAIN + self._transcript, "the other head")
        self._advance(HandshakeState.DONE, 0)
        return b""

    def _receive_hello(self, data: bytes) -> bytes:
        magic, version, context_bytes, public, _, ephemeral, context = PEER_HELLO.unpack(data)
        if magic != PEER_HELLO_MAGIC or version != VERSION or context_bytes > CONTEXT_BYTES_MAX:
            raise HandshakeFailed(f"this is no hello of version {VERSION}")
        if any(context[context_bytes:]):
            raise HandshakeFailed("the context is not padded with zeroes")
        self._check_peer(public)
        self.context = context[:context_bytes]
        own = self._key.public_key().public_bytes_raw()
        body = PEER_ANSWER.pack(PEER_ANSWER_MAGIC, VERSION, 0, own, self._nonce, self._ephemeral_public())
        self._derive(data, body, ephemeral, public)
        self._advance(HandshakeState.WAITING, PEER_PROOF_BYTES)
        return body + self._key.sign(RESPONDER_DOMAIN + self._transcript)

    def _receive_answer(self, data: bytes) -> bytes:
        body = data[:PEER_ANSWER_BODY_BYTES]
        magic, version, zero, public, _, ephemeral = PEER_ANSWER.unpack(body)
        if magic != PEER_ANSWER_MAGIC or version != VERSION or zero:
            raise HandshakeFailed(f"this is no answer of version {VERSION}")
        self._check_peer(public)
        self._derive(self._hello, body, ephemeral, self._key.public_key().public_bytes_raw())
        check_signature(
            public, data[PEER_ANSWER_BODY_BYTES:], RESPONDER_DOMAIN + self._transcript, "the other head"
        )  # fmt: skip
        self._advance(HandshakeState.DONE, 0)
        return self._key.sign(INITIATOR_DOMAIN + self._transcript)

    def _check_peer(self, public: bytes) -> None:
        if public not in self._peers:
            raise HandshakeFailed("the other head is not one that is expected here")
        if public == self._key.public_key().public_bytes_raw():
            raise HandshakeFailed("a head does not speak with itself")
        self.peer_public = public

    def _derive(self, hello: bytes, answer_body: bytes, ephemeral: bytes, initiator_public: bytes) -> None:
        self._transcript = hashlib.sha256(PEER_DOMAIN + hello + answer_body).digest()
        self._keys = SessionKeys(agree(self._ephemeral, ephemeral), self._transcript, initiator_public)

    @property
    def _ephemeral(self) -> X25519PrivateKey:
        """Made when it is needed: a connection that says nothing costs none."""
        if self._made is None:
            self._made = X25519PrivateKey.from_private_bytes(self._env.entropy.bytes(KEY_BYTES))
        return self._made

    def _ephemeral_public(self) -> bytes:
        return self._ephemeral.public_key().public_bytes_raw()

    def _advance(self, state: HandshakeState, expects: int) -> None:
        self._state = state
        self.expects = expects
