"""The NBD wire format: numbers and structures, fixed newstyle negotiation and the transmission phase.

Source: the NBD specification, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. All integers are
big endian. Each structure is defined once with construct, and once as a precompiled `struct.Struct` for the paths that
run per request; a test holds the two equal.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

from construct import Bytes, Const, GreedyBytes, GreedyRange, Int16ub, Int32ub, Int64ub, PrefixedArray, Struct, this

NBD_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

BLOCK_BYTES_MIN: Final = 4096
BLOCK_BYTES_PREFERRED: Final = 4096
PAYLOAD_BYTES_MAX: Final = 32 * 1024 * 1024
"""The largest READ or WRITE (the specification's recommendation, and what qemu and libnbd assume unasked)."""

STRING_BYTES_MAX: Final = 4096
"""Names and meta context queries are no longer than this ("Values", in the specification)."""

META_CONTEXT_ALLOCATION: Final = "base:allocation"
META_CONTEXT_ALLOCATION_ID: Final = 1


class HandshakeFlag(IntFlag):
    """Offered by the server, echoed by the client."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """NBD_OPT_*"""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


REPLY_ERROR_BIT: Final = 1 << 31


class OptionReply(IntEnum):
    """NBD_REP_*; bit 31 marks an error, whose payload is a text for people."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = REPLY_ERROR_BIT + 1
    ERR_POLICY = REPLY_ERROR_BIT + 2
    ERR_INVALID = REPLY_ERROR_BIT + 3
    ERR_PLATFORM = REPLY_ERROR_BIT + 4
    ERR_TLS_REQD = REPLY_ERROR_BIT + 5
    ERR_UNKNOWN = REPLY_ERROR_BIT + 6
    ERR_SHUTDOWN = REPLY_ERROR_BIT + 7
    ERR_BLOCK_SIZE_REQD = REPLY_ERROR_BIT + 8
    ERR_TOO_BIG = REPLY_ERROR_BIT + 9


class Info(IntEnum):
    """NBD_INFO_*"""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """NBD_FLAG_*: what the export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """NBD_CMD_*"""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """NBD_CMD_FLAG_*"""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(IntEnum):
    """NBD_REPLY_TYPE_*: kinds of structured reply chunks."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


CHUNK_DONE: Final = 1
"""NBD_REPLY_FLAG_DONE: the last chunk of its reply."""


class ExtentFlag(IntFlag):
    """NBD_STATE_* of base:allocation."""

    DATA = 0
    HOLE = 1 << 0
    ZERO = 1 << 1


class NbdError(IntEnum):
    """The error numbers of the specification ("Error values"); no other may be sent."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


NBD_ERRORS: Final = frozenset(int(number) for number in NbdError)


def wire_error(number: int) -> int:
    """The error number of the specification for a Linux errno: itself when listed, else EIO."""
    return number if number in NBD_ERRORS else NbdError.EIO


# --- construct: the definitions --------------------------------------------------------------------------------------

ServerHello = Struct(
    "magic" / Const(NBD_MAGIC, Int64ub), "option_magic" / Const(OPTION_MAGIC, Int64ub), "flags" / Int16ub
)
ClientHello = Struct("flags" / Int32ub)
OptionHeader = Struct("magic" / Const(OPTION_MAGIC, Int64ub), "option" / Int32ub, "length" / Int32ub)
OptionReplyHeader = Struct(
    "magic" / Const(OPTION_REPLY_MAGIC, Int64ub), "option" / Int32ub, "reply" / Int32ub, "length" / Int32ub
)
ExportNameReply = Struct("size_bytes" / Int64ub, "flags" / Int16ub)
InfoExport = Struct("info" / Const(int(Info.EXPORT), Int16ub), "size_bytes" / Int64ub, "flags" / Int16ub)
InfoBlockSize = Struct(
    "info" / Const(int(Info.BLOCK_SIZE), Int16ub), "minimum" / Int32ub, "preferred" / Int32ub, "maximum" / Int32ub
)
InfoText = Struct("info" / Int16ub, "text" / GreedyBytes)
LengthAndBytes = Struct("length" / Int32ub, "data" / Bytes(this.length))
GoRequest = Struct("name" / LengthAndBytes, "infos" / PrefixedArray(Int16ub, Int16ub))
MetaContextRequest = Struct("name" / LengthAndBytes, "queries" / PrefixedArray(Int32ub, LengthAndBytes))
MetaContextReply = Struct("context_id" / Int32ub, "name" / GreedyBytes)
Request = Struct(
    "magic" / Const(REQUEST_MAGIC, Int32ub),
    "flags" / Int16ub,
    "command" / Int16ub,
    "cookie" / Int64ub,
    "offset" / Int64ub,
    "length" / Int32ub,
)
SimpleReply = Struct("magic" / Const(SIMPLE_REPLY_MAGIC, Int32ub), "error" / Int32ub, "cookie" / Int64ub)
ChunkHeader = Struct(
    "magic" / Const(STRUCTURED_REPLY_MAGIC, Int32ub),
    "flags" / Int16ub,
    "kind" / Int16ub,
    "cookie" / Int64ub,
    "length" / Int32ub,
)
OffsetHole = Struct("offset" / Int64ub, "length" / Int32ub)
BlockStatus = Struct("context_id" / Int32ub, "extents" / GreedyRange(Struct("length" / Int32ub, "flags" / Int32ub)))
ErrorChunk = Struct("error" / Int32ub, "text_length" / Int16ub, "text" / Bytes(this.text_length))

# --- struct: the same, for the paths that run per request -----------------------------------------------------------

SERVER_HELLO: Final = struct.Struct(">QQH")
CLIENT_HELLO: Final = struct.Struct(">I")
OPTION_HEADER: Final = struct.Struct(">QII")
OPTION_REPLY_HEADER: Final = struct.Struct(">QIII")
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
EXPORT_NAME_ZEROES: Final = bytes(124)
INFO_EXPORT: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
CHUNK_HEADER: Final = struct.Struct(">IHHQI")
CHUNK_OFFSET: Final = struct.Struct(">Q")
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
"""ChunkHeader followed by the offset of OFFSET_DATA."""
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")
"""ChunkHeader followed by OffsetHole."""
OFFSET_HOLE: Final = struct.Struct(">QI")
EXTENT: Final = struct.Struct(">II")
ERROR_CHUNK: Final = struct.Struct(">IH")
"""ErrorChunk without its text."""


def option_reply(option: int, reply: int, payload: bytes = b"") -> bytes:
    """One reply to an option; an error's payload is the text for people."""
    return OPTION_REPLY_HEADER.pack(OPTION_REPLY_MAGIC, option, reply, len(payload)) + payload


def option_request(option: int, payload: bytes = b"") -> bytes:
    """One option as a client sends it."""
    return OPTION_HEADER.pack(OPTION_MAGIC, option, len(payload)) + payload


def block_size_info() -> bytes:
    """The payload of NBD_REP_INFO for NBD_INFO_BLOCK_SIZE."""
    return INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX)


def parse_go(payload: bytes) -> tuple[str, list[int]]:
    """Name and requested infos of an NBD_OPT_INFO or NBD_OPT_GO payload; ValueError when it is malformed."""
    name, rest = _take_string(payload, 0)
    if len(payload) - rest < U16.size:
        raise ValueError("the list of information requests is missing")
    (count,) = U16.unpack_from(payload, rest)
    if len(payload) != rest + U16.size * (count + 1):
        raise ValueError("the list of information requests does not fill the option")
    return name, list(struct.unpack_from(f">{count}H", payload, rest + U16.size))


def parse_meta_context(payload: bytes) -> tuple[str, list[str]]:
    """Name and queries of a LIST_META_CONTEXT or SET_META_CONTEXT payload; ValueError when it is malformed."""
    name, position = _take_string(payload, 0)
    if len(payload) - position < U32.size:
        raise ValueError("the number of queries is missing")
    (count,) = U32.unpack_from(payload, position)
    position += U32.size
    if count * U32.size > len(payload) - position:
        raise ValueError("more queries are announced than the option holds")
    queries: list[str] = []
    for _ in range(count):
        query, position = _take_string(payload, position)
        queries.append(query)
    if position != len(payload):
        raise ValueError("bytes follow the last query")
    return name, queries


def pack_string(text: str) -> bytes:
    """A string behind its length, as options carry it."""
    data = text.encode()
    return U32.pack(len(data)) + data


def _take_string(payload: bytes, position: int) -> tuple[str, int]:
    if len(payload) - position < U32.size:
        raise ValueError("a length is missing")
    (length,) = U32.unpack_from(payload, position)
    position += U32.size
    if length > STRING_BYTES_MAX:
        raise ValueError(f"a string of {length} bytes, at most {STRING_BYTES_MAX} are allowed")
    if length > len(payload) - position:
        raise ValueError("a string runs past the option's end")
    return payload[position : position + length].decode(), position + length
