"""Sessions: who proves what to whom, which keys come of it, and that no count is used twice."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller import session
from sled_controller.errors import HandshakeFailed, NonceReused
from sled_controller.fabric import pdu
from sled_controller.fabric.vendor import vendor_sqe
from sled_controller.session import (
    HELLO_BYTES,
    PEER_ANSWER_BYTES,
    PEER_HELLO_BYTES,
    PEER_PROOF_BYTES,
    REPLY_BYTES,
    Direction,
    HeadHandshake,
    PeerHandshake,
    SledHandshake,
)


def flip(data: bytes, position: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_hello_and_reply_are_the_golden_ones() -> None:
    sled, head = host.handshakes()
    hello = sled.hello()
    assert hello == host.golden("hello")
    assert head.reply(hello) == host.golden("reply")


def test_the_fast_layouts_equal_the_readable_ones() -> None:
    for name, layout, fast, size in (
        ("hello", session.HELLO_LAYOUT, session.HELLO, HELLO_BYTES),
        ("reply", session.REPLY_LAYOUT, session.REPLY, REPLY_BYTES),
    ):
        data = host.golden(name)
        fields = layout.parse(data)
        assert layout.build(fields) == data
        assert layout.sizeof() == size == fast.size + session.SIGNATURE_BYTES
        assert fields.ephemeral == fast.unpack_from(data)[-1]
    assert session.PEER_HELLO_LAYOUT.sizeof() == session.PEER_HELLO.size == PEER_HELLO_BYTES
    assert session.PEER_ANSWER_LAYOUT.sizeof() == session.PEER_ANSWER.size + session.SIGNATURE_BYTES


def test_a_command_with_its_mac_is_the_golden_one() -> None:
    _, keys = host.session()
    sqe = vendor_sqe(0x81, nsid=1, slot=2, nlb=0, control=1, slba=0x1234)
    pdu.SGL.pack_into(sqe, 24, 0, 4096, pdu.SGL_IN_CAPSULE)
    sqe[48:] = keys.queue_mac(1).tag_parts(0, (sqe, bytes(range(256)) * 16))
    assert bytes(sqe) == host.golden("write_sqe")


def test_both_sides_derive_the_same_keys_and_the_sled_learns_the_head() -> None:
    sled, head = host.session()
    assert sled.head_public == host.public_key(host.HEAD_KEY)
    assert sled.queue_mac(1).check(0, head.queue_mac(1).tag(0, b"command"), b"command")
    assert sled.receipt_tag(b"receipt") == head.receipt_tag(b"receipt")
    assert head.start.boot_counter == 17


def test_keys_differ_by_queue_and_direction() -> None:
    keys, _ = host.session()
    tags = {
        keys.queue_mac(queue, direction).tag(0, b"x") for queue in (0, 1, 256) for direction in Direction
    }  # fmt: skip
    assert len(tags) == 6


def test_every_session_has_keys_of_its_own() -> None:
    first, _ = host.session("one")
    second, _ = host.session("two")
    assert first.queue_mac(1).tag(0, b"x") != second.queue_mac(1).tag(0, b"x")
    assert first.receipt_tag(b"x") != second.receipt_tag(b"x")


@pytest.mark.parametrize("position", range(HELLO_BYTES))
def test_a_hello_changed_anywhere_is_refused(position: int) -> None:
    sled, head = host.handshakes()
    with pytest.raises(HandshakeFailed):
        head.reply(flip(sled.hello(), position))


@pytest.mark.parametrize("position", range(REPLY_BYTES))
def test_a_reply_changed_anywhere_is_refused(position: int) -> None:
    sled, head = host.handshakes()
    reply = head.reply(sled.hello())
    with pytest.raises(HandshakeFailed):
        sled.accept(flip(reply, position))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_garbage_fails_the_handshake_and_nothing_else(hello: bytes, reply: bytes) -> None:
    sled, head = host.handshakes()
    with pytest.raises(HandshakeFailed):
        head.reply(hello)
    sled.hello()
    with pytest.raises(HandshakeFailed):
        sled.accept(reply)


def other_sled() -> SledHandshake:
    return SledHandshake(host.private_key(host.OTHER_HEAD_KEY), host.SLED, host.NQN, 3, 17, host.environment())


def wrong_nqn() -> SledHandshake:
    return SledHandshake(host.private_key(host.SLED_KEY), host.SLED, host.NQN + "x", 3, 17, host.environment())


def wrong_id() -> SledHandshake:
    return SledHandshake(host.private_key(host.SLED_KEY), host.HEAD, host.NQN, 3, 17, host.environment())


def wrong_controller() -> SledHandshake:
    return SledHandshake(host.private_key(host.SLED_KEY), host.SLED, host.NQN, 4, 17, host.environment())


@pytest.mark.parametrize("impostor", [other_sled, wrong_nqn, wrong_id, wrong_controller])
def test_another_sled_than_the_expected_one_is_refused(impostor: Callable[[], SledHandshake]) -> None:
    _, head = host.handshakes()
    with pytest.raises(HandshakeFailed):
        head.reply(impostor().hello())
    with pytest.raises(HandshakeFailed, match="no keys"):
        _ = head.keys


def test_a_reply_recorded_in_another_session_is_refused() -> None:
    old_sled, old_head = host.handshakes("old")
    recorded = old_head.reply(old_sled.hello())
    sled, _ = host.handshakes("new")
    sled.hello()
    with pytest.raises(HandshakeFailed, match="prove"):
        sled.accept(recorded)


def test_a_reply_recorded_before_a_reboot_is_refused_although_ephemerals_repeat() -> None:
    _, head = host.handshakes()
    before = SledHandshake(host.private_key(host.SLED_KEY), host.SLED, host.NQN, 3, 17, host.environment())
    recorded = head.reply(before.hello())
    after = SledHandshake(host.private_key(host.SLED_KEY), host.SLED, host.NQN, 3, 18, host.environment())
    after.hello()
    with pytest.raises(HandshakeFailed, match="prove"):
        after.accept(recorded)


def test_a_head_that_was_lied_to_about_the_nqn_gets_no_session() -> None:
    sled, _ = host.handshakes()
    key = host.private_key(host.HEAD_KEY)
    head = HeadHandshake(key, host.SLED, host.public_key(host.SLED_KEY), host.NQN + "x", 3, host.environment())
    with pytest.raises(HandshakeFailed):
        head.reply(sled.hello())


def test_a_handshake_is_used_once() -> None:
    sled, head = host.handshakes()
    with pytest.raises(HandshakeFailed, match="not expected"):
        sled.accept(bytes(REPLY_BYTES))
    hello = sled.hello()
    reply = head.reply(hello)
    with pytest.raises(HandshakeFailed, match="once"):
        head.reply(hello)
    sled.accept(reply)
    with pytest.raises(HandshakeFailed):
        sled.accept(reply)
    with pytest.raises(HandshakeFailed, match="over"):
        sled.hello()


def test_a_degenerate_ephemeral_key_is_refused() -> None:
    sled, head = host.handshakes()
    body = sled.hello()[: session.HELLO_BODY_BYTES][:-32] + bytes(32)
    nqn = len(host.NQN).to_bytes(2, "little") + host.NQN.encode()
    signature = host.private_key(host.SLED_KEY).sign(session.SLED_DOMAIN + nqn + body)
    with pytest.raises(HandshakeFailed, match="degenerate"):
        head.reply(body + signature)


# --- MACs


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_a_tag_checks_for_its_count_and_bytes_only(data: bytes, count: int) -> None:
    sled, head = host.session()
    tag = head.queue_mac(1).tag(count, data)
    receiving = sled.queue_mac(1)
    assert receiving.check(count, tag, data)
    assert not receiving.check(count ^ 1, tag, data)
    assert not receiving.check(count, tag, data + b"\0")
    assert not receiving.check(count, flip(tag, count % 16, count % 8), data)


@pytest.mark.parametrize("size", [0, 100, session.JOIN_BYTES_MAX, session.JOIN_BYTES_MAX * 3])
def test_pieces_have_the_tag_of_the_whole(size: int) -> None:
    sled, head = host.session()
    data = bytes(range(256)) * (size // 256 + 1)
    pieces = (data[:64], memoryview(data)[64 : size // 2 + 64], data[size // 2 + 64 :])
    tag = head.queue_mac(1).tag_parts(5, pieces)
    assert sled.queue_mac(1).check(5, tag, data)
    assert sled.queue_mac(1).check_parts(5, tag, pieces)
    assert not sled.queue_mac(1).check_parts(6, tag, pieces)


def test_a_queue_has_one_mac_so_its_count_never_starts_again() -> None:
    keys, _ = host.session()
    assert keys.queue_mac(1) is keys.queue_mac(1)
    assert [keys.queue_mac(1).next_count() for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("again", [5, 4, 0])
def test_a_tag_under_a_count_already_passed_is_not_made(again: int) -> None:
    keys, _ = host.session()
    mac = keys.queue_mac(1)
    mac.tag(5, b"first")
    with pytest.raises(NonceReused):
        mac.tag(again, b"second")
    with pytest.raises(NonceReused):
        mac.tag_parts(again, (bytes(session.JOIN_BYTES_MAX), b"second"))
    assert mac.tag(6, b"third")


# --- heads


def peers(context: bytes = b"volume") -> tuple[PeerHandshake, PeerHandshake]:
    one, two = host.HEAD_KEY, host.OTHER_HEAD_KEY
    initiator = PeerHandshake.initiator(
        host.private_key(one), host.public_key(two), host.environment("initiator"), context
    )  # fmt: skip
    responder = PeerHandshake.responder(host.private_key(two), {host.public_key(one)}, host.environment("responder"))
    return initiator, responder


def test_two_heads_know_each_other_and_what_the_link_is_for() -> None:
    initiator, responder = peers()
    assert (initiator.expects, responder.expects) == (0, PEER_HELLO_BYTES)
    hello = initiator.start()
    assert (len(hello), initiator.expects) == (PEER_HELLO_BYTES, PEER_ANSWER_BYTES)
    answer = responder.receive(hello)
    assert (len(answer), responder.expects) == (PEER_ANSWER_BYTES, PEER_PROOF_BYTES)
    with pytest.raises(HandshakeFailed, match="not proved"):
        _ = responder.keys
    proof = initiator.receive(answer)
    assert len(proof) == PEER_PROOF_BYTES
    assert responder.receive(proof) == b""
    assert (initiator.expects, responder.expects) == (0, 0)
    assert responder.context == b"volume"
    assert responder.peer_public == host.public_key(host.HEAD_KEY)
    assert responder.incoming().check(0, initiator.outgoing().tag(0, b"frame"), b"frame")
    assert initiator.incoming().check(0, responder.outgoing().tag(0, b"frame"), b"frame")
    assert not initiator.incoming().check(0, initiator.outgoing(1).tag(0, b"frame"), b"frame")


@pytest.mark.parametrize("position", range(PEER_HELLO_BYTES))
def test_a_peer_hello_changed_anywhere_ends_in_failure(position: int) -> None:
    initiator, responder = peers()
    with pytest.raises(HandshakeFailed):
        responder.receive(initiator.receive(responder.receive(flip(initiator.start(), position))))


@pytest.mark.parametrize("position", range(PEER_ANSWER_BYTES))
def test_a_peer_answer_changed_anywhere_is_refused(position: int) -> None:
    initiator, responder = peers()
    answer = responder.receive(initiator.start())
    with pytest.raises(HandshakeFailed):
        initiator.receive(flip(answer, position))


@pytest.mark.parametrize("position", range(PEER_PROOF_BYTES))
def test_a_peer_proof_changed_anywhere_is_refused_for_good(position: int) -> None:
    initiator, responder = peers()
    proof = initiator.receive(responder.receive(initiator.start()))
    with pytest.raises(HandshakeFailed):
        responder.receive(flip(proof, position))
    with pytest.raises(HandshakeFailed):
        responder.receive(proof)
    with pytest.raises(HandshakeFailed):
        _ = responder.keys


def test_a_stranger_is_not_answered() -> None:
    initiator, _ = peers()
    guarded = PeerHandshake.responder(host.private_key(host.OTHER_HEAD_KEY), {bytes(32)}, host.environment())
    with pytest.raises(HandshakeFailed, match="expected"):
        guarded.receive(initiator.start())


def test_a_head_does_not_take_its_own_reflection_for_a_peer() -> None:
    key = host.private_key(host.HEAD_KEY)
    own = host.public_key(host.HEAD_KEY)
    initiator = PeerHandshake.initiator(key, own, host.environment("a"))
    responder = PeerHandshake.responder(key, {own}, host.environment("b"))
    with pytest.raises(HandshakeFailed, match="itself"):
        responder.receive(initiator.start())


def test_a_recorded_peer_proof_opens_no_second_link() -> None:
    initiator, responder = peers()
    hello = initiator.start()
    proof = initiator.receive(responder.receive(hello))
    responder.receive(proof)
    fresh = PeerHandshake.responder(
        host.private_key(host.OTHER_HEAD_KEY), {host.public_key(host.HEAD_KEY)}, host.environment("later")
    )
    fresh.receive(hello)
    with pytest.raises(HandshakeFailed, match="prove"):
        fresh.receive(proof)


def test_a_context_has_room_for_64_bytes() -> None:
    initiator, responder = peers(bytes(range(64)))
    responder.receive(initiator.start())
    assert responder.context == bytes(range(64))
    with pytest.raises(ValueError, match="65 bytes"):
        peers(bytes(65))
