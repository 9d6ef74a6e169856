"""PDU structures: construct and struct agree, digests are CRC32C, bad headers get their FES."""

import pytest
from construct import Container
from construct import Struct as Layout
from hypothesis import given
from hypothesis import strategies as st

from sled_controller.fabric import pdu
from sled_controller.fabric.pdu import Digest, FatalError, PduError, PduFlag, PduType

STRUCTURES = [
    "COMMON", "IC_REQ", "IC_RESP", "TERM", "SGL", "VENDOR_SQE", "CAPSULE_CMD", "CQE", "CAPSULE_RESP", "H2C_DATA",
    "C2H_DATA", "R2T", "CONNECT_SQE", "CONNECT_DATA", "PROPERTY_SQE", "AUTHENTICATION_SQE",
]  # fmt: skip
ANY = frozenset(PduType)


def flat(parsed: Container) -> list[object]:
    """Field values in order, nested ones in place, construct's own entries and padding left out."""
    values: list[object] = []
    for name, value in parsed.items():
        if isinstance(value, Container):
            values += flat(value)
        elif not name.startswith("_"):
            values.append(value)
    return values


@pytest.mark.parametrize("name", STRUCTURES)
@given(data=st.data())
def test_struct_and_construct_read_the_same(name: str, data: st.DataObject) -> None:
    compiled, layout = getattr(pdu, name), getattr(pdu, name + "_LAYOUT")
    assert isinstance(layout, Layout)
    assert compiled.size == layout.sizeof()
    raw = bytearray(data.draw(st.binary(min_size=compiled.size, max_size=compiled.size)))
    if name in ("VENDOR_SQE", "CAPSULE_CMD"):
        at = 16 if name == "VENDOR_SQE" else 24
        raw[at : at + 8] = bytes(8)  # construct insists on the zeroes
    assert flat(layout.parse(bytes(raw))) == list(compiled.unpack(raw))


def test_the_digest_is_crc32c() -> None:
    assert pdu.crc32c_of(b"123456789") == 0xE3069283  # RFC 3720, B.4 and every CRC catalogue
    assert pdu.crc32c_of(b"1234", b"56789") == 0xE3069283
    assert pdu.crc32c_of_more(b"56789", pdu.crc32c_of(b"1234")) == 0xE3069283
    assert pdu.digest(bytes(32)) == bytes.fromhex("aa36918a")  # RFC 3720, B.4


def test_data_begins_where_the_header_says() -> None:
    for digests in range(4):
        for align in (4, 32, 128):
            raw = b"".join(pdu.c2h_data(1, 0, (b"x" * 8, b"y" * 8), True, digests, align))
            _, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(raw)
            assert (hlen, plen, pdo % align) == (24, len(raw), 0)
            assert raw[pdo : pdo + 16] == b"x" * 8 + b"y" * 8
            assert bool(flags & PduFlag.HDGST) == bool(digests & Digest.HEADER)
            assert bool(flags & PduFlag.DDGST) == bool(digests & Digest.DATA)


CMD, H2C = PduType.CAPSULE_CMD, PduType.H2C_DATA


@pytest.mark.parametrize(
    ("fields", "digests", "fes", "fei"),
    [
        ((0x08, 0, 24, 0, 24), 0, FatalError.INVALID_HEADER_FIELD, 0),  # no such type
        ((0xFF, 0, 24, 0, 24), 0, FatalError.INVALID_HEADER_FIELD, 0),
        ((CMD, 0, 71, 0, 72), 0, FatalError.INVALID_HEADER_FIELD, 2),  # header length
        ((CMD, 0, 72, 0, 71), 0, FatalError.INVALID_HEADER_FIELD, 3),
        ((CMD, 1, 72, 0, 76), 0, FatalError.INVALID_HEADER_FIELD, 1),  # a digest nobody agreed on
        ((CMD, 0, 72, 0, 72), Digest.HEADER, FatalError.INVALID_HEADER_FIELD, 1),  # one agreed on is missing
        ((CMD, 0x10, 72, 0, 72), 0, FatalError.INVALID_HEADER_FIELD, 1),  # reserved flag
        ((CMD, 0, 72, 68, 4168), 0, FatalError.INVALID_HEADER_FIELD, 3),  # data inside the header
        ((CMD, 0, 72, 73, 4168), 0, FatalError.INVALID_HEADER_FIELD, 3),  # not aligned
        ((CMD, 0, 72, 72, 0xFFFFFFFF), 0, FatalError.LIMIT_EXCEEDED, 0),
        ((H2C, 0, 24, 24, 24), 0, FatalError.INVALID_HEADER_FIELD, 4),  # data PDU without data
        ((H2C, 4, 24, 24, 24 + 8193), 0, FatalError.LIMIT_EXCEEDED, 0),
        ((PduType.IC_REQ, 0, 128, 0, 132), 0, FatalError.INVALID_HEADER_FIELD, 4),
        ((PduType.H2C_TERM_REQ, 0, 24, 0, 153), 0, FatalError.INVALID_HEADER_FIELD, 4),
    ],
)
def test_a_bad_header_gets_its_fes(fields: tuple[int, ...], digests: int, fes: FatalError, fei: int) -> None:
    with pytest.raises(PduError) as caught:
        pdu.check_header(pdu.COMMON.pack(*fields), ANY, digests, 8192)
    assert (caught.value.fes, caught.value.fei) == (fes, fei)


def test_a_pdu_out_of_order_is_a_sequence_error() -> None:
    with pytest.raises(PduError) as caught:
        pdu.check_header(pdu.ic_req(0), frozenset({CMD}), 0, 8192)
    assert caught.value.fes == FatalError.PDU_SEQUENCE


def test_a_termination_carries_the_header_in_error_cut_at_128_bytes() -> None:
    raw = pdu.term_req(PduType.C2H_TERM_REQ, FatalError.HEADER_DIGEST, 0xDEADBEEF, b"h" * 200)
    assert len(raw) == pdu.TERM_BYTES_MAX
    assert pdu.parse_term_req(raw) == (FatalError.HEADER_DIGEST, 0xDEADBEEF)
