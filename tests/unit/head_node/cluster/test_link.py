"""The link's core: two ends talk through lists of bytes, and whatever is wrong ends the link."""

from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.cluster.errors import IllegalTransition, LinkClosed, LinkError
from head_node.cluster.frames import FrameType, Purpose
from head_node.cluster.link import TRANSITIONS, Authenticated, Frame, LinkContext, LinkInput, LinkState, PeerLink
from sled_controller.environment import Environment
from sled_controller.session import PeerHandshake

ENV = Environment()
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([value]) * 32) for value in (1, 2)]
PUBLIC = [key.public_key().public_bytes_raw() for key in KEYS]
CONTEXT = LinkContext(Purpose.LOG, UUID(int=7), UUID(int=2))


def pair(frame_bytes_max: int = 4096) -> tuple[PeerLink, PeerLink]:
    """Dialler and acceptor, not started."""
    dialler = PeerLink(
        PeerHandshake.initiator(KEYS[0], PUBLIC[1], ENV, CONTEXT.encode()), frame_bytes_max=frame_bytes_max
    )
    acceptor = PeerLink(PeerHandshake.responder(KEYS[1], PUBLIC, ENV), frame_bytes_max=frame_bytes_max)
    return dialler, acceptor


def events(link: PeerLink) -> list[Authenticated | Frame]:
    found = []
    while (event := link.next_event()) is not None:
        found.append(event)
    return found


def carry(source: PeerLink, target: PeerLink) -> list[Authenticated | Frame]:
    target.receive(b"".join(source.data_to_send()))
    return events(target)


def opened(frame_bytes_max: int = 4096) -> tuple[PeerLink, PeerLink]:
    dialler, acceptor = pair(frame_bytes_max)
    dialler.start(initiator=True)
    acceptor.start(initiator=False)
    assert carry(dialler, acceptor) == []
    assert carry(acceptor, dialler) == [Authenticated(PUBLIC[1], CONTEXT.encode())]
    assert carry(dialler, acceptor) == [Authenticated(PUBLIC[0], CONTEXT.encode())]
    return dialler, acceptor


def test_both_ends_know_each_other_and_what_the_link_is_for() -> None:
    dialler, acceptor = opened()
    assert (dialler.state, acceptor.state) == (LinkState.OPEN, LinkState.OPEN)
    assert LinkContext.decode(CONTEXT.encode()) == CONTEXT


def test_frames_arrive_whole_and_in_order_both_ways() -> None:
    dialler, acceptor = opened()
    dialler.send(FrameType.RECORDS, [b"ab", memoryview(b"cd")])
    dialler.send(FrameType.DURABLE, [])
    got = carry(dialler, acceptor)
    assert [(frame.kind, bytes(frame.payload)) for frame in got if isinstance(frame, Frame)] == [
        (FrameType.RECORDS, b"abcd"), (FrameType.DURABLE, b""),
    ]  # fmt: skip
    acceptor.send(FrameType.HEARTBEAT, [b"x"])
    assert len(carry(acceptor, dialler)) == 1


def test_bytes_may_come_one_at_a_time() -> None:
    dialler, acceptor = opened()
    dialler.send(FrameType.RECORDS, [b"abcd"])
    found = []
    for byte in b"".join(dialler.data_to_send()):
        acceptor.receive(bytes([byte]))
        found += events(acceptor)
    assert len(found) == 1


def test_payloads_are_not_copied_on_their_way_out() -> None:
    dialler, _ = opened()
    payload = bytes(1000)
    dialler.send(FrameType.RECORDS, [payload])
    assert any(part is payload for part in dialler.data_to_send())


@pytest.mark.parametrize("position", [0, 4, 6, -1])
def test_a_flipped_bit_anywhere_ends_the_link(position: int) -> None:
    dialler, acceptor = opened()
    dialler.send(FrameType.RECORDS, [b"abcd"])
    wire = bytearray(b"".join(dialler.data_to_send()))
    wire[position] ^= 1
    acceptor.receive(bytes(wire) + bytes(64))
    with pytest.raises(LinkError):
        events(acceptor)
    assert acceptor.state is LinkState.CLOSED


@pytest.mark.parametrize("order", [(1, 0), (0, 0), (1,)])
def test_frames_repeated_reordered_or_left_out_end_the_link(order: tuple[int, ...]) -> None:
    dialler, acceptor = opened()
    wire = []
    for text in (b"first", b"other"):
        dialler.send(FrameType.RECORDS, [text])
        wire.append(b"".join(dialler.data_to_send()))
    acceptor.receive(b"".join(wire[index] for index in order))
    with pytest.raises(LinkError, match="tag"):
        events(acceptor)


def test_a_frame_cannot_be_sent_back_to_its_sender() -> None:
    dialler, _ = opened()
    dialler.send(FrameType.RECORDS, [b"abcd"])
    dialler.receive(b"".join(dialler.data_to_send()))
    with pytest.raises(LinkError, match="tag"):
        events(dialler)


def test_a_length_out_of_bounds_is_refused_before_its_bytes_come() -> None:
    _, acceptor = opened(frame_bytes_max=100)
    acceptor.receive((101).to_bytes(4, "little"))
    with pytest.raises(LinkError, match="101"):
        events(acceptor)


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    dialler, _ = opened(frame_bytes_max=100)
    with pytest.raises(LinkError):
        dialler.send(FrameType.RECORDS, [bytes(100)])


def test_nothing_is_sent_before_the_peer_is_known_or_after_the_end() -> None:
    dialler, _ = pair()
    with pytest.raises(LinkClosed):
        dialler.send(FrameType.RECORDS, [])
    opened_one, _ = opened()
    opened_one.close()
    with pytest.raises(LinkClosed):
        opened_one.send(FrameType.RECORDS, [])


def test_a_stranger_is_refused() -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(b"z" * 32)
    dialler = PeerLink(PeerHandshake.initiator(stranger, PUBLIC[1], ENV, CONTEXT.encode()))
    _, acceptor = pair()
    dialler.start(initiator=True)
    acceptor.start(initiator=False)
    with pytest.raises(LinkError):
        carry(dialler, acceptor)


def test_garbage_instead_of_a_hello_ends_the_link() -> None:
    _, acceptor = pair()
    acceptor.start(initiator=False)
    acceptor.receive(bytes(4096))
    with pytest.raises(LinkError):
        events(acceptor)


@pytest.mark.parametrize("data", [b"", bytes(41), CONTEXT.encode()[:-1]])
def test_a_context_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(LinkError):
        LinkContext.decode(data)


def test_the_table_leads_nowhere_from_closed() -> None:
    assert {given for state, given in TRANSITIONS if state is LinkState.CLOSED} == {LinkInput.CLOSE}
    dialler, _ = pair()
    dialler.close()
    with pytest.raises(IllegalTransition):
        dialler.start(initiator=True)
