"""The PDUs of NVMe/TCP: their structures, their digests, and what makes one of them illegal.

Source: NVM Express TCP Transport Specification 1.0, section 3.6; capsules from NVM Express Base 2.0 section 3.3.2
and 3.3.3. All fields are little-endian. Each structure exists twice: as a construct definition, which is the
readable one, and as a precompiled `struct.Struct` for the hot paths; a test holds the two equal.
"""

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Padding
from construct import Struct as Layout
from crc32c import crc32c

from spdk_bindings.device import Buffer

PDU_VERSION: Final = 0  # PFV of the 1.0 format
DEFAULT_PORT: Final = 4420
DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"

COMMON_BYTES: Final = 8
SQE_BYTES: Final = 64
CQE_BYTES: Final = 16
DIGEST_BYTES: Final = 4
IC_BYTES: Final = 128
CAPSULE_CMD_BYTES: Final = COMMON_BYTES + SQE_BYTES
CAPSULE_RESP_BYTES: Final = COMMON_BYTES + CQE_BYTES
DATA_HEADER_BYTES: Final = 24
TERM_HEADER_BYTES: Final = 24
TERM_BYTES_MAX: Final = 152  # a header and at most 128 bytes of the PDU in error
CONNECT_DATA_BYTES: Final = 1024


class PduType(IntEnum):
    """The type byte; odd ones travel from the controller to the host."""

    IC_REQ = 0x00
    IC_RESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


class PduFlag(IntFlag):
    """The FLAGS byte."""

    HDGST = 0x01
    DDGST = 0x02
    LAST = 0x04  # last PDU of the data transfer
    SUCCESS = 0x08  # C2HData only: no CapsuleResp follows


class Digest(IntFlag):
    """The DGST field of ICReq and ICResp."""

    HEADER = 0x01
    DATA = 0x02


class FatalError(IntEnum):
    """FES of a TermReq."""

    INVALID_HEADER_FIELD = 0x01  # FEI: byte offset of the field
    PDU_SEQUENCE = 0x02
    HEADER_DIGEST = 0x03  # FEI: the digest received
    DATA_OUT_OF_RANGE = 0x04
    LIMIT_EXCEEDED = 0x05
    UNSUPPORTED_PARAMETER = 0x06  # FEI: byte offset of the parameter


# SGL descriptor types (Base 2.0, 4.1.2): identifier = type << 4 | subtype.
SGL_IN_CAPSULE: Final = 0x01  # data block, address is an offset into the capsule's data
SGL_TRANSPORT: Final = 0x5A  # transport data block: C2HData, or R2T and H2CData
PSDT_SGL: Final = 0x40  # SQE byte 1: SGLs are used

# --- construct definitions -------------------------------------------------------------------------------------

COMMON_LAYOUT: Final = Layout("type" / Int8ul, "flags" / Int8ul, "hlen" / Int8ul, "pdo" / Int8ul, "plen" / Int32ul)

IC_REQ_LAYOUT: Final = Layout(
    "common" / COMMON_LAYOUT,
    "pfv" / Int16ul,
    "hpda" / Int8ul,
    "dgst" / Int8ul,
    "maxr2t" / Int32ul,  # 0's based
    Padding(112),
)

IC_RESP_LAYOUT: Final = Layout(
    "common" / COMMON_LAYOUT,
    "pfv" / Int16ul,
    "cpda" / Int8ul,
    "dgst" / Int8ul,
    "maxh2cdata" / Int32ul,  # bytes, a multiple of 4, at least 4096
    Padding(112),
)

TERM_LAYOUT: Final = Layout("common" / COMMON_LAYOUT, "fes" / Int16ul, "fei" / Int32ul, Padding(10))

SGL_LAYOUT: Final = Layout("address" / Int64ul, "length" / Int32ul, Padding(3), "identifier" / Int8ul)

VENDOR_SQE_LAYOUT: Final = Layout(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "nsid" / Int32ul,
    "slot" / Int16ul,
    "nlb" / Int16ul,  # 0's based
    "control" / Int32ul,  # bit 0: FUA
    "zero" / Const(0, Int64ul),
    "sgl" / SGL_LAYOUT,
    "slba" / Int64ul,
    "mac" / Bytes(16),
)

CAPSULE_CMD_LAYOUT: Final = Layout("common" / COMMON_LAYOUT, "sqe" / VENDOR_SQE_LAYOUT)

CQE_LAYOUT: Final = Layout(
    "dw0" / Int32ul,
    "dw1" / Int32ul,
    "sqhd" / Int16ul,
    "sqid" / Int16ul,  # reserved on fabrics
    "cid" / Int16ul,
    "status" / Int16ul,  # bit 0 is the phase tag, 0 on fabrics
)

CAPSULE_RESP_LAYOUT: Final = Layout("common" / COMMON_LAYOUT, "cqe" / CQE_LAYOUT)

H2C_DATA_LAYOUT: Final = Layout(
    "common" / COMMON_LAYOUT,
    "cccid" / Int16ul,
    "ttag" / Int16ul,
    "datao" / Int32ul,
    "datal" / Int32ul,
    Padding(4),
)

C2H_DATA_LAYOUT: Final = Layout(
    "common" / COMMON_LAYOUT, "cccid" / Int16ul, Padding(2), "datao" / Int32ul, "datal" / Int32ul, Padding(4)
)

R2T_LAYOUT: Final = Layout(
    "common" / COMMON_LAYOUT,
    "cccid" / Int16ul,
    "ttag" / Int16ul,
    "r2to" / Int32ul,
    "r2tl" / Int32ul,
    Padding(4),
)

# Fabrics commands (Base 2.0, 6.3 to 6.6); FCTYPE takes the place of NSID's first byte.
CONNECT_SQE_LAYOUT: Final = Layout(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "fctype" / Int8ul,
    Padding(19),
    "sgl" / SGL_LAYOUT,
    "recfmt" / Int16ul,
    "qid" / Int16ul,
    "sqsize" / Int16ul,  # 0's based
    "cattr" / Int8ul,  # NO_FLOW_CONTROL
    Padding(1),
    "kato_ms" / Int32ul,
    Padding(12),
)

CONNECT_DATA_LAYOUT: Final = Layout(
    "hostid" / Bytes(16),
    "cntlid" / Int16ul,
    Padding(238),
    "subnqn" / Bytes(256),
    "hostnqn" / Bytes(256),
    Padding(256),
)

PROPERTY_SQE_LAYOUT: Final = Layout(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "fctype" / Int8ul,
    Padding(35),
    "attrib" / Int8ul,  # 0: four bytes, 1: eight bytes
    Padding(3),
    "offset" / Int32ul,
    "value" / Int64ul,
    Padding(8),
)

# Authentication Send and Receive (Base 2.0, 6.1 and 6.2)
AUTHENTICATION_SQE_LAYOUT: Final = Layout(
    "opcode" / Int8ul,
    "flags" / Int8ul,
    "cid" / Int16ul,
    "fctype" / Int8ul,
    Padding(19),
    "sgl" / SGL_LAYOUT,
    Padding(1),
    "spsp0" / Int8ul,
    "spsp1" / Int8ul,
    "secp" / Int8ul,
    "length" / Int32ul,  # TL, AL
    Padding(16),
)

# --- the same, precompiled -------------------------------------------------------------------------------------

COMMON: Final = Struct("<BBBBI")
IC_REQ: Final = Struct("<BBBBIHBBI112x")
IC_RESP: Final = Struct("<BBBBIHBBI112x")
TERM: Final = Struct("<BBBBIHI10x")
SGL: Final = Struct("<QI3xB")
VENDOR_SQE: Final = Struct("<BBHIHHIQQI3xBQ16s")
CAPSULE_CMD: Final = Struct("<BBBBIBBHIHHIQQI3xBQ16s")
CQE: Final = Struct("<IIHHHH")
CAPSULE_RESP: Final = Struct("<BBBBIIIHHHH")
H2C_DATA: Final = Struct("<BBBBIHHII4x")
C2H_DATA: Final = Struct("<BBBBIH2xII4x")
R2T: Final = Struct("<BBBBIHHII4x")
CONNECT_SQE: Final = Struct("<BBHB19xQI3xBHHHBxI12x")
CONNECT_DATA: Final = Struct("<16sH238x256s256s256x")
PROPERTY_SQE: Final = Struct("<BBHB35xB3xIQ8x")
AUTHENTICATION_SQE: Final = Struct("<BBHB19xQI3xBxBBBI16x")

MAC_OFFSET: Final = 48  # of the MAC within a vendor SQE
MAC_BYTES: Final = 16
NO_MAC: Final = bytes(MAC_BYTES)

HLEN: Final[dict[int, int]] = {
    PduType.IC_REQ: IC_BYTES,
    PduType.IC_RESP: IC_BYTES,
    PduType.H2C_TERM_REQ: TERM_HEADER_BYTES,
    PduType.C2H_TERM_REQ: TERM_HEADER_BYTES,
    PduType.CAPSULE_CMD: CAPSULE_CMD_BYTES,
    PduType.CAPSULE_RESP: CAPSULE_RESP_BYTES,
    PduType.H2C_DATA: DATA_HEADER_BYTES,
    PduType.C2H_DATA: DATA_HEADER_BYTES,
    PduType.R2T: DATA_HEADER_BYTES,
}

_CARRY_DATA: Final = frozenset({PduType.CAPSULE_CMD, PduType.H2C_DATA, PduType.C2H_DATA})
_NO_DIGEST: Final = frozenset({PduType.IC_REQ, PduType.IC_RESP, PduType.H2C_TERM_REQ, PduType.C2H_TERM_REQ})
# Plain numbers: an operator of IntFlag is a call, and its `~` knows nothing of bits without a name.
HDGST_FLAG: Final = int(PduFlag.HDGST)
DDGST_FLAG: Final = int(PduFlag.DDGST)
LAST_FLAG: Final = int(PduFlag.LAST)
SUCCESS_FLAG: Final = int(PduFlag.SUCCESS)
NO_FLOW_CONTROL: Final = 0x04
"""In CATTR of Connect: SQHD of completions says nothing, so that reads may end without one (Base 2.0, 6.3)."""
SQHD_NOT_KEPT: Final = 0xFFFF
"""In the completion of Connect: the controller does without flow control."""
HEADER_DIGEST: Final = int(Digest.HEADER)
DATA_DIGEST: Final = int(Digest.DATA)
_CAPSULE_CMD: Final = int(PduType.CAPSULE_CMD)
_DATA_KINDS: Final = frozenset({int(PduType.H2C_DATA), int(PduType.C2H_DATA)})
_TERM_KINDS: Final = frozenset({int(PduType.H2C_TERM_REQ), int(PduType.C2H_TERM_REQ)})
_FLAGS_RESERVED: Final[dict[int, int]] = {
    kind: 0xFF & ~int(legal)
    for kind, legal in {
        PduType.CAPSULE_CMD: PduFlag.HDGST | PduFlag.DDGST,
        PduType.CAPSULE_RESP: PduFlag.HDGST,
        PduType.H2C_DATA: PduFlag.HDGST | PduFlag.DDGST | PduFlag.LAST,
        PduType.C2H_DATA: PduFlag.HDGST | PduFlag.DDGST | PduFlag.LAST | PduFlag.SUCCESS,
        PduType.R2T: PduFlag.HDGST,
    }.items()
}


class PduError(Exception):
    """The peer broke the protocol; answer with a TermReq that carries `fes` and `fei`, and close.

    `header` is what came of the PDU in error.
    """

    def __init__(self, fes: FatalError, fei: int, reason: str, header: Buffer = b"") -> None:
        super().__init__(reason)
        self.fes = fes
        self.fei = fei
        self.reason = reason
        self.header = bytes(header[:COMMON_BYTES]) if len(header) > TERM_BYTES_MAX else bytes(header)


def crc32c_of(*parts: Buffer) -> int:
    """CRC32C (RFC 3385) over `parts` in order; what a digest holds, little-endian."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value


def crc32c_of_more(part: Buffer, value: int) -> int:
    """`value` carried on over `part`, for data that arrives in pieces."""
    return crc32c(part, value)


def digest(*parts: Buffer) -> bytes:
    """The four bytes of a header or data digest over `parts` in order."""
    return crc32c_of(*parts).to_bytes(DIGEST_BYTES, "little")


def check_header(
    header: Buffer, accepted: frozenset[int], dgst: int, payload_bytes_max: int, pda_bytes: int = 4
) -> None:
    """Check the eight common bytes before anything of the PDU is stored; raises `PduError` with its FES and FEI.

    `accepted` are the types legal in this state and direction (anything else is a sequence error), `dgst` the
    digests agreed (`Digest`), `payload_bytes_max` the most data that one PDU may carry, `pda_bytes` the alignment
    asked of this sender's data.
    """
    kind, flags, hlen, pdo, plen = COMMON.unpack_from(header)
    if kind not in HLEN:
        raise PduError(FatalError.INVALID_HEADER_FIELD, 0, f"type {kind:#04x} is unknown", header)
    if kind not in accepted:
        raise PduError(FatalError.PDU_SEQUENCE, 0, f"{PduType(kind).name} is not expected here", header)
    if hlen != HLEN[kind]:
        raise PduError(FatalError.INVALID_HEADER_FIELD, 2, f"header length {hlen}, not {HLEN[kind]}", header)
    if kind in _TERM_KINDS:
        if not TERM_HEADER_BYTES <= plen <= TERM_BYTES_MAX:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 4, f"PDU length {plen} is not that of a TermReq", header)
        return
    dgst = 0 if kind in _NO_DIGEST else dgst
    hdgst_bytes = DIGEST_BYTES if dgst & HEADER_DIGEST else 0
    if flags & _FLAGS_RESERVED.get(kind, 0xFF) or bool(flags & HDGST_FLAG) != bool(hdgst_bytes):
        raise PduError(FatalError.INVALID_HEADER_FIELD, 1, f"flags {flags:#04x} do not fit the digests agreed", header)
    start = hlen + hdgst_bytes
    if plen == start and kind not in _DATA_KINDS:
        if flags & DDGST_FLAG and kind != _CAPSULE_CMD:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 1, "data digest without data", header)
        return
    if kind not in _CARRY_DATA:
        raise PduError(FatalError.INVALID_HEADER_FIELD, 4, f"PDU length {plen}, not {start}", header)
    if bool(flags & DDGST_FLAG) != bool(dgst & DATA_DIGEST):
        raise PduError(FatalError.INVALID_HEADER_FIELD, 1, f"flags {flags:#04x} do not fit the digests agreed", header)
    if pdo < start or pdo % pda_bytes:
        raise PduError(FatalError.INVALID_HEADER_FIELD, 3, f"data offset {pdo}", header)
    payload = plen - pdo - (DIGEST_BYTES if dgst & DATA_DIGEST else 0)
    if payload <= 0:
        raise PduError(FatalError.INVALID_HEADER_FIELD, 4, f"PDU length {plen} leaves no data", header)
    if payload > payload_bytes_max:
        raise PduError(FatalError.LIMIT_EXCEEDED, 0, f"{payload} bytes of data, at most {payload_bytes_max}", header)


def ic_req(dgst: int, maxr2t: int = 0, hpda: int = 0) -> bytes:
    """ICReq: `maxr2t` is 0's based, `hpda` in dwords, 0's based."""
    return IC_REQ.pack(PduType.IC_REQ, 0, IC_BYTES, 0, IC_BYTES, PDU_VERSION, hpda, dgst, maxr2t)


def ic_resp(dgst: int, maxh2cdata_bytes: int, cpda: int = 0) -> bytes:
    """ICResp."""
    return IC_RESP.pack(PduType.IC_RESP, 0, IC_BYTES, 0, IC_BYTES, PDU_VERSION, cpda, dgst, maxh2cdata_bytes)


def term_req(kind: PduType, fes: int, fei: int, seen: bytes) -> bytes:
    """H2CTermReq or C2HTermReq with the header in error, cut at 128 bytes."""
    seen = seen[: TERM_BYTES_MAX - TERM_HEADER_BYTES]
    return TERM.pack(kind, 0, TERM_HEADER_BYTES, 0, TERM_HEADER_BYTES + len(seen), fes, fei & 0xFFFFFFFF) + seen


def parse_term_req(pdu: Buffer) -> tuple[int, int]:
    """(FES, FEI) of a TermReq."""
    fields = TERM.unpack_from(pdu)
    return int(fields[5]), int(fields[6])


def capsule_cmd(sqe: Buffer, data: Sequence[Buffer] = (), dgst: int = 0) -> list[Buffer]:
    """CapsuleCmd of a 64-byte SQE with in-capsule `data`, as buffers to write in order; `data` is not copied."""
    return _with_data(PduType.CAPSULE_CMD, 0, CAPSULE_CMD_BYTES, bytes(sqe), data, dgst)


def capsule_resp(cqe: bytes, dgst: int = 0) -> bytes:
    """CapsuleResp of a 16-byte CQE."""
    return _without_data(PduType.CAPSULE_RESP, CAPSULE_RESP_BYTES, cqe, dgst)


def h2c_data(cccid: int, ttag: int, datao: int, data: Sequence[Buffer], last: bool, dgst: int = 0) -> list[Buffer]:
    """H2CData with `data` (not copied) at offset `datao` of the command's data."""
    rest = H2C_DATA.pack(0, 0, 0, 0, 0, cccid, ttag, datao, _length(data))[COMMON_BYTES:]
    return _with_data(PduType.H2C_DATA, LAST_FLAG if last else 0, DATA_HEADER_BYTES, rest, data, dgst)


def c2h_data(
    cccid: int, datao: int, data: Sequence[Buffer], last: bool, dgst: int = 0, align_bytes: int = 4,
    success: bool = False,
) -> list[Buffer]:  # fmt: skip
    """C2HData with `data` (not copied) at offset `datao`. A CapsuleResp follows the last one unless it says `success`.

    The data begins at a multiple of `align_bytes` in the PDU (HPDA).
    """
    rest = C2H_DATA.pack(0, 0, 0, 0, 0, cccid, datao, _length(data))[COMMON_BYTES:]
    flags = (LAST_FLAG if last else 0) | (SUCCESS_FLAG if success else 0)
    return _with_data(PduType.C2H_DATA, flags, DATA_HEADER_BYTES, rest, data, dgst, align_bytes)


def r2t(cccid: int, ttag: int, offset: int, length: int, dgst: int = 0) -> bytes:
    """R2T for `length` bytes from `offset` of the command's data."""
    rest = R2T.pack(0, 0, 0, 0, 0, cccid, ttag, offset, length)[COMMON_BYTES:]
    return _without_data(PduType.R2T, DATA_HEADER_BYTES, rest, dgst)


def _length(data: Sequence[Buffer]) -> int:
    return sum(len(part) for part in data)


def _without_data(kind: PduType, hlen: int, rest: bytes, dgst: int) -> bytes:
    if not dgst & HEADER_DIGEST:
        return COMMON.pack(kind, 0, hlen, 0, hlen) + rest
    header = COMMON.pack(kind, HDGST_FLAG, hlen, 0, hlen + DIGEST_BYTES) + rest
    return header + digest(header)


def _with_data(
    kind: PduType, flags: int, hlen: int, rest: bytes, data: Sequence[Buffer], dgst: int, align_bytes: int = 4
) -> list[Buffer]:
    length = _length(data)
    hdgst_bytes = DIGEST_BYTES if dgst & HEADER_DIGEST else 0
    ddgst_bytes = DIGEST_BYTES if dgst & DATA_DIGEST and length else 0
    flags |= (HDGST_FLAG if hdgst_bytes else 0) | (DDGST_FLAG if ddgst_bytes else 0)
    end = hlen + hdgst_bytes
    start = end + -end % align_bytes if length else end
    header = COMMON.pack(kind, flags, hlen, start if length else 0, start + length + ddgst_bytes) + rest
    if hdgst_bytes:
        header += digest(header)
    buffers: list[Buffer] = [header + bytes(start - end)]
    buffers.extend(data)
    if ddgst_bytes:
        buffers.append(digest(*data))
    return buffers
