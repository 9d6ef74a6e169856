"""A Connect without the right to a queue takes nothing from the host that has it: on sleds, exports and discovery."""

from itertools import pairwise

from kit import host
from kit.guarded import GuardedRig, authenticate
from kit.nvme_export import NQN as VOLUME_NQN
from kit.nvme_export import Host, Port
from kit.target import BLOCK, HOST_NQN, Rig, Stranger, Wire

from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.associations import Associations, HostAssociation
from sled_controller.fabric.connect import CONNECTS_REFUSED_MAX
from sled_controller.fabric.target import QueueState, TargetQueue
from spdk_bindings.nvme import CC_ENABLE, DISCOVERY_NQN, AdminOpcode, FabricsType, IoOpcode, Property, Status


def fabrics(kind: FabricsType) -> bytearray:
    sqe = bytearray(64)
    sqe[0], sqe[1], sqe[4] = AdminOpcode.FABRICS, pdu.PSDT_SGL, kind
    return sqe


def flush(host: Host) -> int:
    return host.ask(IoOpcode.FLUSH).status


# --- a second Connect of a queue id


def test_a_second_connect_of_a_heads_queue_is_refused_and_the_head_goes_on() -> None:
    rig = Rig()
    head = rig.attached()
    answer = rig.connection().connect(1, head.controller_id)
    assert (answer.status, answer.dnr) == (Status.COMMAND_SEQUENCE_ERROR, True)
    assert head.write(0, bytes(BLOCK)).status == 0
    assert head.admin.ask(vendor.keep_alive(), signed=False).status == 0


def test_a_connect_on_a_queue_that_is_connected_is_refused_and_the_queue_goes_on() -> None:
    head = Rig().attached()
    for queue_id, wire in enumerate((head.admin, head.io)):
        assert wire.connect(queue_id, head.controller_id).status == Status.COMMAND_SEQUENCE_ERROR
    assert head.write(0, bytes(BLOCK)).status == 0


def test_a_second_connect_before_the_session_takes_no_queue_either() -> None:
    rig = Rig()
    stranger = rig.stranger()
    assert rig.connection().connect(1, stranger.controller_id).status == Status.COMMAND_SEQUENCE_ERROR
    assert not stranger.io.queue.association.ended  # type: ignore[union-attr]


def test_a_second_connect_at_an_export_without_secrets_takes_no_queue() -> None:
    port = Port()
    victim = Host(port)
    answer = port.connection().connect(1, victim.controller_id, nqn=VOLUME_NQN)
    assert answer.status == Status.COMMAND_SEQUENCE_ERROR
    assert flush(victim) == 0


def test_a_connect_to_a_discovery_controllers_queues_takes_nothing() -> None:
    for listening in (Rig(), Port()):
        watcher = listening.connection()
        controller_id = watcher.connect(nqn=DISCOVERY_NQN).dw0
        assert watcher.ask(vendor.property_set(Property.CC, CC_ENABLE), signed=False).status == 0
        for queue_id in (1, 2):
            assert listening.connection().connect(queue_id, controller_id, nqn=DISCOVERY_NQN).status != 0
        assert watcher.ask(vendor.keep_alive(), signed=False).status == 0


# --- queues that were connected beside a host's own


def beside(port: Port, victim: Host) -> Wire:
    """A queue id that the host does not use, connected by whatever has seen its names."""
    wire = port.connection()
    assert wire.connect(7, victim.controller_id, nqn=VOLUME_NQN).status == 0
    return wire


def test_what_happens_on_one_io_queue_ends_no_other() -> None:
    port = Port()
    victim = Host(port)
    beside(port, victim).send(b"\xff" * 8)
    beside(port, victim).send(pdu.term_req(pdu.PduType.H2C_TERM_REQ, 1, 0, b""))
    beside(port, victim).queue.lost("connection lost")
    assert beside(port, victim).ask(fabrics(FabricsType.DISCONNECT)).status == 0
    assert flush(victim) == 0
    own = victim.queue(7)
    assert own.queue.state is QueueState.LIVE, "the queue id is free again"


def test_what_breaks_on_one_io_queue_of_a_session_ends_the_association() -> None:
    """A queue that came back would count its nonces from 0."""
    head = Rig().attached()
    head.io.send(b"\xff" * 8)
    assert head.admin.queue.state is QueueState.CLOSING


def test_an_io_queue_of_a_host_without_a_secret_comes_from_the_address_of_its_admin_queue() -> None:
    port = Port()
    victim = Host(port)
    elsewhere = Wire(port)
    elsewhere.queue = TargetQueue(port.port, port.clock.boottime_ns(), peer_host="192.0.2.66")
    elsewhere.send(pdu.ic_req(0))
    elsewhere.receive()
    answer = elsewhere.connect(2, victim.controller_id, nqn=VOLUME_NQN)
    assert answer.status == Status.CONNECT_INVALID_PARAMETERS
    assert flush(victim) == 0


# --- queues whose host has still to prove itself


def test_connects_of_a_queue_id_do_not_displace_a_host_that_is_authenticating() -> None:
    rig = GuardedRig()
    _, controller_id = rig.live()
    own = rig.io_queue(controller_id)
    others = [rig.io_queue(controller_id) for _ in range(3)]
    authenticate(own)
    assert own.queue.state is QueueState.LIVE
    assert [wire.queue.state for wire in others] == [QueueState.CLOSING] * 3, "the queue is taken"
    assert rig.connection().connect(1, controller_id).status == Status.COMMAND_SEQUENCE_ERROR
    assert own.queue.state is QueueState.LIVE


def test_queues_that_are_authenticating_end_with_their_association() -> None:
    rig = GuardedRig()
    admin, controller_id = rig.live()
    waiting = rig.io_queue(controller_id)
    admin.queue.lost("connection lost")
    assert waiting.queue.state is QueueState.CLOSING
    admin, controller_id = rig.live()
    waiting = rig.io_queue(controller_id)
    assert admin.ask(vendor.property_set(Property.CC, 0)).status == 0
    assert waiting.queue.state is QueueState.CLOSING


# --- guesses


def test_controller_ids_cannot_be_foretold() -> None:
    rig, port = Rig(), Port()
    of_sled = [rig.connection().connect().dw0 for _ in range(8)]
    of_volume = [port.connection().connect(nqn=VOLUME_NQN).dw0 for _ in range(8)]
    of_discovery = [port.connection().connect(nqn=DISCOVERY_NQN).dw0 for _ in range(8)]
    for ids in (of_sled, of_volume, of_discovery):
        steps = {later - former for former, later in pairwise(ids)}
        assert len(set(ids)) == 8
        assert len(steps) > 3, f"{ids} follow each other"


def test_a_controller_id_is_not_given_out_again_soon() -> None:
    associations: Associations[HostAssociation] = Associations(2, host.FixedEntropy(), 1, 8)
    ids = []
    for _ in range(40):
        association = associations.open(lambda number: HostAssociation(number, HOST_NQN, bytes(16)))
        assert association is not None
        ids.append(association.controller_id)
        association.end("over")
    assert set(ids) <= set(range(1, 9))
    assert all(later not in ids[max(0, at - 2) : at] for at, later in enumerate(ids))


def test_a_connection_has_few_guesses() -> None:
    rig = Rig()
    victim = Stranger(rig)
    wire = rig.connection()
    for _ in range(CONNECTS_REFUSED_MAX):
        assert wire.connect(1, victim.controller_id ^ 1).status == Status.CONNECT_INVALID_PARAMETERS
    assert wire.queue.state is QueueState.CLOSING
