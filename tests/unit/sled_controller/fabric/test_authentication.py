"""In-band authentication of queues: what passes before it, what it takes, how it fails, and what a failure ends."""

from dataclasses import replace

import pytest
from kit.dhchap import ONE_WAY, only
from kit.guarded import NAME, TERMS, GuardedRig, authenticate, host_handshake, receive, send
from kit.target import Rig, Wire

from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.authentication import AUTHENTICATION_NS, AUTHENTICATION_REQUIRED
from sled_controller.fabric.controller import SledController
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import AuthState
from sled_controller.fabric.dhchap.messages import Explanation, Failure, MessageKind
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.host_authentication import authentication_receive, authentication_send
from sled_controller.fabric.io_path import IoPath
from sled_controller.fabric.target import HANDSHAKE_NS, QueueState, TargetQueue
from spdk_bindings.nvme import (
    CC_ENABLE,
    CONTROLLER_ID_DYNAMIC,
    DISCOVERY_NQN,
    SGL_FLAGS,
    SQE,
    AdminOpcode,
    FabricsType,
    IoOpcode,
    Property,
    Status,
    VendorIo,
)

WRONG = replace(TERMS, secret=Secret(bytes(32), HashId.SHA256))


def admin(opcode: int) -> bytearray:
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), 1, 0, 0, 0, 0, 0))


def fabrics(kind: FabricsType) -> bytearray:
    sqe = bytearray(64)
    sqe[0], sqe[1], sqe[4] = AdminOpcode.FABRICS, pdu.PSDT_SGL, kind
    return sqe


@pytest.fixture
def rig() -> GuardedRig:
    return GuardedRig()


@pytest.fixture
def connected(rig: GuardedRig) -> Wire:
    """An admin queue after Connect."""
    wire = rig.connection()
    assert wire.connect().status == 0
    return wire


def identifies(wire: Wire) -> int:
    return wire.ask(admin(AdminOpcode.IDENTIFY), room=4096).status


# --- Connect


def test_connect_says_that_authentication_is_required_on_every_queue(rig: GuardedRig) -> None:
    wire = rig.connection()
    answer = wire.connect()
    controller_id = answer.dw0 & 0xFFFF
    assert (answer.status, answer.dw0) == (0, AUTHENTICATION_REQUIRED | controller_id)
    authenticate(wire)
    wire.ask(vendor.property_set(Property.CC, CC_ENABLE))
    assert rig.connection().connect(1, controller_id).dw0 == AUTHENTICATION_REQUIRED | controller_id


def test_a_host_without_terms_is_asked_for_nothing_and_can_do_without() -> None:
    rig = GuardedRig(None)
    wire = rig.connection()
    assert wire.connect().dw0 & AUTHENTICATION_REQUIRED == 0
    assert identifies(wire) == 0


def test_a_subsystem_that_knows_no_secrets_knows_no_authentication() -> None:
    wire = Rig().connection()
    assert wire.connect().dw0 & AUTHENTICATION_REQUIRED == 0
    assert send(wire, host_handshake().give()).status == Status.INVALID_FIELD
    assert receive(wire).status == Status.INVALID_FIELD
    assert identifies(wire) == 0


# --- before


@pytest.mark.parametrize(
    "sqe",
    [
        admin(AdminOpcode.IDENTIFY), admin(AdminOpcode.GET_LOG_PAGE), admin(AdminOpcode.KEEP_ALIVE),
        admin(AdminOpcode.SET_FEATURES), admin(AdminOpcode.ASYNC_EVENT_REQUEST), admin(0x55),
        vendor.property_get(Property.CAP), vendor.property_set(Property.CC, CC_ENABLE), fabrics(FabricsType.DISCONNECT),
        fabrics(FabricsType.CONNECT), vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE),
    ],
)  # fmt: skip
def test_until_then_every_other_admin_command_is_refused_and_changes_nothing(connected: Wire, sqe: bytearray) -> None:
    answer = connected.ask(sqe)
    assert (answer.status, answer.dnr) == (Status.AUTHENTICATION_REQUIRED, True)
    authenticate(connected)
    assert identifies(connected) == 0


def test_no_io_queue_can_be_had_before_the_admin_queue_is_authenticated(rig: GuardedRig, connected: Wire) -> None:
    (controller_id,) = rig.subsystem.hosts
    assert rig.connection().connect(1, controller_id).status == Status.CONNECT_INVALID_PARAMETERS


@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.RESERVATION_REPORT, VendorIo.READ, VendorIo.FLUSH])
def test_until_then_every_io_command_is_refused(rig: GuardedRig, opcode: int) -> None:
    _, controller_id = rig.live()
    wire = rig.io_queue(controller_id)
    answer = wire.ask(admin(opcode), room=4096)
    assert (answer.status, answer.dnr) == (Status.AUTHENTICATION_REQUIRED, True)


def test_nothing_carries_out_io_before(rig: GuardedRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop for the commonest commands passes by every gate: it is not there yet."""
    _, controller_id = rig.live()
    made = []
    real = SledController.io_path

    def noting(controller: SledController, queue: TargetQueue, entries: int) -> IoPath:
        made.append(entries)
        return real(controller, queue, entries)

    monkeypatch.setattr(SledController, "io_path", noting)
    wire = rig.io_queue(controller_id)
    wire.ask(vendor.vendor_sqe(VendorIo.WRITE, nsid=1), bytes(4096))
    assert made == []
    authenticate(wire)
    assert made == [128]
    authenticate(wire, t_id=2)
    assert made == [128]


# --- success


def test_after_it_commands_are_carried_out(rig: GuardedRig, connected: Wire) -> None:
    assert authenticate(connected).state is AuthState.DONE
    assert identifies(connected) == 0
    assert rig.authentication.succeeded == 1


def test_one_way_is_enough_where_the_host_asks_for_no_proof(connected: Wire) -> None:
    assert authenticate(connected, replace(TERMS, controller_secret=None)).state is AuthState.DONE
    assert identifies(connected) == 0


def test_each_io_queue_authenticates_for_itself(rig: GuardedRig) -> None:
    _, controller_id = rig.live()
    wire = rig.io_queue(controller_id)
    authenticate(wire)
    assert wire.ask(admin(IoOpcode.READ), room=4096).status == Status.ACCESS_DENIED
    assert rig.authentication.succeeded == 2


@pytest.mark.parametrize("digests", range(4))
def test_digests_make_no_difference(rig: GuardedRig, digests: int) -> None:
    wire = rig.connection(digests)
    wire.connect()
    assert authenticate(wire).state is AuthState.DONE


def test_both_ends_of_the_largest_group_fit(rig: GuardedRig) -> None:
    terms = only(TERMS, HashId.SHA512, GroupId.FFDHE8192)
    rig.guarded.known[NAME] = terms
    wire = rig.connection()
    wire.connect()
    assert authenticate(wire, terms).state is AuthState.DONE


def test_a_live_queue_authenticates_again_and_serves_meanwhile(rig: GuardedRig) -> None:
    """With the secret that holds now: a rotation needs no new connection."""
    wire, _ = rig.live()
    fresh = replace(TERMS, secret=Secret(b"n" * 32, HashId.SHA256))
    rig.guarded.known[NAME] = fresh
    handshake = host_handshake(fresh, t_id=2)
    send(wire, handshake.give())
    assert identifies(wire) == 0
    handshake.take(receive(wire).data)
    send(wire, handshake.give())
    handshake.take(receive(wire).data)
    assert identifies(wire) == 0
    send(wire, handshake.give())
    assert handshake.state is AuthState.DONE
    assert rig.authentication.succeeded == 2
    assert authenticate(wire, fresh, t_id=3).state is AuthState.DONE


# --- failure


def test_a_wrong_secret_ends_the_association_after_the_reason_was_given(rig: GuardedRig, connected: Wire) -> None:
    handshake = authenticate(connected, WRONG)
    assert handshake.failure is not None
    assert handshake.failure.explanation == Explanation.FAILED
    assert connected.queue.state is QueueState.CLOSING
    assert rig.subsystem.hosts == {}
    assert (rig.authentication.succeeded, rig.authentication.failed) == (0, 1)


def test_a_host_that_objects_ends_the_association(rig: GuardedRig, connected: Wire) -> None:
    handshake = host_handshake()
    send(connected, handshake.give())
    receive(connected)
    assert send(connected, Failure(MessageKind.FAILURE2, 1, Explanation.HASH_NOT_USABLE).encode()).status == 0
    assert connected.queue.state is QueueState.CLOSING
    assert rig.authentication.failed == 1


def test_a_failed_second_authentication_ends_the_association_too(rig: GuardedRig) -> None:
    wire, controller_id = rig.live()
    io = rig.io_queue(controller_id)
    authenticate(io)
    authenticate(wire, WRONG, t_id=2)
    assert wire.queue.state is io.queue.state is QueueState.CLOSING


def test_a_host_whose_secret_was_removed_cannot_authenticate_again(rig: GuardedRig) -> None:
    wire, _ = rig.live()
    rig.guarded.known.clear()
    handshake = authenticate(wire, t_id=2)
    assert handshake.failure is not None
    assert handshake.failure.explanation == Explanation.PROTOCOL_NOT_USABLE
    assert wire.queue.state is QueueState.CLOSING


def test_garbage_in_place_of_a_message_fails_the_authentication(connected: Wire) -> None:
    assert send(connected, b"garbage").status == 0
    assert Failure.decode(receive(connected).data).explanation == Explanation.INCORRECT_MESSAGE
    assert connected.queue.state is QueueState.CLOSING


def test_a_message_asked_for_out_of_turn_fails_the_authentication(connected: Wire) -> None:
    assert Failure.decode(receive(connected).data).explanation == Explanation.INCORRECT_MESSAGE
    assert connected.queue.state is QueueState.CLOSING


# --- one I/O queue that nobody has authenticated is nobody's


def test_a_stranger_on_an_io_queue_ends_nothing_but_his_connection(rig: GuardedRig) -> None:
    """Host NQN, host id and controller id are no secrets: whoever saw them can connect a queue, and no more."""
    wire, controller_id = rig.live()
    for misbehave in (
        lambda stranger: authenticate(stranger, WRONG),
        lambda stranger: stranger.queue.lost("connection lost"),
        lambda stranger: stranger.send(b"\xff" * 8),
        lambda stranger: stranger.send(pdu.term_req(pdu.PduType.H2C_TERM_REQ, 1, 0, b"")),
    ):
        stranger = rig.io_queue(controller_id)
        misbehave(stranger)
        assert stranger.queue.state in (QueueState.CLOSING, QueueState.CLOSED)
        assert identifies(wire) == 0
    own = rig.io_queue(controller_id)
    assert authenticate(own).state is AuthState.DONE


def test_a_stranger_keeps_no_queue_from_its_host(rig: GuardedRig) -> None:
    _, controller_id = rig.live()
    stranger = rig.io_queue(controller_id)
    own = rig.io_queue(controller_id)
    authenticate(own)
    assert stranger.queue.state is QueueState.CLOSING
    stranger.queue.lost("connection closed")
    assert own.ask(admin(IoOpcode.READ), room=4096).status == Status.ACCESS_DENIED


def test_a_second_connect_of_an_authenticated_queue_is_refused_and_ends_nothing(rig: GuardedRig) -> None:
    _, controller_id = rig.live()
    own = rig.io_queue(controller_id)
    authenticate(own)
    assert rig.connection().connect(1, controller_id).status == Status.COMMAND_SEQUENCE_ERROR
    assert own.ask(admin(IoOpcode.READ), room=4096).status == Status.ACCESS_DENIED


# --- time


def test_a_host_that_does_not_authenticate_in_time_is_given_up(rig: GuardedRig, connected: Wire) -> None:
    began = rig.clock.boot_ns
    assert AUTHENTICATION_NS > HANDSHAKE_NS
    assert connected.queue.overdue(began + AUTHENTICATION_NS) is None
    send(connected, host_handshake().give())
    assert connected.queue.overdue(began + AUTHENTICATION_NS + 1) == "no authentication in time"


def test_a_second_authentication_has_a_time_of_its_own(rig: GuardedRig) -> None:
    wire, _ = rig.live()
    rig.clock.boot_ns += 2 * AUTHENTICATION_NS
    assert identifies(wire) == 0
    assert wire.queue.overdue(rig.clock.boot_ns) is None
    send(wire, host_handshake(t_id=2).give())
    rig.clock.boot_ns += AUTHENTICATION_NS + 1
    assert wire.queue.overdue(rig.clock.boot_ns) == "no authentication in time"


# --- the commands


@pytest.mark.parametrize(
    ("offset", "value"), [(41, 0), (41, 2), (42, 0), (43, 0), (43, 0xEA), (44, 0), (46, 1)], ids=str
)
def test_fields_that_say_something_else_are_invalid(connected: Wire, offset: int, value: int) -> None:
    """SPSP0, SPSP1, SECP; TL and AL that are 0 or above the bound."""
    message = host_handshake().give()
    sqe = authentication_send(len(message))
    sqe[offset] = value
    answer = connected.ask(sqe, message)
    assert (answer.status, answer.dnr) == (Status.INVALID_FIELD, True)
    if offset != 46:
        sqe = authentication_receive()
        sqe[offset : offset + (4 if offset == 44 else 1)] = bytes([value]) + bytes(3 if offset == 44 else 0)
        assert connected.ask(sqe, room=4096).status == Status.INVALID_FIELD
    assert authenticate(connected).state is AuthState.DONE


def test_a_message_is_as_long_as_it_says_and_lies_in_the_capsule(connected: Wire) -> None:
    message = host_handshake().give()
    assert connected.ask(authentication_send(len(message) + 1), message).status == Status.SGL_LENGTH_INVALID
    assert connected.ask(authentication_send(len(message) - 1), message).status == Status.SGL_LENGTH_INVALID
    assert connected.ask(authentication_send(len(message)), room=len(message)).status == Status.SGL_TYPE_INVALID
    assert authenticate(connected).state is AuthState.DONE


def test_the_longest_message_may_come_and_no_longer_one(connected: Wire) -> None:
    assert send(connected, bytes(4097)).status == Status.INVALID_FIELD
    assert connected.queue.state is QueueState.LIVE
    assert send(connected, bytes(4096)).status == 0


def test_a_message_that_does_not_fit_is_there_for_the_next_receive(connected: Wire) -> None:
    handshake = host_handshake()
    send(connected, handshake.give())
    assert receive(connected, 47).status == Status.INVALID_FIELD
    assert receive(connected, 7).status == Status.INVALID_FIELD
    assert connected.ask(authentication_receive(4096), room=48).status == Status.INVALID_FIELD
    handshake.take(receive(connected, 48).data)
    assert handshake.state is AuthState.REPLY


def test_a_wrong_data_digest_fails_the_command_only(rig: GuardedRig) -> None:
    wire = rig.connection(pdu.Digest.DATA)
    wire.connect()
    message = host_handshake().give()
    sqe = authentication_send(len(message))
    pdu.SGL.pack_into(sqe, 24, 0, len(message), pdu.SGL_IN_CAPSULE)
    capsule = bytearray(b"".join(pdu.capsule_cmd(sqe, (message,), pdu.Digest.DATA)))
    capsule[-1] ^= 1
    wire.send(capsule)
    assert [answer.status for answer in wire.answers()] == [Status.TRANSIENT_TRANSPORT_ERROR]
    assert authenticate(wire).state is AuthState.DONE


def test_logs_name_the_host_and_no_secret(rig: GuardedRig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    wire = rig.connection()
    wire.connect()
    authenticate(wire)
    wire = rig.connection()
    wire.connect()
    authenticate(wire, WRONG)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("event=authenticated ") and NAME in line and "group=NULL" in line for line in lines)
    assert any(line.startswith("event=authentication_failed ") and "explanation=FAILED" in line for line in lines)
    assert not any(ONE_WAY.secret.text()[10:30] in line or ONE_WAY.secret.key.hex() in line for line in lines)


def test_the_discovery_subsystem_asks_for_nothing(rig: GuardedRig) -> None:
    wire = rig.connection()
    assert wire.connect(0, CONTROLLER_ID_DYNAMIC, nqn=DISCOVERY_NQN).dw0 & AUTHENTICATION_REQUIRED == 0
    assert identifies(wire) == 0
