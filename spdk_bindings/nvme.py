"""NVMe names and numbers: opcodes, status codes, command and completion layouts, fabrics properties.

Numbers come from NVM Express Base 2.0, NVM Command Set 1.0 and NVMe over Fabrics 1.1 unless marked as vendor
specific. What a controller answers to Identify is built in `identify.py`, log pages and the reservation report in
`log_pages.py`. The construct definitions say what a structure is; the `struct.Struct`s beside them are for hot
paths and a test holds the two equal.
"""

import struct
from enum import IntEnum
from typing import Final

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

NVME_VERSION: Final = 0x0002_0000
SQE_BYTES: Final = 64
CQE_BYTES: Final = 16
NSID_ALL: Final = 0xFFFF_FFFF
NVM_COMMAND_SET: Final = 0  # CSI
DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"
CONTROLLER_ID_DYNAMIC: Final = 0xFFFF


class AdminOpcode(IntEnum):
    """Admin commands (Base 2.0, figure 138) and ours; bits 1:0 of a vendor opcode encode the data direction."""

    GET_LOG_PAGE = 0x02
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_DOWNLOAD = 0x11
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    FABRICS = 0x7F
    SESSION_RECEIVE = 0xC2
    SESSION_SEND = 0xC5
    ATTACH = 0xC9
    RECEIPT = 0xCE
    KEYSET_UPDATE = 0xD1
    NAMESPACE_CREATE = 0xD5
    NAMESPACE_DELETE = 0xD8
    DETACH = 0xDC
    RETIRE = 0xE1
    TIME_STATEMENT = 0xE5


class IoOpcode(IntEnum):
    """Standard commands of an I/O queue (Base 2.0 figure 346, NVM Command Set 1.0)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    RESERVATION_RELEASE = 0x15
    FABRICS = 0x7F


class VendorIo(IntEnum):
    """Credentialed I/O commands: vendor specific, their SQE is `VENDOR_SQE`. Deallocate names one range."""

    WRITE = 0x81
    READ = 0x82
    FLUSH = 0x84
    WRITE_ZEROES = 0x88
    DEALLOCATE = 0x8C


class FabricsType(IntEnum):
    """Fabrics command types (opcode 7Fh)."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTHENTICATION_SEND = 0x05
    AUTHENTICATION_RECEIVE = 0x06
    DISCONNECT = 0x08


class Property(IntEnum):
    """Offsets of controller properties (Base 2.0, 3.1.3)."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20


PROPERTY_OFFSET_MAX: Final = 0xFFF
PROPERTY_BYTES: Final = {Property.CAP: 8, Property.VS: 4, Property.CC: 4, Property.CSTS: 4, Property.NSSR: 4}

CC_ENABLE: Final = 1 << 0
CC_SHUTDOWN_MASK: Final = 3 << 14
CAP_SUBSYSTEM_RESET: Final = 1 << 36
NSSR_RESET: Final = 0x4E56_4D65  # "NVMe" written to NSSR resets the subsystem
CSTS_READY: Final = 1 << 0
CSTS_FATAL: Final = 1 << 1
CSTS_SHUTDOWN_COMPLETE: Final = 2 << 2


def capabilities(queue_entries: int, timeout_500ms: int = 20) -> int:
    """The CAP property: maximum queue entries (1..65536), contiguous queues, NVM command set, 4 KiB pages."""
    if not 1 <= queue_entries <= 65536:
        raise ValueError(f"queue_entries must be 1..65536, not {queue_entries}")
    return (queue_entries - 1) | 1 << 16 | timeout_500ms << 24 | 1 << 37


class Status(IntEnum):
    """Status values as `SCT << 8 | SC` (Base 2.0, 3.3.3.2.1); see `cqe_status` for the CQE field."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    POWER_LOSS_ABORT = 0x005
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_COUNT = 0x00E
    SGL_LENGTH_INVALID = 0x00F
    SGL_TYPE_INVALID = 0x011
    SGL_OFFSET_INVALID = 0x016
    HOST_IDENTIFIER_INCONSISTENT = 0x018
    KEEP_ALIVE_EXPIRED = 0x019
    KEEP_ALIVE_INVALID = 0x01A
    ABORTED_PREEMPT = 0x01B
    NAMESPACE_WRITE_PROTECTED = 0x020
    COMMAND_INTERRUPTED = 0x021
    TRANSIENT_TRANSPORT_ERROR = 0x022
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    RESERVATION_CONFLICT = 0x083
    FIRMWARE_SLOT_INVALID = 0x106
    FIRMWARE_IMAGE_INVALID = 0x107
    INVALID_LOG_PAGE = 0x109
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x110  # the commit was done; the reset activates what it named
    FIRMWARE_PROHIBITED = 0x113
    OVERLAPPING_RANGE = 0x114
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_ID_UNAVAILABLE = 0x116
    ASYNC_EVENT_LIMIT = 0x105
    CONNECT_INCOMPATIBLE_FORMAT = 0x180
    CONNECT_CONTROLLER_BUSY = 0x181
    CONNECT_INVALID_PARAMETERS = 0x182
    CONNECT_RESTART_DISCOVERY = 0x183
    CONNECT_INVALID_HOST = 0x184
    AUTHENTICATION_REQUIRED = 0x191
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    END_TO_END_GUARD_ERROR = 0x282
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286
    INTERNAL_PATH_ERROR = 0x300
    ANA_PERSISTENT_LOSS = 0x301
    ANA_INACCESSIBLE = 0x302
    ANA_TRANSITION = 0x303
    HOST_PATHING_ERROR = 0x370
    FENCED_OFF = 0x7C0
    SUPERSEDED = 0x7C1
    REFUSED = 0x7C2
    BAD_MAC = 0x7C3
    NOT_ATTACHED = 0x7C4
    SESSION_REQUIRED = 0x7C5
    CREDENTIAL_EXPIRED = 0x7C6


DNR: Final = 1 << 14
MORE: Final = 1 << 13
STATUS_MASK: Final = 0x7FF


def cqe_status(status: int, do_not_retry: bool = False) -> int:
    """The 16-bit status field of a CQE (phase tag 0). A vendor status (type 7) always carries DNR."""
    if do_not_retry or status >> 8 == 7:
        status |= DNR
    return status << 1


def status_of_cqe(field: int) -> tuple[int, bool]:
    """(`SCT << 8 | SC`, do-not-retry) of a CQE's status field."""
    value = field >> 1
    return value & STATUS_MASK, bool(value & DNR)


def status_name(status: int) -> str:
    """`LBA_OUT_OF_RANGE` and the like, for logs and errors; hexadecimal when it has no name here."""
    try:
        return Status(status & STATUS_MASK).name
    except ValueError:
        return f"STATUS_{status & STATUS_MASK:03X}"


class LogPage(IntEnum):
    """Log identifiers (Base 2.0, figure 202; NVMe-oF discovery; C0h-C3h ours)."""

    SUPPORTED = 0x00
    ERROR = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_SUPPORTED = 0x05
    ANA = 0x0C
    DISCOVERY = 0x70
    RESERVATION = 0x80
    FENCE = 0xC0
    NAMESPACE_TABLE = 0xC1
    SLED_STATUS = 0xC2
    FIRMWARE = 0xC3


class IdentifyCns(IntEnum):
    """What Identify asks for (Base 2.0, figure 273)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    IO_NAMESPACE = 0x05
    IO_CONTROLLER = 0x06
    IO_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13


class Feature(IntEnum):
    """Feature identifiers (Base 2.0, figure 317)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    KEEP_ALIVE_TIMER = 0x0F
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83


SGL_FLAGS: Final = 0x40
"""Flags byte of an SQE whose data pointer is an SGL; fabrics commands have no other kind."""
SGL_IN_CAPSULE: Final = 0x01
"""Data block descriptor, offset subtype: the data follows the SQE in the capsule."""
SGL_TRANSPORT: Final = 0x5A
"""Transport data block descriptor: the transport moves the data (R2T or C2HData)."""

SGL = struct.Struct("<QI3xB")
SGL_FORMAT = Struct("address" / Int64ul, "length" / Int32ul, Padding(3), "identifier" / Int8ul)

CQE = struct.Struct("<IIHHHH")
CQE_FORMAT = Struct(
    "dw0" / Int32ul, "dw1" / Int32ul, "sq_head" / Int16ul, "sq_id" / Int16ul, "cid" / Int16ul, "status" / Int16ul
)

SQE = struct.Struct("<BBHIIIQ16s6I")
SQE_FORMAT = Struct(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "nsid" / Int32ul,
    "cdw2" / Int32ul,
    "cdw3" / Int32ul,
    "metadata" / Int64ul,
    "sgl" / Bytes(16),
    "cdw10" / Int32ul,
    "cdw11" / Int32ul,
    "cdw12" / Int32ul,
    "cdw13" / Int32ul,
    "cdw14" / Int32ul,
    "cdw15" / Int32ul,
)

VENDOR_SQE = struct.Struct("<BBHIHHIQ16sQ16s")
"""opcode, flags, cid, nsid, slot, nlb (0-based), control, zero, SGL1 (16 bytes), slba, MAC (16 bytes)."""
VENDOR_SQE_FORMAT = Struct(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "nsid" / Int32ul,
    "slot" / Int16ul,
    "nlb" / Int16ul,
    "control" / Int32ul,
    "zero" / Int64ul,
    "sgl" / Bytes(16),
    "slba" / Int64ul,
    "mac" / Bytes(16),
)
VENDOR_MAC_OFFSET: Final = 48
MAC_BYTES: Final = 16
CONTROL_FUA: Final = 1 << 0

CONNECT_SQE = struct.Struct("<BBHB19x16sHHHBxI12x")
"""opcode, flags, cid, fctype, SGL1, record format, queue id, SQ size (0-based), attributes, keep-alive ms."""
CONNECT_SQE_FORMAT = Struct(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "fctype" / Int8ul,
    Padding(19),
    "sgl" / Bytes(16),
    "record_format" / Int16ul,
    "queue_id" / Int16ul,
    "sq_size" / Int16ul,
    "attributes" / Int8ul,
    Padding(1),
    "keep_alive_ms" / Int32ul,
    Padding(12),
)

CONNECT_DATA = struct.Struct("<16sH238x256s256s256x")
"""host id, controller id, subsystem NQN, host NQN (zero padded); 1024 bytes."""
CONNECT_DATA_FORMAT = Struct(
    "host_id" / Bytes(16),
    "controller_id" / Int16ul,
    Padding(238),
    "subsystem_nqn" / Bytes(256),
    "host_nqn" / Bytes(256),
    Padding(256),
)

PROPERTY_SQE = struct.Struct("<BBHB35xB3xIQ8x")
"""opcode, flags, cid, fctype, attributes (size: 0 = 4 bytes, 1 = 8 bytes), offset, value (Property Set)."""
PROPERTY_SQE_FORMAT = Struct(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "fctype" / Int8ul,
    Padding(35),
    "attributes" / Int8ul,
    Padding(3),
    "offset" / Int32ul,
    "value" / Int64ul,
    Padding(8),
)

DATASET_RANGE = struct.Struct("<IIQ")
DATASET_RANGE_FORMAT = Struct("attributes" / Int32ul, "blocks" / Int32ul, "slba" / Int64ul)

NAMESPACE_ENTRY = struct.Struct("<IHHQ16s")
"""One row of log page C1h: nsid, column, zero, blocks, volume id; 32 bytes."""
NAMESPACE_ENTRY_FORMAT = Struct(
    "nsid" / Int32ul, "column" / Int16ul, "zero" / Const(0, Int16ul), "blocks" / Int64ul, "volume" / Bytes(16)
)


def sgl_in_capsule(length: int, offset: int = 0) -> bytes:
    """The SGL descriptor of `length` bytes that follow the SQE in its capsule."""
    return SGL.pack(offset, length, SGL_IN_CAPSULE)


def sgl_transport(length: int) -> bytes:
    """The SGL descriptor of `length` bytes that the transport moves in PDUs of its own."""
    return SGL.pack(0, length, SGL_TRANSPORT)


def uuid_nqn(uuid: object) -> str:
    """The NQN of the subsystem, a sled or a volume, with this UUID (Base 2.0, 4.5)."""
    return f"nqn.2014-08.org.nvmexpress:uuid:{uuid}"
