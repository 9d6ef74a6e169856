"""The messages of DH-HMAC-CHAP as bytes.

NVM Express Base 2.0, 8.13.2 (common messages) and 8.13.5 (DH-HMAC-CHAP). Little-endian, but for Diffie-Hellman values,
which are big-endian. Each fixed part exists twice, as a construct definition and as a `struct.Struct`; a test holds
them equal. Lengths are checked before anything is cut out; what is reserved is not looked at, as the standard wants.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Padding
from construct import Struct as Layout

from sled_controller.errors import AuthenticationFailed
from sled_controller.fabric.dhchap.algorithms import DIGEST_BYTES_MAX, VALUE_BYTES_MAX

SECURITY_PROTOCOL: Final = 0xE9  # SECP: NVMe in-band authentication
PROTOCOL_SPECIFIC: Final = 0x0101  # SPSP1 and SPSP0
DHCHAP: Final = 1  # AUTHID of a protocol descriptor
NO_SECURE_CHANNEL: Final = 0  # SC_C
IDENTIFIERS_MAX: Final = 30  # of hashes, and of groups, in one descriptor
AUTHENTICATION_FAILED: Final = 1  # the one reason code; the explanation says more


class MessageKind(IntEnum):
    """AUTH_TYPE << 8 | AUTH_ID."""

    NEGOTIATE = 0x000
    FAILURE2 = 0x0F0
    FAILURE1 = 0x0F1
    CHALLENGE = 0x101
    REPLY = 0x102
    SUCCESS1 = 0x103
    SUCCESS2 = 0x104


class Explanation(IntEnum):
    """Reason code explanations of AUTH_Failure1 and AUTH_Failure2."""

    FAILED = 0x01
    PROTOCOL_NOT_USABLE = 0x02
    SECURE_CHANNEL_MISMATCH = 0x03
    HASH_NOT_USABLE = 0x04
    GROUP_NOT_USABLE = 0x05
    INCORRECT_PAYLOAD = 0x06
    INCORRECT_MESSAGE = 0x07


def explanation_name(explanation: int) -> str:
    """`HASH_NOT_USABLE` and the like; hexadecimal when it has no name here."""
    try:
        return Explanation(explanation).name
    except ValueError:
        return f"EXPLANATION_{explanation:02X}"


HEADER_LAYOUT: Final = Layout("auth_type" / Int8ul, "auth_id" / Int8ul, Padding(2), "t_id" / Int16ul)
DESCRIPTOR_LAYOUT: Final = Layout(
    "auth_id" / Int8ul,
    Padding(1),
    "hashes" / Int8ul,
    "groups" / Int8ul,
    "hash_ids" / Bytes(IDENTIFIERS_MAX),
    "group_ids" / Bytes(IDENTIFIERS_MAX),
)
NEGOTIATE_LAYOUT: Final = Layout(
    "header" / HEADER_LAYOUT,
    "secure_channel" / Int8ul,
    "count" / Int8ul,
    "descriptors" / Array(lambda this: this.count, DESCRIPTOR_LAYOUT),
)
CHALLENGE_LAYOUT: Final = Layout(
    "header" / HEADER_LAYOUT,
    "hash_bytes" / Int8ul,
    Padding(1),
    "hash_id" / Int8ul,
    "group_id" / Int8ul,
    "value_bytes" / Int16ul,
    "sequence" / Int32ul,
    "challenge" / Bytes(lambda this: this.hash_bytes),
    "value" / Bytes(lambda this: this.value_bytes),
)
REPLY_LAYOUT: Final = Layout(
    "header" / HEADER_LAYOUT,
    "hash_bytes" / Int8ul,
    Padding(1),
    "challenge_valid" / Int8ul,
    Padding(1),
    "value_bytes" / Int16ul,
    "sequence" / Int32ul,
    "response" / Bytes(lambda this: this.hash_bytes),
    "challenge" / Bytes(lambda this: this.hash_bytes),
    "value" / Bytes(lambda this: this.value_bytes),
)
SUCCESS1_LAYOUT: Final = Layout(
    "header" / HEADER_LAYOUT,
    "hash_bytes" / Int8ul,
    Padding(1),
    "response_valid" / Int8ul,
    Padding(7),
    "response" / Bytes(lambda this: this.hash_bytes if this.response_valid else 0),
)
SUCCESS2_LAYOUT: Final = Layout("header" / HEADER_LAYOUT, Padding(10))
FAILURE_LAYOUT: Final = Layout("header" / HEADER_LAYOUT, "reason" / Int8ul, "explanation" / Int8ul)

HEADER: Final = Struct("<BB2xH")
DESCRIPTOR: Final = Struct("<BxBB30s30s")
NEGOTIATE: Final = Struct("<BB2xHBB")
CHALLENGE: Final = Struct("<BB2xHBxBBHI")
REPLY: Final = Struct("<BB2xHBxBxHI")
SUCCESS1: Final = Struct("<BB2xHBxB7x")
SUCCESS2: Final = Struct("<BB2xH10x")
FAILURE: Final = Struct("<BB2xHBB")

MESSAGE_BYTES_MAX: Final = 4096
"""What one command may carry: more than the longest message, and what Linux takes room for."""
assert REPLY.size + 2 * DIGEST_BYTES_MAX + VALUE_BYTES_MAX <= MESSAGE_BYTES_MAX


def kind_of(data: bytes) -> tuple[MessageKind, int]:
    """(kind, T_ID) of a message; raises AuthenticationFailed."""
    if len(data) < HEADER.size:
        raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, f"{len(data)} bytes are no message")
    auth_type, auth_id, t_id = HEADER.unpack_from(data)
    try:
        return MessageKind(auth_type << 8 | auth_id), t_id
    except ValueError:
        text = f"message {auth_type:#x}/{auth_id:#x} is unknown"
        raise AuthenticationFailed(Explanation.INCORRECT_MESSAGE, text) from None


@dataclass(frozen=True, slots=True)
class Negotiate:
    """AUTH_Negotiate: what the host can do, by identifiers that need not be known here."""

    t_id: int
    secure_channel: int
    hashes: tuple[int, ...]
    groups: tuple[int, ...]

    def encode(self) -> bytes:
        """With one descriptor, that of DH-HMAC-CHAP."""
        return NEGOTIATE.pack(*_kind(MessageKind.NEGOTIATE), self.t_id, self.secure_channel, 1) + DESCRIPTOR.pack(
            DHCHAP, len(self.hashes), len(self.groups), bytes(self.hashes), bytes(self.groups)
        )

    @classmethod
    def decode(cls, data: bytes) -> "Negotiate":
        """Take the first descriptor of DH-HMAC-CHAP; raises AuthenticationFailed."""
        _at_least(data, NEGOTIATE.size)
        _, _, t_id, secure_channel, count = NEGOTIATE.unpack_from(data)
        _exactly(data, NEGOTIATE.size + count * DESCRIPTOR.size)
        for auth_id, hashes, groups, hash_ids, group_ids in DESCRIPTOR.iter_unpack(data[NEGOTIATE.size :]):
            if auth_id == DHCHAP:
                if hashes > IDENTIFIERS_MAX or groups > IDENTIFIERS_MAX:
                    raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, f"{hashes} hashes, {groups} groups")
                return cls(t_id, secure_channel, tuple(hash_ids[:hashes]), tuple(group_ids[:groups]))
        raise AuthenticationFailed(Explanation.PROTOCOL_NOT_USABLE, "DH-HMAC-CHAP is not offered")


@dataclass(frozen=True, slots=True)
class Challenge:
    """DH-HMAC-CHAP_Challenge: what the controller chose, its challenge C1, sequence number S1 and DH value."""

    t_id: int
    hash_id: int
    group_id: int
    sequence: int
    challenge: bytes
    value: bytes

    def encode(self) -> bytes:
        """16 bytes, the challenge, the value."""
        fixed = CHALLENGE.pack(
            *_kind(MessageKind.CHALLENGE), self.t_id, len(self.challenge), self.hash_id, self.group_id,
            len(self.value), self.sequence,
        )  # fmt: skip
        return fixed + self.challenge + self.value

    @classmethod
    def decode(cls, data: bytes) -> "Challenge":
        """What follows the message is padding of the buffer that was asked for. Raises AuthenticationFailed."""
        _at_least(data, CHALLENGE.size)
        _, _, t_id, hash_bytes, hash_id, group_id, value_bytes, sequence = CHALLENGE.unpack_from(data)
        middle = CHALLENGE.size + hash_bytes
        _at_least(data, middle + value_bytes)
        challenge, value = data[CHALLENGE.size : middle], data[middle : middle + value_bytes]
        return cls(t_id, hash_id, group_id, sequence, challenge, value)


@dataclass(frozen=True, slots=True)
class Reply:
    """DH-HMAC-CHAP_Reply: the host's response R1 and DH value, and its challenge C2 if it wants the controller's proof.

    Without a challenge its place is zeroes; the sequence number then says nothing.
    """

    t_id: int
    sequence: int
    response: bytes
    challenge: bytes | None
    value: bytes

    def encode(self) -> bytes:
        """16 bytes, the response, the challenge, the value."""
        fixed = REPLY.pack(
            *_kind(MessageKind.REPLY), self.t_id, len(self.response), self.challenge is not None, len(self.value),
            self.sequence,
        )  # fmt: skip
        return fixed + self.response + (self.challenge or bytes(len(self.response))) + self.value

    @classmethod
    def decode(cls, data: bytes) -> "Reply":
        """Raises AuthenticationFailed."""
        _at_least(data, REPLY.size)
        _, _, t_id, hash_bytes, challenge_valid, value_bytes, sequence = REPLY.unpack_from(data)
        _exactly(data, REPLY.size + 2 * hash_bytes + value_bytes)
        if challenge_valid > 1 or (challenge_valid and not sequence):
            # A sequence number of 0 with a challenge asks for a secure channel, which was not negotiated.
            text = f"CVALID {challenge_valid} with sequence number {sequence}"
            raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, text)
        middle = REPLY.size + hash_bytes
        challenge = data[middle : middle + hash_bytes] if challenge_valid else None
        return cls(t_id, sequence, data[REPLY.size : middle], challenge, data[middle + hash_bytes :])


@dataclass(frozen=True, slots=True)
class Success1:
    """DH-HMAC-CHAP_Success1: the host is believed; with the controller's response R2 where the host asked for it.

    `hash_bytes` is said also without a response: Linux looks at it.
    """

    t_id: int
    hash_bytes: int
    response: bytes | None

    def encode(self) -> bytes:
        """16 bytes and the response, if there is one."""
        valid = self.response is not None
        return SUCCESS1.pack(*_kind(MessageKind.SUCCESS1), self.t_id, self.hash_bytes, valid) + (self.response or b"")

    @classmethod
    def decode(cls, data: bytes) -> "Success1":
        """What follows the message is padding of the buffer that was asked for. Raises AuthenticationFailed."""
        _at_least(data, SUCCESS1.size)
        _, _, t_id, hash_bytes, valid = SUCCESS1.unpack_from(data)
        if not valid:
            return cls(t_id, hash_bytes, None)
        _at_least(data, SUCCESS1.size + hash_bytes)
        return cls(t_id, hash_bytes, data[SUCCESS1.size : SUCCESS1.size + hash_bytes])


@dataclass(frozen=True, slots=True)
class Success2:
    """DH-HMAC-CHAP_Success2: the controller is believed too."""

    t_id: int

    def encode(self) -> bytes:
        """16 bytes."""
        return SUCCESS2.pack(*_kind(MessageKind.SUCCESS2), self.t_id)

    @classmethod
    def decode(cls, data: bytes) -> "Success2":
        """Raises AuthenticationFailed."""
        _exactly(data, SUCCESS2.size)
        return cls(SUCCESS2.unpack(data)[2])


@dataclass(frozen=True, slots=True)
class Failure:
    """AUTH_Failure1 from the controller, AUTH_Failure2 from the host; an unknown explanation stays a number."""

    kind: MessageKind
    t_id: int
    explanation: int

    def encode(self) -> bytes:
        """8 bytes."""
        return FAILURE.pack(*_kind(self.kind), self.t_id, AUTHENTICATION_FAILED, self.explanation)

    @classmethod
    def decode(cls, data: bytes) -> "Failure":
        """What follows the message is padding of the buffer that was asked for. Raises AuthenticationFailed."""
        _at_least(data, FAILURE.size)
        kind, t_id = kind_of(data)
        return cls(kind, t_id, FAILURE.unpack_from(data)[4])


def _kind(kind: MessageKind) -> tuple[int, int]:
    return kind >> 8, kind & 0xFF


def _at_least(data: bytes, size: int) -> None:
    if len(data) < size:
        raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, f"{len(data)} bytes of message, {size} are needed")


def _exactly(data: bytes, size: int) -> None:
    if len(data) != size:
        raise AuthenticationFailed(Explanation.INCORRECT_PAYLOAD, f"{len(data)} bytes of message, not {size}")
