"""Flashing a played board: what is confirmed survives whatever board and line do, and a flash goes on after a cut."""

from collections.abc import Callable
from random import Random

import pytest
from kit import firmware
from kit.fake_uboot import FakeLine, FakeUBoot, played
from sled_board.board import load_board
from sled_board.board_console import PIECE_BYTES
from sled_board.errors import (
    BoardReset,
    BoardSilent,
    CommandRefused,
    ConsoleError,
    ContentDiffers,
    FirmwareUnhealthy,
    FlashRefused,
    PortLost,
    RolledBack,
    SlotStateLost,
    WrongHardware,
    WrongSignature,
)
from sled_board.flash_events import (
    Activated,
    AtPrompt,
    Chosen,
    Confirmed,
    Event,
    NothingToDo,
    Reported,
    Restarted,
    Sent,
)
from sled_board.flasher import After, Before, Choices, checked_image, flash
from sled_board.image import Trust, read_image
from sled_board.slot_store import COPY_BYTES, encode, newest
from sled_board.slots import Slot, SlotRecord, Slots, SlotState

BOARD = load_board("qemu-virt-arm64")
NOISE = Random(5)
OLD = firmware.signed(firmware.recipe(version="1.0.0"))
NEW = firmware.signed(firmware.recipe(version="1.1.0", payloads={"application": NOISE.randbytes(2 * PIECE_BYTES)}))
PIECES = -(-len(NEW) // PIECE_BYTES)
STAY = Choices(after=After.STAY)


def state_of(uboot: FakeUBoot) -> Slots:
    """What the board would go by at its next start."""
    found = newest([uboot.slot_bytes(offset, COPY_BYTES) for offset in BOARD.storage.state.offsets])
    assert found is not None
    return found[1].slots


def keep(uboot: FakeUBoot, slots: Slots) -> None:
    """Put a state there, as on a board in use."""
    for index, offset in enumerate(BOARD.storage.state.offsets):
        put(uboot, offset, encode(slots, index + 1))


def put(uboot: FakeUBoot, offset: int, data: bytes) -> None:
    for at in range(0, len(data), 512):
        uboot.storage[(offset + at) // 512] = data[at : at + 512].ljust(512, b"\0")


def in_use(**more: object) -> FakeUBoot:
    """A board that runs OLD out of slot A, confirmed."""
    uboot = FakeUBoot(**more)  # type: ignore[arg-type]
    image = read_image(OLD)
    put(uboot, BOARD.storage.slot_a.offset, OLD)
    record = SlotRecord(SlotState.CONFIRMED, 3, image.counter, image.id, image.version)
    keep(uboot, Slots(record, active=Slot.A, counter_min=image.counter))
    return uboot


def still_confirmed(uboot: FakeUBoot) -> bool:
    whole = uboot.slot_bytes(BOARD.storage.slot_a.offset, len(OLD)) == OLD
    return whole and state_of(uboot).a.state is SlotState.CONFIRMED


def flashed(line: FakeLine, data: bytes = NEW, choices: Choices = STAY, trust: Trust | None = None) -> list[Event]:
    async def work() -> list[Event]:
        return [event async for event in flash(line, BOARD, data, trust or firmware.trust(), choices)]

    return played(work())


# --- the good way


def test_an_image_goes_into_the_slot_that_is_not_in_use_and_is_to_be_tried() -> None:
    uboot = in_use()
    events = flashed(FakeLine(uboot))
    assert uboot.slot_bytes(BOARD.storage.slot_b.offset, len(NEW)) == NEW
    after = state_of(uboot)
    assert after.b == SlotRecord(SlotState.TEST, 3, firmware.COUNTER, read_image(NEW).id, "1.1.0")
    assert still_confirmed(uboot)
    assert Activated(Slot.B) in events
    assert events[[isinstance(each, Chosen) for each in events].index(True)] == Chosen(Slot.B, events[1].before)  # type: ignore[union-attr]


def test_a_new_board_gets_its_first_state() -> None:
    uboot = FakeUBoot()
    flashed(FakeLine(uboot))
    assert state_of(uboot).a.state is SlotState.TEST


def test_progress_never_goes_back_and_ends_with_everything() -> None:
    sent = [event for event in flashed(FakeLine(in_use())) if isinstance(event, Sent)]
    assert [event.done_bytes for event in sent] == sorted(event.done_bytes for event in sent)
    assert sent[-1] == Sent(len(NEW), len(NEW), 0)


def test_what_lies_there_already_is_not_sent_again() -> None:
    uboot = in_use()
    flashed(FakeLine(uboot))
    line = FakeLine(uboot)
    sent = [event for event in flashed(line) if isinstance(event, Sent)]
    assert sent[-1] == Sent(len(NEW), len(NEW), len(NEW))
    assert line.sent_bytes < PIECE_BYTES


def test_a_confirmed_image_is_skipped_when_asked() -> None:
    uboot = in_use()
    events = flashed(FakeLine(uboot), OLD, Choices(after=After.STAY, skip_flashed=True))
    assert NothingToDo(Slot.A) in events
    assert uboot.writes == 0


def test_a_dry_run_writes_nothing() -> None:
    uboot = in_use()
    events = flashed(FakeLine(uboot), choices=Choices(dry_run=True, after=After.WAIT))
    assert isinstance(events[-2], Chosen)
    assert events[-1] == Restarted()
    assert uboot.writes == 0


@pytest.mark.parametrize("before", list(Before))
def test_the_prompt_is_reached_from_the_countdown(before: Before) -> None:
    uboot = in_use()
    line = FakeLine(uboot)
    line.waiting += uboot.power_on()
    flashed(line, choices=Choices(before=before, after=After.STAY))
    assert state_of(uboot).b.state is SlotState.TEST


def test_a_faster_rate_is_used_and_given_back() -> None:
    uboot = in_use(rates=(921600, 115200))
    line = FakeLine(uboot)
    flashed(line, choices=Choices(after=After.STAY, rate=921600))
    assert uboot.commands.count("setenv baudrate 921600") == 1
    assert (uboot.baud, line.baud) == (115200, 115200)


def test_a_board_that_a_cut_flash_left_at_a_faster_rate_is_found() -> None:
    fast = BOARD.model_copy(update={"console": BOARD.console.model_copy(update={"baud_faster": (921600,)})})
    uboot = in_use(rates=(921600, 115200), baud=921600)

    async def work() -> list[Event]:
        return [event async for event in flash(FakeLine(uboot), fast, NEW, firmware.trust(), STAY)]

    assert Activated(Slot.B) in played(work())
    assert uboot.baud == 115200


def test_a_rate_that_the_board_refuses_ends_before_anything_is_written() -> None:
    uboot = in_use()
    with pytest.raises(FlashRefused, match="does not speak 921600 baud"):
        flashed(FakeLine(uboot), choices=Choices(rate=921600))
    assert uboot.writes == 0


# --- health


def stage(event: str, data: bytes, more: str = "") -> str:
    image = read_image(data)
    return f"stage: event={event} slot=b version={image.version} image={image.id} {more}\r\n"


def test_the_report_of_health_is_waited_for() -> None:
    said = "Linux version 6\r\n" + stage("starting", NEW, "state=test attempts_left=2") + stage("healthy", NEW)
    events = flashed(FakeLine(in_use(says_after_reset=said)), choices=Choices(after=After.WAIT))
    assert [event.event for event in events if isinstance(event, Reported)] == ["starting", "healthy"]
    assert events[-1] == Confirmed(Slot.B)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (stage("starting", NEW) + stage("unhealthy", NEW, "checks=3"), "failed its health checks"),
        (stage("starting", NEW) + stage("starting", OLD), "gave the new firmware up"),
        (stage("starting", OLD), "did not start it"),
        ("stage: event=recovery\r\n", "nothing left to start"),
    ],
)
def test_a_board_that_goes_back_is_said(said: str, told: str) -> None:
    with pytest.raises(FirmwareUnhealthy, match=told):
        flashed(FakeLine(in_use(says_after_reset=said)), choices=Choices(after=After.WAIT))


def test_silence_after_the_start_is_said_with_the_last_words() -> None:
    with pytest.raises(BoardSilent, match=r"within 30 s; received .*Linux version 6"):
        flashed(
            FakeLine(in_use(says_after_reset="Linux version 6\r\n")), choices=Choices(after=After.WAIT, health_s=30)
        )


# --- refusals


def test_wrong_images_are_refused_before_the_board_hears_anything() -> None:
    line = FakeLine(in_use())
    other = firmware.signed(firmware.recipe(hardware=("other",)))
    alone = firmware.signed(keys=(firmware.FIRST,))
    for data, error in ((other, WrongHardware), (alone, WrongSignature)):
        with pytest.raises(error):
            flashed(line, data)
    assert line.sent_bytes == 0


def test_an_image_larger_than_a_slot_is_refused() -> None:
    small = BOARD.storage.slot_b.model_copy(update={"size": 4096})
    board = BOARD.model_copy(update={"storage": BOARD.storage.model_copy(update={"slot_b": small})})
    with pytest.raises(FlashRefused, match=f"{len(NEW)} bytes, a slot of {BOARD.name} has 4096"):
        checked_image(NEW, board, firmware.trust())


def test_an_older_generation_is_refused_by_what_the_board_has_seen() -> None:
    uboot = in_use()
    keep(uboot, Slots(counter_min=firmware.COUNTER + 1))
    with pytest.raises(RolledBack):
        flashed(FakeLine(uboot))
    assert uboot.writes == 0


def test_keys_that_the_board_knows_to_be_over_are_refused() -> None:
    uboot = in_use()
    newer = firmware.key_set(2, 2, (firmware.SECOND, firmware.THIRD, firmware.DEVELOPER))
    keep(uboot, Slots(key_set=newer))
    with pytest.raises(WrongSignature):
        flashed(FakeLine(uboot))
    assert uboot.writes == 0


def test_another_board_is_refused() -> None:
    uboot = in_use(compatible="other,board")
    with pytest.raises(FlashRefused, match="linux,dummy-virt"):
        flashed(FakeLine(uboot))
    assert uboot.writes == 0


def test_an_older_u_boot_is_refused() -> None:
    data = firmware.signed(firmware.recipe(tlvs={firmware.Tag.BOOTLOADER_MIN: b"2024.07"}))
    with pytest.raises(FlashRefused, match=r"U-Boot 2023\.01, the image needs 2024\.07"):
        flashed(FakeLine(in_use()), data)


def test_a_lost_state_is_set_anew_only_by_force_and_keeps_older_generations_out() -> None:
    uboot = FakeUBoot()
    for offset in BOARD.storage.state.offsets:
        put(uboot, offset, b"\x55" * COPY_BYTES)
    with pytest.raises(SlotStateLost, match="--force"):
        flashed(FakeLine(uboot))
    assert uboot.writes == 0
    flashed(FakeLine(uboot), choices=Choices(after=After.STAY, force=True))
    assert state_of(uboot).counter_min == firmware.COUNTER
    assert state_of(uboot).a.state is SlotState.TEST


def lost(**more: object) -> FakeUBoot:
    """A board of which nobody knows what it runs, with an image in slot A."""
    uboot = in_use(**more)
    for offset in BOARD.storage.state.offsets:
        put(uboot, offset, b"\x55" * COPY_BYTES)
    return uboot


def test_force_forgets_no_image_that_the_board_could_make_its_state_of() -> None:
    uboot = lost()
    with pytest.raises(FlashRefused, match="slot a holds a whole image: start the board"):
        flashed(FakeLine(uboot), choices=Choices(after=After.STAY, force=True))
    assert uboot.writes == 0


@pytest.mark.parametrize("start", [b"", b"\xd0\x0d\xfe\xed\xff\xff\xff\xff", b"\xd0\x0d\xfe\xee\x00\x00\x10\x00"])
def test_what_is_no_image_does_not_stand_in_the_way_of_force(start: bytes) -> None:
    uboot = lost()
    put(uboot, BOARD.storage.slot_a.offset, start.ljust(512, b"\0"))
    flashed(FakeLine(uboot), choices=Choices(after=After.STAY, force=True))
    assert state_of(uboot).a.state is SlotState.TEST


def test_a_dry_run_writes_nothing_by_force_either() -> None:
    uboot = lost()
    put(uboot, BOARD.storage.slot_a.offset, bytes(512))
    flashed(FakeLine(uboot), choices=Choices(after=After.STAY, force=True, dry_run=True))
    assert uboot.writes == 0


@pytest.mark.parametrize("after", [After.RESET, After.WAIT])
def test_a_board_that_is_refused_is_started_all_the_same(after: After) -> None:
    uboot = in_use(rates=(921600, 115200))
    keep(uboot, Slots(counter_min=firmware.COUNTER + 1))
    line = FakeLine(uboot)
    with pytest.raises(RolledBack):
        flashed(line, choices=Choices(after=after, rate=921600))
    assert uboot.commands[-1] == "reset"
    assert line.baud == 115200


def test_a_board_that_is_refused_and_stays_speaks_its_own_rate_again() -> None:
    uboot = in_use(rates=(921600, 115200))
    keep(uboot, Slots(counter_min=firmware.COUNTER + 1))
    line = FakeLine(uboot)
    with pytest.raises(RolledBack):
        flashed(line, choices=Choices(after=After.STAY, rate=921600))
    assert (uboot.baud, line.baud) == (115200, 115200)


def test_the_next_rate_is_tried_where_the_board_refuses_one() -> None:
    console = BOARD.console.model_copy(update={"baud_faster": (921600, 460800)})
    board = BOARD.model_copy(update={"console": console})
    uboot = in_use(rates=(460800, 115200))

    async def work() -> list[Event]:
        return [event async for event in flash(FakeLine(uboot), board, NEW, firmware.trust(), STAY)]

    assert AtPrompt("2023.01", 460800) in played(work())


def test_an_image_of_another_architecture_is_refused_before_the_board_hears_anything() -> None:
    with pytest.raises(WrongHardware, match="it is for arm64, this board has riscv"):
        checked_image(NEW, BOARD.model_copy(update={"architecture": "riscv"}), firmware.trust())


# --- faults


def test_a_cut_cable_leaves_what_is_confirmed_and_the_flash_goes_on_where_it_was() -> None:
    uboot = in_use()
    with pytest.raises(PortLost):
        flashed(FakeLine(uboot, cut_at=PIECE_BYTES + PIECE_BYTES // 2))
    assert still_confirmed(uboot)
    assert state_of(uboot).b.state is SlotState.EMPTY
    sent = [event for event in flashed(FakeLine(uboot)) if isinstance(event, Sent)]
    assert sent[-1].skipped_bytes == PIECE_BYTES
    assert state_of(uboot).b.state is SlotState.TEST


@pytest.mark.parametrize("number", range(1, PIECES + 3))
def test_power_lost_at_any_write_leaves_what_is_confirmed(number: int) -> None:
    class PowerLost(Exception):
        pass

    def lose(count: int) -> None:
        if count == number:
            raise PowerLost

    uboot = in_use(after_write=lose)
    try:
        flashed(FakeLine(uboot))
        assert number > PIECES + 1
    except PowerLost:
        assert still_confirmed(uboot)
    uboot.after_write = lambda count: None
    line = FakeLine(uboot)
    line.waiting += uboot.power_on()
    flashed(line)
    assert state_of(uboot).b.state is SlotState.TEST


def damaging(every: int, seed: int) -> Callable[[bytes], bytes]:
    """Flips a bit of one byte in `every`."""
    random = Random(seed)

    def damage(data: bytes) -> bytes:
        return bytes(byte ^ (1 << random.randrange(8)) if random.randrange(every) == 0 else byte for byte in data)

    return damage


@pytest.mark.parametrize("seed", range(8))
def test_a_noisy_line_never_puts_anything_wrong_onto_the_board(seed: int) -> None:
    uboot = in_use()
    line = FakeLine(uboot, damage_in=damaging(3000, seed), damage_out=damaging(3000, seed + 100))
    try:
        flashed(line)
    except ConsoleError as error:
        assert "received" in str(error) or "noisy" in str(error)  # noqa: PT017
    assert still_confirmed(uboot)
    flashed(FakeLine(uboot))
    assert uboot.slot_bytes(BOARD.storage.slot_b.offset, len(NEW)) == NEW


def test_a_reset_in_the_midst_of_a_transfer_is_said() -> None:
    uboot = in_use()
    passed = 0

    def watch(data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        return data

    def reset(data: bytes) -> bytes:
        return uboot.power_on() if passed > PIECE_BYTES // 2 and len(data) == 1 else data

    with pytest.raises(BoardReset, match=r"started anew during `loady .*Hit any key"):
        flashed(FakeLine(uboot, damage_in=watch, damage_out=reset))
    assert still_confirmed(uboot)


def test_storage_that_does_not_give_back_what_was_written_is_said() -> None:
    uboot = in_use()

    def fail(count: int) -> None:
        uboot.storage[BOARD.storage.slot_b.offset // 512 + 3] = b"\x77" * 512

    uboot.after_write = fail
    with pytest.raises(ContentDiffers, match="the storage fails"):
        flashed(FakeLine(uboot))
    assert still_confirmed(uboot)


@pytest.mark.parametrize("command", ["virtio dev", "virtio read", "virtio write", "loady", "iminfo", "crc32"])
def test_a_command_that_fails_is_named_with_what_it_said(command: str) -> None:
    uboot = in_use(refused=(command,))
    with pytest.raises(CommandRefused, match=f"`{command} .*ended with status 1: .*refused"):
        flashed(FakeLine(uboot))
    assert still_confirmed(uboot)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: b"", "nothing was received; is the board on"),
        (lambda data: b"\xff\x00\x80\x81" * 3, "that is noise"),
        (lambda data: b"debian login: ", "if another system runs, power-cycle"),
        (lambda data: b"\r\n=>", "no prompt '=> ' within 90 s"),
    ],
)
def test_a_line_without_a_prompt_is_said_with_what_was_seen(damage: Callable[[bytes], bytes], told: str) -> None:
    with pytest.raises(BoardSilent, match=told):
        flashed(FakeLine(in_use(), damage_out=damage))


def test_a_looped_line_is_recognised() -> None:
    line = FakeLine(in_use())
    sent = bytearray()

    def note(data: bytes) -> bytes:
        sent[:] = data
        return b""

    line.damage_in = note
    line.damage_out = lambda data: bytes(sent)
    with pytest.raises(BoardSilent, match="only what was sent came back"):
        flashed(line)


def test_a_line_of_the_stage_that_the_console_damaged_is_passed_over() -> None:
    said = stage("starting", NEW) + stage("healthy", NEW).replace("slot=b", "slot=j") + stage("healthy", NEW)
    events = flashed(FakeLine(in_use(says_after_reset=said)), choices=Choices(after=After.WAIT))
    assert events[-1] == Confirmed(Slot.B)
