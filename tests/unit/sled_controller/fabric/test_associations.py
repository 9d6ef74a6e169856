"""Where hosts are too many: who proved nothing makes room, and waits with fewer replies in memory."""

from kit import host
from kit.target import BLOCK, Rig, Wire

from sled_controller.fabric import vendor
from sled_controller.fabric.associations import Standing
from sled_controller.fabric.standard_controller import LOG_BYTES_MAX
from sled_controller.fabric.target import STRANGER_HELD_BYTES_MAX
from sled_controller.subsystem import ASSOCIATIONS_MAX
from spdk_bindings.nvme import LogPage, Status


def connected(rig: Rig) -> Wire:
    """A host that has said Connect and nothing else."""
    wire = rig.connection()
    assert wire.connect().status == 0
    return wire


def ended(wire: Wire) -> bool:
    return wire.queue.association is not None and wire.queue.association.ended


def test_hosts_that_prove_nothing_cannot_keep_heads_out() -> None:
    rig = Rig()
    strangers = [connected(rig) for _ in range(ASSOCIATIONS_MAX)]
    head = rig.attached()
    assert [ended(wire) for wire in strangers] == [True] + [False] * (ASSOCIATIONS_MAX - 1), "the oldest made room"
    strangers += [connected(rig) for _ in range(ASSOCIATIONS_MAX)]
    assert head.write(0, bytes(BLOCK)).status == 0, "a host that is attached makes room for nobody"


def test_a_flood_of_connects_makes_room_for_itself_and_not_for_a_host_that_is_on_its_way() -> None:
    rig = Rig()
    fencer = connected(rig)
    for _ in range(2 * ASSOCIATIONS_MAX):
        stranger = rig.connection()
        stranger.queue.peer_host = "192.0.2.66"
        assert stranger.connect().status == 0
    assert not ended(fencer)


def test_a_session_makes_room_after_those_without_one() -> None:
    rig = Rig()
    session = rig.head(host.OTHER_HEAD_KEY)
    assert session.admin.queue.standing is Standing.SESSION
    strangers = [connected(rig) for _ in range(ASSOCIATIONS_MAX)]
    assert ended(strangers[0])
    assert not ended(session.admin)
    session.attach(5, 1)
    assert session.admin.queue.standing is Standing.TRUSTED


def test_replies_to_a_stranger_that_it_does_not_read_are_bounded() -> None:
    rig = Rig()
    wire = connected(rig)
    assert wire.ask(vendor.property_set(0x14, 1), signed=False).status == 0  # type: ignore[arg-type]
    for _ in range(100):
        wire.start(vendor.get_log_page(LogPage.SLED_STATUS, LOG_BYTES_MAX), room=LOG_BYTES_MAX, signed=False)
    waiting = sum(len(part) for part in wire.queue.out)
    assert wire.queue.blocked
    assert STRANGER_HELD_BYTES_MAX < waiting < STRANGER_HELD_BYTES_MAX + 2 * LOG_BYTES_MAX


def test_a_log_page_is_read_in_parts() -> None:
    wire = connected(Rig())
    assert wire.ask(vendor.property_set(0x14, 1), signed=False).status == 0  # type: ignore[arg-type]
    length = LOG_BYTES_MAX + 4
    answer = wire.ask(vendor.get_log_page(LogPage.SLED_STATUS, length), room=length, signed=False)
    assert answer.status == Status.INVALID_FIELD
