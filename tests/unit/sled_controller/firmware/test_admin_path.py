"""Firmware by NVMe's commands: only from a host that has proved to manage the sled, in the capsule or by R2T."""

from dataclasses import replace
from pathlib import Path

import pytest
from kit import firmware, guarded
from kit.firmware_store import SLOT_BYTES, Board, board
from kit.held_work import HeldWork
from kit.target import Rig, Wire
from sled_board.slots import Slot, SlotState

from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.dhchap.algorithms import HashId
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.target import QueueState
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.subsystem import Subsystem
from spdk_bindings.identify import CONTROLLER_FORMAT
from spdk_bindings.log_pages import FIRMWARE_FORMAT
from spdk_bindings.nvme import (
    CAP_SUBSYSTEM_RESET,
    CC_ENABLE,
    NSSR_RESET,
    SGL_FLAGS,
    SQE,
    AdminOpcode,
    FabricsType,
    IdentifyCns,
    LogPage,
    Property,
    Status,
    sgl_transport,
)

OLD = firmware.signed()
NEW = firmware.signed(firmware.recipe(version="1.5.0"))
NEW += bytes(-len(NEW) % 4)
PIECE = 1024
WRONG = replace(guarded.TERMS, secret=Secret(bytes(32), HashId.SHA256))


class ManagedRig(Rig):
    """A sled that runs from slot A, and is managed by the fixed host."""

    def __init__(self, folder: Path, *, managed: bool = True) -> None:
        super().__init__()
        self.board: Board = board(folder)
        self.board.use(OLD)
        self.restarts = 0
        self.flash = HeldWork()
        update = FirmwareUpdate(self.board.store, self.flash.submit, self.restart)
        managers = ManagementHosts({guarded.NAME: guarded.TERMS} if managed else {})
        self.subsystem = Subsystem(
            self.subsystem.identity, self.storage, self.env, self.timers.call_later, firmware=update, managers=managers
        )

    def restart(self) -> None:
        self.restarts += 1

    def manager(self, digests: int = 0) -> Wire:
        """An authenticated admin queue of an enabled controller."""
        wire = self.connection(digests)
        wire.connect()
        guarded.authenticate(wire)
        assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
        return wire


def sqe(opcode: int, cdw10: int = 0, cdw11: int = 0) -> bytearray:
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), cdw10, cdw11, 0, 0, 0, 0))


def download(offset: int, length: int) -> bytearray:
    return sqe(AdminOpcode.FIRMWARE_DOWNLOAD, length // 4 - 1, offset // 4)


def send(wire: Wire, data: bytes) -> None:
    for offset in range(0, len(data), PIECE):
        piece = data[offset : offset + PIECE]
        assert wire.ask(download(offset, len(piece)), piece).status == 0


def commit(wire: Wire, slot: int, action: int) -> int:
    return wire.ask(sqe(AdminOpcode.FIRMWARE_COMMIT, slot | action << 3)).status


def ask_r2t(wire: Wire, command: bytearray, length: int) -> tuple[int, int]:
    """Send a command whose data goes by R2T; its command id and the transfer tag."""
    cid = wire.next_cid()
    command[2:4] = cid.to_bytes(2, "little")
    command[24:40] = sgl_transport(length)
    wire.send(*pdu.capsule_cmd(command, (), wire.digests))
    ((asked, ttag, told),) = wire.r2ts()
    assert (asked, told) == (cid, length)
    return cid, ttag


@pytest.fixture
def rig(tmp_path: Path) -> ManagedRig:
    return ManagedRig(tmp_path)


def test_a_manager_updates_the_sled(rig: ManagedRig) -> None:
    wire = rig.manager()
    send(wire, NEW)
    assert commit(wire, 2, 3) == 0
    assert rig.restarts == 1
    assert rig.board.slots[Slot.B].state is SlotState.TEST
    page = FIRMWARE_FORMAT.parse(log_page(wire))
    assert page.active == 1 | 2 << 4
    assert [bytes(revision) for revision in page.revisions] == [b"1.4.0   ", b"1.5.0   ", *[bytes(8)] * 5]


def log_page(wire: Wire) -> bytes:
    return wire.ask(sqe(AdminOpcode.GET_LOG_PAGE, LogPage.FIRMWARE_SLOT | 127 << 16), room=512).data


def test_identify_says_what_runs_and_that_it_can_be_updated(rig: ManagedRig) -> None:
    page = rig.manager().ask(sqe(AdminOpcode.IDENTIFY, IdentifyCns.CONTROLLER), room=4096).data
    fields = CONTROLLER_FORMAT.parse(page)
    assert (fields.firmware, fields.admin_optional, fields.firmware_updates) == (b"1.4.0   ", 1 << 2, 0x14)
    assert (page[64:72], page[256], page[260], page[319]) == (b"1.4.0   ", 4, 0x14, 0xFF)


def test_a_host_of_another_name_is_denied(rig: ManagedRig) -> None:
    wire = rig.connection()
    assert wire.connect(host_nqn=b"nqn.2014-08.org.nvmexpress:uuid:other").status == 0
    assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
    answer = wire.ask(download(0, PIECE), NEW[:PIECE])
    assert (answer.status, answer.dnr) == (Status.ACCESS_DENIED, True)
    assert commit(wire, 2, 3) == Status.ACCESS_DENIED
    assert rig.subsystem.counters.denied == 2
    assert wire.ask(property_set(Property.NSSR, NSSR_RESET)).status == Status.INVALID_FIELD
    assert rig.restarts == 0


def test_a_manager_s_name_without_a_proof_gets_nothing(rig: ManagedRig) -> None:
    wire = rig.connection()
    wire.connect()
    assert wire.ask(download(0, PIECE), NEW[:PIECE]).status == Status.AUTHENTICATION_REQUIRED
    guarded.authenticate(wire, WRONG)
    assert wire.queue.state is QueueState.CLOSING
    assert rig.board.slots[Slot.B].state is SlotState.EMPTY


def test_without_managers_nobody_updates_the_sled(tmp_path: Path) -> None:
    rig = ManagedRig(tmp_path, managed=False)
    wire = rig.connection()
    wire.connect()
    assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
    assert commit(wire, 2, 3) == Status.ACCESS_DENIED


def test_a_sled_without_slots_knows_no_such_commands() -> None:
    rig = Rig()
    wire = rig.connection()
    wire.connect()
    assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
    assert commit(wire, 1, 3) == Status.INVALID_OPCODE
    assert FIRMWARE_FORMAT.parse(log_page(wire)).active == 1


@pytest.mark.parametrize("digests", [0, 3])
def test_long_pieces_come_by_r2t(rig: ManagedRig, digests: int) -> None:
    wire = rig.manager(digests)
    cid, ttag = ask_r2t(wire, download(0, len(NEW)), len(NEW))
    half = len(NEW) // 8 * 4
    wire.send(*pdu.h2c_data(cid, ttag, 0, (NEW[:half],), False, digests))
    assert wire.answers() == []
    wire.send(*pdu.h2c_data(cid, ttag, half, (NEW[half:],), True, digests))
    (answer,) = wire.answers()
    assert (answer.cid, answer.status) == (cid, 0)
    assert commit(wire, 2, 0) == 0


def test_a_piece_whose_digest_is_wrong_may_be_sent_again(rig: ManagedRig) -> None:
    wire = rig.manager(digests=2)
    cid, ttag = ask_r2t(wire, download(0, len(NEW)), len(NEW))
    parts = [bytes(part) for part in pdu.h2c_data(cid, ttag, 0, (NEW,), True, 2)]
    wire.send(b"".join(parts)[:-1] + bytes([parts[-1][-1] ^ 1]))
    (answer,) = wire.answers()
    assert (answer.status, answer.dnr) == (Status.TRANSIENT_TRANSPORT_ERROR, False)
    assert wire.queue.io is not None
    assert wire.queue.io.held_bytes == 0
    cid, ttag = ask_r2t(wire, download(0, len(NEW)), len(NEW))
    wire.send(*pdu.h2c_data(cid, ttag, 0, (NEW,), True, 2))
    assert wire.answers()[0].status == 0
    assert commit(wire, 2, 0) == 0


def test_pieces_that_are_not_written_yet_hold_the_host_up(rig: ManagedRig) -> None:
    wire = rig.manager()
    size = 256 * 1024
    with rig.flash.held():
        for offset in range(0, SLOT_BYTES, size):
            cid, ttag = ask_r2t(wire, download(offset, size), size)
            wire.send(*pdu.h2c_data(cid, ttag, 0, (bytes(size),), True, 0))
        assert wire.queue.io is not None
        assert wire.queue.io.held_bytes == SLOT_BYTES <= rig.subsystem.limits.held_bytes_max
    assert [answer.status for answer in wire.answers()] == [0] * (SLOT_BYTES // size)
    assert wire.queue.io.held_bytes == 0


def test_a_command_that_does_not_fit_its_data_is_refused(rig: ManagedRig) -> None:
    wire = rig.manager()
    assert wire.ask(download(0, 2 * PIECE), NEW[:PIECE]).status == Status.SGL_LENGTH_INVALID
    moved = download(0, PIECE)
    cid = wire.next_cid()
    moved[2:4] = cid.to_bytes(2, "little")
    moved[24:40] = pdu.SGL.pack(4, PIECE, pdu.SGL_IN_CAPSULE)
    wire.send(*pdu.capsule_cmd(moved, (NEW[:PIECE],), 0))
    assert wire.answers()[0].status == Status.SGL_OFFSET_INVALID
    odd = download(0, PIECE)
    odd[2:4] = wire.next_cid().to_bytes(2, "little")
    odd[24:40] = pdu.SGL.pack(0, PIECE, 0x00)
    wire.send(*pdu.capsule_cmd(odd, (), 0))
    assert wire.answers()[0].status == Status.SGL_TYPE_INVALID
    long = download(0, 2 << 20)
    long[2:4] = wire.next_cid().to_bytes(2, "little")
    long[24:40] = sgl_transport(2 << 20)
    wire.send(*pdu.capsule_cmd(long, (), 0))
    assert wire.answers()[0].status == Status.INVALID_FIELD


def test_a_host_that_leaves_or_resets_takes_its_download_along(rig: ManagedRig) -> None:
    first, second = rig.manager(), rig.manager()
    send(first, NEW[:PIECE])
    assert second.ask(download(0, PIECE), NEW[:PIECE]).status == Status.COMMAND_INTERRUPTED
    assert first.ask(vendor.property_set(Property.CC, 0)).status == 0
    send(second, NEW)
    second.queue.lost("gone")
    third = rig.manager()
    assert commit(third, 2, 3) == Status.FIRMWARE_IMAGE_INVALID
    assert rig.restarts == 0


def property_set(offset: int, value: int) -> bytearray:
    return bytearray(
        pdu.PROPERTY_SQE.pack(AdminOpcode.FABRICS, SGL_FLAGS, 0, FabricsType.PROPERTY_SET, 0, offset, value)
    )


def test_a_manager_resets_the_subsystem(rig: ManagedRig) -> None:
    wire = rig.manager()
    asked = pdu.PROPERTY_SQE.pack(AdminOpcode.FABRICS, SGL_FLAGS, 0, FabricsType.PROPERTY_GET, 1, Property.CAP, 0)
    answer = wire.ask(bytearray(asked))
    assert (answer.dw0 | answer.dw1 << 32) & CAP_SUBSYSTEM_RESET
    assert wire.ask(property_set(Property.NSSR, 1)).status == 0
    assert rig.restarts == 0
    assert wire.ask(property_set(Property.NSSR, NSSR_RESET)).status == 0
    assert rig.restarts == 1


def test_a_sled_that_was_not_found_healthy_yet_is_not_reset(rig: ManagedRig) -> None:
    rig.board.store.change(lambda slots: slots.start()[0])
    wire = rig.manager()
    assert wire.ask(property_set(Property.NSSR, NSSR_RESET)).status == Status.COMMAND_INTERRUPTED
    assert rig.restarts == 0
