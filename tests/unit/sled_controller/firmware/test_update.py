"""A download goes to the slot that is not in use, in whatever pieces; only a verified image is committed."""

from pathlib import Path

import pytest
from kit import firmware
from kit.firmware_store import SLOT_BYTES, board
from kit.held_work import HeldWork
from sled_board.region import Region
from sled_board.slots import ATTEMPTS, Slot, SlotState

from sled_controller.firmware.update import CommitAction, FirmwareUpdate
from spdk_bindings.nvme import Status

OLD = firmware.signed()
NEW = firmware.signed(firmware.recipe(version="1.5.0-rc.1"))
PIECE = 512
REPLACE, REPLACE_AND_ACTIVATE, ACTIVATE, ACTIVATE_NOW = CommitAction


def padded(data: bytes) -> bytes:
    """As a host has to send it: whole dwords."""
    return data + bytes(-len(data) % 4)


class Bench:
    """A board that runs `OLD` from slot A, a host that updates it, and storage that does its work at once."""

    def __init__(self, folder: Path) -> None:
        self.board = board(folder)
        self.board.use(OLD)
        self.restarts = 0
        self.host = object()
        self.flash = HeldWork()
        self.update = FirmwareUpdate(self.board.store, self.flash.submit, self.restart)

    def restart(self) -> None:
        self.restarts += 1

    def piece(self, offset: int, data: bytes, host: object = None) -> Status:
        ended: list[Status] = []
        self.update.download(host or self.host, offset, data, ended.append)
        (status,) = ended
        return status

    def send(self, data: bytes, size: int = PIECE) -> None:
        for offset in range(0, len(data), size):
            assert self.piece(offset, data[offset : offset + size]) is Status.SUCCESS

    def reset(self) -> Status:
        ended: list[Status] = []
        self.update.reset(ended.append)
        (status,) = ended
        return status

    def commit(self, slot: int, action: int, host: object = None) -> Status:
        ended: list[Status] = []
        self.update.commit(host or self.host, slot, action, ended.append)
        (status,) = ended
        return status

    def state(self, slot: Slot) -> SlotState:
        return self.board.slots[slot].state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_new_image_is_tried_after_the_restart_that_its_commit_asks_for(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.state(Slot.B) is SlotState.EMPTY
    assert bench.commit(2, ACTIVATE_NOW) is Status.SUCCESS
    assert bench.restarts == 1
    record = bench.board.slots[Slot.B]
    assert (record.state, record.attempts_left, record.version) == (SlotState.TEST, ATTEMPTS, "1.5.0-rc.1")
    assert bench.board.slots.start()[1] is Slot.B


def test_an_image_to_be_activated_by_a_reset_waits_for_it(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.commit(0, REPLACE_AND_ACTIVATE) is Status.FIRMWARE_NEEDS_SUBSYSTEM_RESET
    assert bench.restarts == 0
    assert bench.state(Slot.B) is SlotState.TEST
    assert (bench.update.active_slots, bench.update.revisions) == (1 | 2 << 4, {1: "1.4.0", 2: "1.5.0-rc"})


def test_an_image_may_be_stored_now_and_activated_later(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.commit(2, REPLACE) is Status.SUCCESS
    assert (bench.state(Slot.B), bench.update.active_slots) == (SlotState.INACTIVE, 1)
    assert bench.commit(2, ACTIVATE) is Status.FIRMWARE_NEEDS_SUBSYSTEM_RESET
    assert bench.state(Slot.B) is SlotState.TEST
    assert bench.commit(1, ACTIVATE) is Status.FIRMWARE_NEEDS_SUBSYSTEM_RESET  # called off
    assert bench.state(Slot.B) is SlotState.INACTIVE
    assert bench.commit(2, ACTIVATE_NOW) is Status.SUCCESS
    assert bench.restarts == 1


def test_pieces_may_come_in_any_order(bench: Bench) -> None:
    data = padded(NEW)
    offsets = list(range(0, len(data), PIECE))
    for offset in offsets[1::2] + offsets[::2]:
        assert bench.piece(offset, data[offset : offset + PIECE]) is Status.SUCCESS
    assert bench.commit(2, REPLACE) is Status.SUCCESS


def test_a_piece_that_overlaps_is_refused_and_harms_nothing(bench: Bench) -> None:
    data = padded(NEW)
    bench.send(data[: 2 * PIECE])
    assert bench.piece(PIECE, bytes(PIECE)) is Status.OVERLAPPING_RANGE
    assert bench.piece(2 * PIECE - 4, bytes(PIECE)) is Status.OVERLAPPING_RANGE
    for offset in range(2 * PIECE, len(data), PIECE):
        assert bench.piece(offset, data[offset : offset + PIECE]) is Status.SUCCESS
    assert bench.commit(2, REPLACE) is Status.SUCCESS


def test_a_host_that_sends_the_first_piece_again_begins_anew(bench: Bench) -> None:
    bench.send(padded(OLD)[: 3 * PIECE])
    bench.send(padded(NEW))
    assert bench.commit(2, REPLACE) is Status.SUCCESS
    assert bench.board.slots[Slot.B].version == "1.5.0-rc.1"


@pytest.mark.parametrize("missing", [0, 1, -1])
def test_an_image_with_a_gap_is_refused(bench: Bench, missing: int) -> None:
    data = padded(NEW)
    offsets = list(range(0, len(data), PIECE))
    del offsets[missing]
    for offset in offsets:
        assert bench.piece(offset, data[offset : offset + PIECE]) is Status.SUCCESS
    assert bench.commit(2, ACTIVATE_NOW) is Status.FIRMWARE_IMAGE_INVALID
    assert (bench.state(Slot.B), bench.restarts) == (SlotState.EMPTY, 0)


def test_what_a_host_pads_the_image_with_does_not_matter(bench: Bench) -> None:
    bench.send(padded(NEW) + bytes(4 * PIECE))
    assert bench.commit(2, REPLACE) is Status.SUCCESS


def test_a_piece_beyond_the_image_is_a_gap(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.piece(SLOT_BYTES - 4, bytes(4)) is Status.SUCCESS
    assert bench.commit(2, REPLACE) is Status.FIRMWARE_IMAGE_INVALID


def test_a_piece_past_the_slot_is_refused(bench: Bench) -> None:
    assert bench.piece(SLOT_BYTES - 4, bytes(8)) is Status.INVALID_FIELD
    assert bench.piece(SLOT_BYTES, bytes(4)) is Status.INVALID_FIELD
    assert bench.piece(0, b"") is Status.INVALID_FIELD


def test_what_does_not_verify_is_never_activated(bench: Bench) -> None:
    flipped = bytearray(NEW)
    flipped[-200] ^= 1
    older = firmware.signed(firmware.recipe(counter=firmware.COUNTER - 1))
    refused = [
        (bytes(flipped), Status.FIRMWARE_IMAGE_INVALID),
        (firmware.signed(keys=(firmware.FIRST,)), Status.FIRMWARE_IMAGE_INVALID),
        (firmware.signed(firmware.recipe(hardware=("another",))), Status.FIRMWARE_IMAGE_INVALID),
        (b"no image at all!", Status.FIRMWARE_IMAGE_INVALID),
        (older, Status.FIRMWARE_PROHIBITED),
    ]
    for data, status in refused:
        bench.send(padded(data))
        assert bench.commit(2, ACTIVATE_NOW) is status
        assert bench.state(Slot.B) is SlotState.EMPTY
    assert bench.restarts == 0
    assert bench.state(Slot.A) is SlotState.CONFIRMED


def test_what_rots_in_its_slot_is_not_activated_later(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.commit(2, REPLACE) is Status.SUCCESS
    bench.board.store.region(Slot.B).write(600, b"rot")
    assert bench.commit(2, ACTIVATE) is Status.FIRMWARE_IMAGE_INVALID
    assert bench.state(Slot.B) is SlotState.INACTIVE


def test_the_slot_in_use_is_not_replaced(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.commit(1, REPLACE_AND_ACTIVATE) is Status.FIRMWARE_SLOT_INVALID
    assert bench.state(Slot.A) is SlotState.CONFIRMED
    assert bench.board.store.verified(Slot.A, bench.board.slots).version == "1.4.0"


def test_a_commit_of_nothing_or_of_an_unknown_slot_or_action_is_refused(bench: Bench) -> None:
    assert bench.commit(2, REPLACE) is Status.FIRMWARE_IMAGE_INVALID
    assert bench.commit(2, REPLACE_AND_ACTIVATE) is Status.FIRMWARE_IMAGE_INVALID
    assert bench.commit(2, ACTIVATE) is Status.FIRMWARE_IMAGE_INVALID  # it is empty
    assert bench.commit(0, ACTIVATE) is Status.FIRMWARE_SLOT_INVALID
    assert bench.commit(3, ACTIVATE) is Status.FIRMWARE_SLOT_INVALID
    for action in (4, 5, 6, 7):
        assert bench.commit(2, action) is Status.INVALID_FIELD


def test_a_commit_ends_the_download(bench: Bench) -> None:
    bench.send(padded(NEW))
    assert bench.commit(2, REPLACE) is Status.SUCCESS
    assert bench.commit(2, REPLACE) is Status.FIRMWARE_IMAGE_INVALID
    assert bench.state(Slot.B) is SlotState.INACTIVE


def test_only_one_host_at_a_time_downloads(bench: Bench) -> None:
    other = object()
    data = padded(NEW)
    bench.send(data[:PIECE])
    assert bench.piece(0, data[:PIECE], other) is Status.COMMAND_INTERRUPTED
    assert bench.commit(2, REPLACE, other) is Status.COMMAND_INTERRUPTED
    bench.update.forget(other)
    assert bench.piece(PIECE, data[PIECE : 2 * PIECE]) is Status.SUCCESS
    bench.update.forget(bench.host)
    assert bench.piece(0, data[:PIECE], other) is Status.SUCCESS


def test_until_what_runs_is_confirmed_the_other_slot_is_left_alone(bench: Bench) -> None:
    bench.board.install(Slot.B, NEW)
    bench.board.store.change(lambda slots: slots.start()[0])
    assert bench.piece(0, padded(OLD)[:PIECE]) is Status.COMMAND_INTERRUPTED
    assert bench.commit(1, ACTIVATE) is Status.COMMAND_INTERRUPTED
    assert bench.state(Slot.A) is SlotState.CONFIRMED
    assert bench.state(Slot.B) is SlotState.TEST
    bench.board.store.change(lambda slots: slots.confirm(Slot.B))
    bench.send(padded(OLD))
    assert bench.commit(1, REPLACE) is Status.SUCCESS
    assert (bench.update.revision, bench.update.active_slots) == ("1.5.0-rc", 2)


def test_a_power_loss_in_a_download_leaves_an_empty_slot_and_what_runs(bench: Bench) -> None:
    bench.board.install(Slot.B, NEW)
    bench.board.store.change(lambda slots: slots.activate(Slot.A))
    assert bench.state(Slot.B) is SlotState.INACTIVE
    bench.send(padded(OLD)[:PIECE])
    slots, chosen = bench.board.slots.start()
    assert (slots[Slot.B].state, chosen) == (SlotState.EMPTY, Slot.A)


def test_a_storage_that_fails_is_said_and_nothing_is_committed(bench: Bench, tmp_path: Path) -> None:
    data = padded(NEW)
    bench.send(data[:PIECE])
    (tmp_path / "slot-b").unlink()
    assert bench.piece(PIECE, data[PIECE : 2 * PIECE]) is Status.INTERNAL_ERROR
    assert bench.commit(2, ACTIVATE_NOW) is Status.FIRMWARE_IMAGE_INVALID
    assert bench.restarts == 0


def test_pieces_are_answered_when_they_are_written(bench: Bench) -> None:
    ended: list[Status] = []
    with bench.flash.held():
        bench.update.download(bench.host, 0, padded(NEW), ended.append)
        assert not ended
    assert ended == [Status.SUCCESS]
    assert bench.commit(2, REPLACE) is Status.SUCCESS


def test_a_sled_whose_slot_state_cannot_be_read_serves_and_takes_no_firmware(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "state").write_bytes(b"rotten" * 1400)
    bench.update = FirmwareUpdate(bench.board.store, bench.flash.submit, bench.restart)
    assert (bench.update.revision, bench.update.active_slots, bench.reset()) == ("", 0, Status.INTERNAL_ERROR)
    assert bench.piece(0, NEW[:PIECE]) is not Status.SUCCESS


def test_what_is_shown_of_a_settled_board_is_read_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr(Region, "read", lambda _, offset, length: reads.append(offset))
    assert (bench.update.revision, bench.update.active_slots, bench.update.revisions) == ("1.4.0", 1, {1: "1.4.0"})
    assert bench.update.page
    assert not reads


def test_what_the_stage_confirms_meanwhile_is_shown(bench: Bench) -> None:
    bench.board.store.change(lambda slots: slots.start()[0])
    bench.update = FirmwareUpdate(bench.board.store, bench.flash.submit, bench.restart)
    before = bench.update.page
    assert bench.reset() is Status.COMMAND_INTERRUPTED
    bench.board.store.change(lambda slots: slots.confirm(Slot.A))
    assert bench.update.page != before
    assert (bench.reset(), bench.restarts) == (Status.SUCCESS, 1)


def test_nothing_comes_between_an_activation_and_its_restart(bench: Bench) -> None:
    bench.send(padded(NEW))
    ended: list[Status] = []
    with bench.flash.held():
        bench.update.commit(bench.host, 0, ACTIVATE_NOW, ended.append)
        other = object()
        assert bench.piece(0, NEW[:PIECE], other) is Status.COMMAND_INTERRUPTED
        assert bench.commit(1, ACTIVATE, other) is Status.COMMAND_INTERRUPTED
    assert (ended, bench.restarts) == ([Status.SUCCESS], 1)
    assert bench.piece(0, NEW[:PIECE]) is Status.COMMAND_INTERRUPTED
    assert bench.board.slots[Slot.B].state is SlotState.TEST


def test_an_activation_that_is_refused_holds_nobody_up(bench: Bench) -> None:
    assert bench.commit(2, ACTIVATE_NOW) is not Status.SUCCESS
    assert bench.restarts == 0
    bench.send(padded(NEW))
