"""Messages: golden bytes, two definitions that agree, and whatever is too short or too long refused."""

from collections.abc import Callable

import pytest
from construct import Container
from construct import Struct as Layout
from hypothesis import given
from hypothesis import strategies as st
from kit import host
from kit.dhchap import BOTH_WAYS, controller_side, converse, host_side

from sled_controller.errors import AuthenticationFailed
from sled_controller.fabric.dhchap import messages
from sled_controller.fabric.dhchap.messages import (
    Challenge,
    Explanation,
    Failure,
    MessageKind,
    Negotiate,
    Reply,
    Success1,
    Success2,
    kind_of,
)

# What Linux 6.12 sends: three hashes, six groups, each list from the beginning of its 30 bytes.
LINUX_NEGOTIATE = (
    bytes.fromhex("0000 0000 0500 00 0101 00 03 06")
    + bytes([1, 2, 3]).ljust(30, b"\0")
    + bytes(range(6)).ljust(30, b"\0")
)
FAILURE1 = Failure(MessageKind.FAILURE1, 0x1234, Explanation.HASH_NOT_USABLE)
EXAMPLES = (
    Negotiate(5, 0, (1, 2, 3), (0, 1, 2, 3, 4, 5)),
    Challenge(0x1234, 1, 1, 7, b"c" * 32, b"v" * 256),
    Challenge(0xFFFF, 3, 0, 0xFFFFFFFF, b"c" * 64, b""),
    Reply(0x1234, 9, b"r" * 48, b"c" * 48, b"v" * 1024),
    Reply(0x1234, 0, b"r" * 32, None, b""),
    Success1(0x1234, 32, b"r" * 32),
    Success1(0x1234, 64, None),
    Success2(0x1234),
    FAILURE1,
)
DECODERS: dict[MessageKind, Callable[[bytes], object]] = {
    MessageKind.NEGOTIATE: Negotiate.decode,
    MessageKind.CHALLENGE: Challenge.decode,
    MessageKind.REPLY: Reply.decode,
    MessageKind.SUCCESS1: Success1.decode,
    MessageKind.SUCCESS2: Success2.decode,
    MessageKind.FAILURE1: Failure.decode,
    MessageKind.FAILURE2: Failure.decode,
}
LAYOUTS: dict[MessageKind, tuple[Layout, int]] = {
    MessageKind.NEGOTIATE: (messages.NEGOTIATE_LAYOUT, messages.NEGOTIATE.size),
    MessageKind.CHALLENGE: (messages.CHALLENGE_LAYOUT, messages.CHALLENGE.size),
    MessageKind.REPLY: (messages.REPLY_LAYOUT, messages.REPLY.size),
    MessageKind.SUCCESS1: (messages.SUCCESS1_LAYOUT, messages.SUCCESS1.size),
    MessageKind.SUCCESS2: (messages.SUCCESS2_LAYOUT, messages.SUCCESS2.size),
    MessageKind.FAILURE1: (messages.FAILURE_LAYOUT, messages.FAILURE.size),
}
EXACT = (MessageKind.NEGOTIATE, MessageKind.REPLY, MessageKind.SUCCESS2)  # what a host sends ends where it ends


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: type(each).__name__)
def test_what_is_encoded_is_decoded(example: Negotiate) -> None:
    data = example.encode()
    kind, t_id = kind_of(data)
    assert t_id == example.t_id
    assert DECODERS[kind](data) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: type(each).__name__)
def test_the_readable_layout_reads_the_same(example: Negotiate) -> None:
    data = example.encode()
    kind, t_id = kind_of(data)
    layout, _ = LAYOUTS[kind]
    fields = layout.parse(data)
    assert layout.build(fields) == data
    assert (fields.header.auth_type << 8 | fields.header.auth_id, fields.header.t_id) == (kind, t_id)
    for name in ("sequence", "response", "challenge", "value", "hash_id", "group_id", "secure_channel", "explanation"):
        if hasattr(example, name) and name in fields:
            said = getattr(example, name)
            assert fields[name] == (bytes(len(fields[name])) if said is None else said), name


def test_the_descriptor_layout_reads_the_same() -> None:
    data = LINUX_NEGOTIATE[8:]
    fields = messages.DESCRIPTOR_LAYOUT.parse(data)
    values = [value for name, value in fields.items() if not name.startswith("_") and not isinstance(value, Container)]
    assert values == list(messages.DESCRIPTOR.unpack(data))
    assert messages.DESCRIPTOR_LAYOUT.sizeof() == messages.DESCRIPTOR.size == 64
    assert messages.HEADER_LAYOUT.sizeof() == messages.HEADER.size == 6


def test_linux_offers_what_is_offered_here() -> None:
    offer = Negotiate.decode(LINUX_NEGOTIATE)
    assert offer == Negotiate(5, 0, (1, 2, 3), (0, 1, 2, 3, 4, 5))
    assert offer.encode() == LINUX_NEGOTIATE


def test_a_whole_authentication_is_the_golden_one() -> None:
    names = ("negotiate", "challenge", "reply", "success1", "success2")
    spoken = converse(host_side(BOTH_WAYS), controller_side(BOTH_WAYS))
    assert len(spoken) == len(names)
    for name, message in zip(names, spoken, strict=True):
        assert message == host.golden(f"dhchap_{name}"), name
    assert FAILURE1.encode() == host.golden("dhchap_failure1")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_message_cut_anywhere_is_refused(example: Negotiate) -> None:
    data = example.encode()
    kind, _ = kind_of(data)
    for size in range(len(data)):
        with pytest.raises(AuthenticationFailed) as caught:
            DECODERS[kind](data[:size])
        assert caught.value.explanation == Explanation.INCORRECT_PAYLOAD


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: type(each).__name__)
def test_only_answers_may_be_padded(example: Negotiate) -> None:
    """A controller may fill the buffer that it was given; what a host sends has a length of its own."""
    padded = example.encode() + bytes(100)
    kind, _ = kind_of(padded)
    if kind in EXACT:
        with pytest.raises(AuthenticationFailed) as caught:
            DECODERS[kind](padded)
        assert caught.value.explanation == Explanation.INCORRECT_PAYLOAD
    else:
        assert DECODERS[kind](padded) == example


def test_a_reply_says_plainly_whether_it_challenges() -> None:
    data = bytearray(Reply(1, 5, b"r" * 32, b"c" * 32, b"").encode())
    for valid, sequence in ((1, 0), (2, 5), (255, 5)):
        data[8] = valid
        data[12:16] = sequence.to_bytes(4, "little")
        with pytest.raises(AuthenticationFailed, match="CVALID") as caught:
            Reply.decode(bytes(data))
        assert caught.value.explanation == Explanation.INCORRECT_PAYLOAD


def descriptor(auth_id: int, hashes: int = 1, groups: int = 1) -> bytes:
    return messages.DESCRIPTOR.pack(auth_id, hashes, groups, b"\1", b"\1")


def negotiate(*descriptors: bytes) -> bytes:
    return messages.NEGOTIATE.pack(0, 0, 9, 0, len(descriptors)) + b"".join(descriptors)


def test_the_first_descriptor_of_our_protocol_counts() -> None:
    offer = Negotiate.decode(negotiate(descriptor(9), descriptor(1), descriptor(1, 0, 0)))
    assert (offer.hashes, offer.groups) == ((1,), (1,))


@pytest.mark.parametrize(
    ("data", "explanation"),
    [
        (negotiate(), Explanation.PROTOCOL_NOT_USABLE),
        (negotiate(descriptor(2)), Explanation.PROTOCOL_NOT_USABLE),
        (negotiate(descriptor(1, 31)), Explanation.INCORRECT_PAYLOAD),
        (negotiate(descriptor(1, 1, 255)), Explanation.INCORRECT_PAYLOAD),
        (negotiate(descriptor(1))[:-1], Explanation.INCORRECT_PAYLOAD),
        (negotiate(descriptor(1)) + b"\0", Explanation.INCORRECT_PAYLOAD),
    ],
)
def test_an_offer_that_says_nothing_is_refused(data: bytes, explanation: Explanation) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        Negotiate.decode(data)
    assert caught.value.explanation == explanation


def test_unknown_messages_and_explanations_have_no_name() -> None:
    with pytest.raises(AuthenticationFailed, match="0x1/0x5") as caught:
        kind_of(bytes([1, 5, 0, 0, 0, 0]))
    assert caught.value.explanation == Explanation.INCORRECT_MESSAGE
    assert messages.explanation_name(0x44) == "EXPLANATION_44"
    assert messages.explanation_name(3) == "SECURE_CHANNEL_MISMATCH"


@given(st.binary(max_size=400), st.sampled_from(MessageKind))
def test_garbage_is_refused_with_an_explanation(data: bytes, kind: MessageKind) -> None:
    framed = bytes([kind >> 8, kind & 0xFF]) + data
    explained = set[int]()
    try:
        kind_of(framed)
        DECODERS[kind](framed)
    except AuthenticationFailed as failure:
        explained.add(failure.explanation)
    assert explained <= set(Explanation)
