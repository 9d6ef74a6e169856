"""The negotiation core: what each option is answered with, and what ends the connection."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from head_node.export import nbd_protocol as nbd
from head_node.export.nbd_negotiation import (
    OPTION_BYTES_MAX,
    OPTIONS_PER_TURN_MAX,
    REPLY_BYTES_PER_TURN_MAX,
    Event,
    Negotiation,
    NegotiationEnded,
    OpenExport,
    State,
)
from head_node.export.nbd_protocol import Option, OptionReply

FLAGS = nbd.CLIENT_HELLO.pack(3)
NAME = nbd.pack_string("vol")
GO = nbd.option_request(Option.GO, NAME + b"\0\0")
STRUCTURED = nbd.option_request(Option.STRUCTURED_REPLY)
CONTEXT = nbd.option_request(Option.SET_META_CONTEXT, NAME + nbd.U32.pack(1) + nbd.pack_string("base:allocation"))


def begin(flags: bytes = FLAGS) -> Negotiation:
    negotiation = Negotiation(lambda security: ["vol", "other"])
    assert b"".join(negotiation.data_to_send()) == nbd.SERVER_HELLO.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 3)
    assert negotiation.receive(flags) == []
    return negotiation


def replies(negotiation: Negotiation) -> list[tuple[int, int, bytes]]:
    data, found = b"".join(negotiation.data_to_send()), []
    while data:
        header = nbd.OptionReplyHeader.parse(data)
        end = nbd.OPTION_REPLY_HEADER.size + header.length
        found.append((header.option, header.reply, data[nbd.OPTION_REPLY_HEADER.size : end]))
        data = data[end:]
    return found


def only_error(negotiation: Negotiation) -> int:
    ((_, reply, text),) = replies(negotiation)
    assert text.decode()
    return reply


def test_list_shows_every_name() -> None:
    negotiation = begin()
    negotiation.receive(nbd.option_request(Option.LIST))
    assert replies(negotiation) == [
        (Option.LIST, OptionReply.SERVER, nbd.pack_string("vol")),
        (Option.LIST, OptionReply.SERVER, nbd.pack_string("other")),
        (Option.LIST, OptionReply.ACK, b""),
    ]


def test_go_opens_with_size_flags_and_block_sizes() -> None:
    negotiation = begin()
    assert negotiation.receive(STRUCTURED + CONTEXT + GO + b"next") == [OpenExport("vol", info_only=False)]
    negotiation.data_to_send()
    assert negotiation.grant(1 << 30) == []
    _, (_, _, export), (_, _, sizes), *_ = [(0, 0, b""), *replies(negotiation)]
    assert nbd.INFO_EXPORT.unpack(export)[1] == 1 << 30
    assert nbd.INFO_EXPORT.unpack(export)[2] & nbd.TransmissionFlag.SEND_DF
    assert nbd.INFO_BLOCK_SIZE.unpack(sizes) == (3, 4096, 4096, 32 << 20)
    assert negotiation.state is State.TRANSMISSION
    assert negotiation.allocation
    assert negotiation.leftover() == b"next"


def test_info_answers_and_stays_in_negotiation() -> None:
    negotiation = begin()
    (event,) = negotiation.receive(nbd.option_request(Option.INFO, NAME + b"\0\0") + GO)
    assert event == OpenExport("vol", info_only=True)
    assert negotiation.grant(4096) == [OpenExport("vol", info_only=False)]


def test_a_refused_export_leaves_the_client_negotiating() -> None:
    negotiation = begin()
    negotiation.receive(GO)
    assert negotiation.refuse(OptionReply.ERR_UNKNOWN, "no such export") == []
    assert only_error(negotiation) == OptionReply.ERR_UNKNOWN
    assert negotiation.receive(GO) == [OpenExport("vol", info_only=False)]


def test_a_refused_export_name_hangs_up() -> None:
    negotiation = begin()
    assert negotiation.receive(nbd.option_request(Option.EXPORT_NAME, b"nope")) == [OpenExport("nope", info_only=False)]
    assert negotiation.refuse(OptionReply.ERR_UNKNOWN, "gone") == [NegotiationEnded("gone")]


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0)])
def test_export_name_sends_zeroes_unless_told_not_to(flags: int, zeroes: int) -> None:
    negotiation = begin(nbd.CLIENT_HELLO.pack(flags))
    negotiation.receive(nbd.option_request(Option.EXPORT_NAME, b"vol"))
    negotiation.grant(8192)
    reply = b"".join(negotiation.data_to_send())
    assert len(reply) == 10 + zeroes
    assert nbd.EXPORT_NAME_REPLY.unpack_from(reply)[0] == 8192
    assert not negotiation.structured


def test_abort_is_acknowledged_and_ends_without_fault() -> None:
    negotiation = begin()
    assert negotiation.receive(nbd.option_request(Option.ABORT)) == [NegotiationEnded("")]
    assert replies(negotiation) == [(Option.ABORT, OptionReply.ACK, b"")]


@pytest.mark.parametrize(
    ("option", "payload", "reply"),
    [
        (Option.STARTTLS, b"", OptionReply.ERR_POLICY),
        (Option.EXTENDED_HEADERS, b"", OptionReply.ERR_UNSUP),
        (Option.PEEK_EXPORT, b"", OptionReply.ERR_UNSUP),
        (4711, b"whatever", OptionReply.ERR_UNSUP),
        (Option.LIST, b"x", OptionReply.ERR_INVALID),
        (Option.STRUCTURED_REPLY, b"x", OptionReply.ERR_INVALID),
        (Option.GO, b"\0", OptionReply.ERR_INVALID),
        (Option.GO, b"\0\0\0\1\xff\0\0", OptionReply.ERR_INVALID),
        (Option.SET_META_CONTEXT, NAME + b"\0\0\0\0", OptionReply.ERR_INVALID),
        (4711, bytes(OPTION_BYTES_MAX + 1), OptionReply.ERR_TOO_BIG),
    ],
)
def test_a_refused_option_keeps_the_connection_in_step(option: int, payload: bytes, reply: int) -> None:
    negotiation = begin()
    assert negotiation.receive(nbd.option_request(option, payload)) == []
    assert only_error(negotiation) == reply
    assert negotiation.rejected_options == 1
    assert negotiation.receive(GO) == [OpenExport("vol", info_only=False)]


def test_an_oversized_option_takes_no_memory() -> None:
    negotiation = begin()
    negotiation.receive(nbd.OPTION_HEADER.pack(nbd.OPTION_MAGIC, 99, 0xFFFFFFFF))
    for _ in range(100):
        negotiation.receive(bytes(65536))
        assert len(negotiation._received) == 0


@pytest.mark.parametrize(
    "data",
    [
        nbd.CLIENT_HELLO.pack(0x80),
        FLAGS + b"GET / HTTP/1.1\r\n\r\n",
        nbd.CLIENT_HELLO.pack(0) + nbd.option_request(Option.LIST),
        FLAGS + nbd.option_request(Option.EXPORT_NAME, b"\xff"),
        FLAGS + nbd.option_request(Option.EXPORT_NAME, b"n" * 5000),
    ],
)
def test_what_cannot_be_answered_ends_the_negotiation(data: bytes) -> None:
    negotiation = Negotiation(lambda security: [])
    (event,) = negotiation.receive(data)
    assert isinstance(event, NegotiationEnded)
    assert event.fault
    assert negotiation.receive(b"more") == []


def test_a_patient_client_may_ask_about_as_many_exports_as_there_are() -> None:
    negotiation = begin()
    for _ in range(10_000):
        negotiation.begin_turn()
        assert negotiation.receive(nbd.option_request(Option.LIST_META_CONTEXT, NAME + nbd.U32.pack(0))) == []
        assert only_error(negotiation) == OptionReply.ERR_INVALID
    assert negotiation.options == 10_000
    assert negotiation.receive(GO) == [OpenExport("vol", info_only=False)]


def test_options_that_come_together_are_answered_a_turn_at_a_time() -> None:
    negotiation = begin()
    count = 3 * OPTIONS_PER_TURN_MAX
    events = negotiation.receive(nbd.option_request(Option.LIST) * count + GO)
    turns = 1
    while negotiation.held_up:
        assert negotiation.options <= turns * OPTIONS_PER_TURN_MAX
        negotiation.begin_turn()
        events += negotiation.resume()
        turns += 1
    assert events == [OpenExport("vol", info_only=False)]
    assert negotiation.options == count + 1
    assert turns == 4


def test_long_replies_end_a_turn_too() -> None:
    negotiation = Negotiation(lambda security: ["n" * 1000] * 200)
    negotiation.receive(FLAGS + nbd.option_request(Option.LIST) * 60)
    assert negotiation.held_up
    assert sum(map(len, negotiation.data_to_send())) < 2 * REPLY_BYTES_PER_TURN_MAX


def test_meta_contexts_are_listed_and_set() -> None:
    negotiation = begin()
    listing = nbd.option_request(Option.LIST_META_CONTEXT, NAME + nbd.U32.pack(0))
    unknown = nbd.option_request(Option.SET_META_CONTEXT, NAME + nbd.U32.pack(1) + nbd.pack_string("qemu:dirty"))
    negotiation.receive(STRUCTURED + listing + unknown + CONTEXT)
    assert [(option, reply) for option, reply, _ in replies(negotiation)] == [
        (Option.STRUCTURED_REPLY, OptionReply.ACK),
        (Option.LIST_META_CONTEXT, OptionReply.META_CONTEXT),
        (Option.LIST_META_CONTEXT, OptionReply.ACK),
        (Option.SET_META_CONTEXT, OptionReply.ACK),
        (Option.SET_META_CONTEXT, OptionReply.META_CONTEXT),
        (Option.SET_META_CONTEXT, OptionReply.ACK),
    ]


def test_contexts_set_for_another_export_do_not_count() -> None:
    negotiation = begin()
    negotiation.receive(STRUCTURED + CONTEXT + nbd.option_request(Option.GO, nbd.pack_string("other") + b"\0\0"))
    negotiation.grant(4096)
    assert not negotiation.allocation


SCRIPT = (
    FLAGS
    + nbd.option_request(Option.LIST)
    + nbd.option_request(77, b"abc")
    + nbd.option_request(78, bytes(OPTION_BYTES_MAX + 5))
    + STRUCTURED
    + CONTEXT
    + GO
    + b"rest"
)


def run(pieces: list[bytes]) -> tuple[list[Event], bytes, bytes]:
    negotiation = Negotiation(lambda security: ["vol"])
    events: list[Event] = []
    for piece in pieces:
        events += negotiation.receive(piece)
    assert negotiation.state is State.OPENING
    negotiation.grant(4096)
    return events, b"".join(negotiation.data_to_send()), negotiation.leftover()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, len(SCRIPT)), max_size=30))
def test_chunking_changes_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(SCRIPT)]
    pieces = [SCRIPT[start:end] for start, end in itertools.pairwise(edges)]
    assert run(pieces) == run([SCRIPT])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([FLAGS, STRUCTURED, CONTEXT, GO])), max_size=12))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    negotiation = Negotiation(lambda security: ["vol"])
    for piece in pieces:
        negotiation.receive(piece)
        assert negotiation.state is not State.TRANSMISSION
        if negotiation.state is State.OPENING:
            return
