"""The precompiled structures say the same as the construct definitions."""

import struct

import pytest
from construct import Construct

from head_node.export import nbd_protocol as nbd

MAGIC_REPLY = {"magic": nbd.OPTION_REPLY_MAGIC}
CHUNK = {"magic": nbd.STRUCTURED_REPLY_MAGIC, "flags": 1, "kind": 2, "cookie": 0x0102030405060708}


@pytest.mark.parametrize(
    ("definition", "fast", "fields"),
    [
        (nbd.ServerHello, nbd.SERVER_HELLO, {"magic": nbd.NBD_MAGIC, "option_magic": nbd.OPTION_MAGIC, "flags": 3}),
        (nbd.ClientHello, nbd.CLIENT_HELLO, {"flags": 3}),
        (nbd.OptionHeader, nbd.OPTION_HEADER, {"magic": nbd.OPTION_MAGIC, "option": 7, "length": 9}),
        (
            nbd.OptionReplyHeader,
            nbd.OPTION_REPLY_HEADER,
            {**MAGIC_REPLY, "option": 7, "reply": 0x80000001, "length": 5},
        ),
        (nbd.ExportNameReply, nbd.EXPORT_NAME_REPLY, {"size_bytes": 1 << 40, "flags": 0x55}),
        (nbd.InfoExport, nbd.INFO_EXPORT, {"info": 0, "size_bytes": 1 << 40, "flags": 0x55}),
        (nbd.InfoBlockSize, nbd.INFO_BLOCK_SIZE, {"info": 3, "minimum": 1, "preferred": 2, "maximum": 3}),
        (
            nbd.Request,
            nbd.REQUEST,
            {
                "magic": nbd.REQUEST_MAGIC,
                "flags": 1,
                "command": 6,
                "cookie": 1 << 63,
                "offset": 1 << 50,
                "length": 4096,
            },
        ),
        (nbd.SimpleReply, nbd.SIMPLE_REPLY, {"magic": nbd.SIMPLE_REPLY_MAGIC, "error": 22, "cookie": 1 << 60}),
        (nbd.ChunkHeader, nbd.CHUNK_HEADER, {**CHUNK, "length": 77}),
        (nbd.OffsetHole, nbd.OFFSET_HOLE, {"offset": 1 << 41, "length": 4096}),
    ],
)
def test_struct_equals_construct(definition: Construct, fast: struct.Struct, fields: dict[str, int]) -> None:
    packed = fast.pack(*fields.values())
    assert packed == definition.build(fields)
    assert {name: value for name, value in definition.parse(packed).items() if name != "_io"} == fields
    assert definition.sizeof() == fast.size


def test_joined_chunk_structures_are_header_and_body() -> None:
    header = nbd.ChunkHeader.build({**CHUNK, "length": 12})
    body = nbd.OffsetHole.build({"offset": 5 << 32, "length": 6})
    assert nbd.HOLE_CHUNK.pack(*CHUNK.values(), 12, 5 << 32, 6) == header + body
    assert nbd.DATA_CHUNK.pack(*CHUNK.values(), 12, 5 << 32) == header + nbd.CHUNK_OFFSET.pack(5 << 32)
    assert nbd.ErrorChunk.build({"error": 5, "text_length": 2, "text": b"no"}) == nbd.ERROR_CHUNK.pack(5, 2) + b"no"
    assert nbd.BlockStatus.build({"context_id": 1, "extents": [{"length": 9, "flags": 3}]}) == (
        nbd.U32.pack(1) + nbd.EXTENT.pack(9, 3)
    )


def test_option_payloads_parse_as_constructed() -> None:
    name = {"length": 4, "data": "völ".encode()}
    go = nbd.GoRequest.build({"name": name, "infos": [3, 1]})
    assert nbd.parse_go(go) == ("völ", [3, 1])
    query = {"length": 5, "data": b"base:"}
    contexts = nbd.MetaContextRequest.build({"name": name, "queries": [query, query]})
    assert nbd.parse_meta_context(contexts) == ("völ", ["base:", "base:"])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\4vo",
        b"\0\0\0\1v",
        b"\0\0\0\1v\0\2\0\3",
        b"\0\0\0\1v\0\0x",
        b"\0\0\0\1\xff\0\0",
        b"\xff\xff\xff\xffv\0\0",
    ],
)
def test_malformed_go_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        nbd.parse_go(payload)


@pytest.mark.parametrize(
    "payload", [b"", b"\0\0\0\0", b"\0\0\0\0\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\1", b"\0\0\0\0\0\0\0\0x"]
)
def test_malformed_meta_context_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        nbd.parse_meta_context(payload)


def test_only_error_numbers_of_the_specification_are_sent() -> None:
    assert [nbd.wire_error(number) for number in (1, 5, 12, 22, 28, 75, 95, 108)] == [1, 5, 12, 22, 28, 75, 95, 108]
    assert nbd.wire_error(110) == 5
