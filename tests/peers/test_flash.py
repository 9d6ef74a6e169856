"""Flashing the reference board: real U-Boot in QEMU, its console on a socket; whatever is cut off can be done again."""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from kit import firmware
from kit.qemu_board import QemuBoard
from rackctl.cli import main
from rackctl.signers import public_pem
from sled_board.board import Board, load_board
from sled_board.errors import BoardError
from sled_board.flash_events import AtPrompt, Sent, Verified
from sled_board.flasher import After, Choices, flash
from sled_board.image import read_image
from sled_board.region import Region
from sled_board.serial_port import opened
from sled_board.slot_store import SlotStore
from sled_board.slots import Slot, SlotRecord, Slots, SlotState
from sled_board.uboot.dialogue import Line

BOARD: Board = load_board("qemu-virt-arm64")
CUTS = 20
STAY = Choices(after=After.STAY)
OLD = firmware.signed(firmware.recipe(version="1.0.0"))
# Three pieces, of which the last is short: about five seconds on an emulated UART.
SIZE = (128 << 10) + 1000
SMALL = 24 << 10


def image(seed: int, size: int = SIZE) -> bytes:
    payload = Random(seed).randbytes(size)
    return firmware.signed(firmware.recipe(version=f"1.1.{seed}", payloads={"application": payload}))


def store(storage: Path) -> SlotStore:
    return SlotStore(Region(storage, 0, BOARD.storage.size), BOARD.storage.state.offsets)


def slot_bytes(storage: Path, slot: Slot, size: int) -> bytes:
    place = BOARD.place(slot)
    return Region(storage, place.offset, place.size).read(0, size)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A board in use: OLD in slot A, confirmed."""
    path = tmp_path / "storage"
    with path.open("wb") as file:
        file.truncate(BOARD.storage.size)
    place = BOARD.storage.slot_a
    Region(path, place.offset, place.size).write(0, OLD)
    old = read_image(OLD)
    record = SlotRecord(SlotState.CONFIRMED, 3, old.counter, old.id, old.version)
    store(path).keep(Slots(record, active=Slot.A, counter_min=old.counter))
    return path


def flashed(url: str, data: bytes, choices: Choices = STAY) -> list[object]:
    async def work() -> list[object]:
        async with opened(url, BOARD.console) as line:
            return [event async for event in flash(line, BOARD, data, firmware.trust(), choices)]

    return asyncio.run(work())


def still_confirmed(storage: Path) -> bool:
    return slot_bytes(storage, Slot.A, len(OLD)) == OLD and store(storage).load().a.state is SlotState.CONFIRMED


@contextlib.contextmanager
def cable(board: QemuBoard, *, cut_after: int | None = None, noise: Random | None = None) -> Iterator[str]:
    """A cable to the console that ends after so many bytes towards the board, or flips bits in both directions."""
    host, port = board.url.removeprefix("socket://").split(":")
    server = socket.create_server(("127.0.0.1", 0))
    far = socket.create_connection((host, int(port)))

    def disturbed(data: bytes) -> bytes:
        if noise is None:
            return data
        return bytes(byte ^ (1 << noise.randrange(8)) if noise.randrange(4000) == 0 else byte for byte in data)

    def towards_us(near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(4096):
                near.sendall(disturbed(data))

    def towards_board() -> None:
        near, _ = server.accept()
        answers = threading.Thread(target=towards_us, args=(near,))
        answers.start()
        left = cut_after
        with contextlib.suppress(OSError):
            while data := near.recv(4096):
                far.sendall(disturbed(data if left is None else data[:left]))
                left = None if left is None else left - len(data)
                if left is not None and left <= 0:
                    break
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)
        near.close()
        answers.join()

    thread = threading.Thread(target=towards_board)
    thread.start()
    try:
        yield f"socket://127.0.0.1:{server.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)
        far.close()
        server.close()


def test_an_image_is_flashed_verified_and_to_be_tried(storage: Path) -> None:
    new = image(1)
    with QemuBoard(storage) as board:
        events = flashed(board.url, new)
    assert [event.release for event in events if isinstance(event, AtPrompt)] == ["2023.01"]
    assert any(isinstance(event, Verified) for event in events)
    assert slot_bytes(storage, Slot.B, len(new)) == new
    after = store(storage).load()
    assert after.b == SlotRecord(SlotState.TEST, 3, firmware.COUNTER, read_image(new).id, "1.1.1")
    assert still_confirmed(storage)


def test_the_command_reports_lines_for_programs_and_refuses_with_one_line(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, path, other = tmp_path / "root.pub", tmp_path / "image", tmp_path / "other"
    root.write_bytes(public_pem(firmware.ROOT.public))
    path.write_bytes(firmware.signed(firmware.recipe(version="1.0.1")))
    other.write_bytes(firmware.signed(firmware.recipe(hardware=("other",))))
    with QemuBoard(storage) as board:
        told = ("--root", str(root), "--port", board.url, "--board", BOARD.name)
        assert main(("firmware", "flash", str(other), *told)) == 2
        refusal = capsys.readouterr().err
        assert refusal.count("\n") == 1
        assert f"this board is {BOARD.name}" in refusal
        assert main(("firmware", "flash", str(path), *told, "--json")) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events if event["event"] != "sent"] == [
        "at-prompt", "chosen", "verified", "activated", "restarted",
    ]  # fmt: skip
    assert events[1]["before"] == {"a": "confirmed", "b": "empty"}


def test_a_cut_cable_is_said_and_the_flash_goes_on_where_it_was(storage: Path) -> None:
    new = image(2)
    with QemuBoard(storage) as board:
        with cable(board, cut_after=90 << 10) as url, pytest.raises(BoardError):
            flashed(url, new)
        assert still_confirmed(storage)
        sent = [event for event in flashed(board.url, new) if isinstance(event, Sent)]
    assert sent[-1].skipped_bytes == 64 << 10
    assert slot_bytes(storage, Slot.B, len(new)) == new


@pytest.mark.parametrize("seed", [1, 2])
def test_garbage_on_the_line_never_gets_onto_the_board(storage: Path, seed: int) -> None:
    new = image(3)
    with QemuBoard(storage) as board:
        with cable(board, noise=Random(seed)) as url, contextlib.suppress(BoardError):
            flashed(url, new)
        assert still_confirmed(storage)
        if store(storage).load().b.state is SlotState.TEST:
            assert slot_bytes(storage, Slot.B, len(new)) == new
        flashed(board.url, new)
    assert slot_bytes(storage, Slot.B, len(new)) == new


class Counted:
    """A line that calls `due` at its write number `at`, and counts its writes."""

    def __init__(self, line: Line, at: int | None = None, due: Callable[[], None] = lambda: None) -> None:
        self._line = line
        self._at = at
        self._due = due
        self.writes = 0

    @property
    def baud(self) -> int:
        return self._line.baud

    async def read(self, timeout_s: float) -> bytes:
        return await self._line.read(timeout_s)

    async def write(self, data: bytes) -> None:
        await self._line.write(data)
        self.writes += 1
        if self.writes == self._at:
            self._due()

    async def set_baud(self, baud: int) -> None:
        await self._line.set_baud(baud)


def counted(board: QemuBoard, data: bytes, at: int | None = None, due: Callable[[], None] = lambda: None) -> int:
    """Flash, and call `due` at that write; how many writes the whole took."""

    async def work() -> int:
        async with opened(board.url, BOARD.console) as port:
            line = Counted(port, at, due)
            async for _ in flash(line, BOARD, data, firmware.trust(), STAY):
                pass
            return line.writes

    return asyncio.run(work())


def test_power_cut_at_random_moments_of_a_flash_never_leaves_a_board_that_cannot_be_flashed(storage: Path) -> None:
    random = Random(int(os.environ.get("POWER_CUT_SEED", "7")))
    with QemuBoard(storage) as board:
        whole = counted(board, image(9, SMALL))
    found: set[bytes] = set()
    for cut in range(CUTS):
        new = image(10 + cut, SMALL)
        # Each takes at least as many writes, since nothing of it is there; but for a few to reach the prompt.
        at, after_s = random.randrange(1, whole - 5), random.uniform(0, 0.1)
        with QemuBoard(storage) as board:
            timer = threading.Timer(after_s, board.cut_power)
            with contextlib.suppress(BoardError):
                counted(board, new, at, timer.start)
            timer.join()
        assert still_confirmed(storage), f"cut {cut} at write {at} of {whole} and {after_s:.3f} s"
        state = store(storage).load().b.state
        assert state in (SlotState.EMPTY, SlotState.TEST)
        there = slot_bytes(storage, Slot.B, len(new))
        assert state is SlotState.EMPTY or there in [image(9 + each, SMALL) for each in range(cut + 2)]
        found.add(there)
    assert len(found) > 3, "hardly any cut came late enough"
    with QemuBoard(storage) as board:
        flashed(board.url, image(8))
    assert slot_bytes(storage, Slot.B, len(image(8))) == image(8)
    assert still_confirmed(storage)
