"""What comes over a serial console, and the files that describe boards: what they may raise, and valid ones."""

from collections.abc import Sequence
from pathlib import Path

from fuzz.fuzzer import Target
from sled_board.board import board_names, load_board, parse_board
from sled_board.console.provisioning import Provisioning
from sled_board.console.request import Request
from sled_board.console.session import REPLY_BYTES_MAX, ConsoleSession
from sled_board.console.session import Command as ConsoleCommand
from sled_board.errors import BoardInvalid, CommandNotDone, ConsoleError, FirmwareUnhealthy
from sled_board.health_watch import HealthWatch
from sled_board.uboot import answers
from sled_board.uboot.command import Command
from sled_board.uboot.dialogue import Dialogue
from sled_board.uboot.load import Load
from sled_board.uboot.prompt import ReachPrompt
from sled_board.uboot.rate import Rate

UBOOT = load_board("qemu-virt-arm64").uboot
BOARDS = Path(__file__).parents[2] / "hw" / "sled_board" / "boards"
SILENCE = 0xF5
"""Stands for time that passes without a byte up to the deadline."""
IMAGE = "0123456789abcdef" * 4


def hold(dialogue: Dialogue, data: bytes) -> None:
    """A board that says `data` and then nothing, whatever it is told; its echo is always right."""
    now_s = 0.0
    typed = dialogue.start(now_s)
    if isinstance(dialogue, Command):
        dialogue.receive(typed, now_s)
        data = data.replace(b"@1:", typed[typed.rindex(b" @") + 1 : -3])
    for piece in data.split(bytes([SILENCE])):
        for part in (piece[: len(piece) // 2], piece[len(piece) // 2 :]):
            if part and not dialogue.done:
                dialogue.receive(part, now_s)
        if dialogue.done:
            return
        now_s = max(now_s, dialogue.deadline_s)
        dialogue.expire(now_s)


def console(data: bytes) -> None:
    """Every dialogue hears the same."""
    for dialogue in (
        ReachPrompt(UBOOT, probing=True, patience_s=60),
        Command(UBOOT, "version", baud=115200),
        Load(UBOOT, UBOOT.load_address, b"piece", baud=115200),
        Rate(UBOOT, 57600, baud=115200),
        HealthWatch(IMAGE, patience_s=60),
    ):
        try:
            hold(dialogue, data)
        except (ConsoleError, FirmwareUnhealthy):
            continue


def printed(data: bytes) -> None:
    """Every reader of what a command prints."""
    text = data.decode("ascii", "replace")
    for read in (
        lambda: answers.crc_of(text, 0x40200000, 256),
        lambda: answers.memory_of(text, 0x40200000, 32),
        lambda: answers.release_of(text),
    ):
        try:
            read()
        except ConsoleError:
            continue


def console_seeds() -> list[bytes]:
    said = f"slot=b version=1.1.0 image={IMAGE}"
    return [
        b"\r\nU-Boot 2023.01\r\nHit any key to stop autoboot:  2 \xf5\b 0 \r\n=> \xf5",
        b"\r\nU-Boot 2023.01\r\n@1:0@\r\n=> ",
        b"\r\n## Ready for binary (ymodem) download to 0x40200000\r\nC\xf5\x06\x06\x06C\x06## Total\r\n@1:0@\r\n=> ",
        b"\r\n## Switch baudrate to 57600 bps and press ENTER ...\r\n\xf5@1:0@\r\n=> ",
        f"stage: event=starting {said}\r\nstage: event=healthy {said}\r\n".encode(),
    ]


def sled_console(data: bytes) -> None:
    """A sled's console that is typed on."""

    def provision(words: Sequence[str]) -> Sequence[str]:
        return [f"name={Provisioning.parse(words).name}"]

    session = ConsoleSession("sled", [ConsoleCommand("provision", "", provision, words_max=3)])
    for byte in data:
        assert len(session.receive(bytes((byte,)))) <= REPLY_BYTES_MAX


def sled_request(data: bytes) -> None:
    """A program that asks a sled's console, and hears anything."""
    try:
        hold(Request("status", baud=115200, patience_s=6.0), data)
    except (ConsoleError, CommandNotDone):
        return


TARGETS = (
    Target("sled-console", sled_console, (), lambda: [
        f"provision name=sled-1 root={IMAGE} network=10.0.0.7/24,10.0.0.1\rhelp\r\n".encode(),
        b"provision network=fd00::7/64 name=x\x7f\x15help\r\x1b[A\x03\xff\r",
    ], executions=1500),
    Target("sled-request", sled_request, (), lambda: [
        b"^C\r\nsled> status\r\n: state=serving\r\n[ 1.0] eth0: up\r\n: ok\r\nsled> ",
        b"\xf5^C\r\nrecovery> status\r\n! no\r\n",
    ], executions=1500),
    Target("console", console, (), console_seeds, executions=1500),
    Target("console-answers", printed, (), lambda: [
        b"crc32 for 40200000 ... 402000ff ==> 00c0ffee",
        b"40200000: " + b"00 " * 16 + b" ................\n40200010: " + b"ff " * 16 + b" ................",
        b"U-Boot 2023.01+dfsg-2 (Jun 22 2026)\n\ngcc",
    ]),
    Target("board-file", lambda data: parse_board(data.decode("utf-8", "replace"), "file"), (BoardInvalid,), lambda: [
        (BOARDS / f"{name}.toml").read_bytes() for name in board_names()
    ], executions=1500),
)  # fmt: skip
