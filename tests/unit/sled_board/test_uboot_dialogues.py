"""Dialogues with U-Boot, played by hand: each byte and each moment is the test's."""

import binascii

import pytest
from sled_board.board import load_board
from sled_board.errors import BoardReset, BoardSilent, ConsoleError, TransferFailed
from sled_board.uboot import answers
from sled_board.uboot.command import TYPED_MAX, Command
from sled_board.uboot.dialogue import line_seconds, shown
from sled_board.uboot.prompt import PROBE, PROBE_EVERY_S, SETTLE_S, ReachPrompt, ends_with_prompt
from sled_board.uboot.ymodem import TRIES_MAX, Sender

UBOOT = load_board("qemu-virt-arm64").uboot
ACK, NAK, CAN, EOT = b"\x06", b"\x15", b"\x18", b"\x04"


def command(text: str = "version") -> tuple[Command, bytes]:
    """A command that was just typed, and what was typed."""
    made = Command(UBOOT, text, baud=115200)
    return made, made.start(0.0)


def marker(typed: bytes, status: int) -> bytes:
    """What the board prints at its end."""
    return typed.rpartition(b"echo ")[2].replace(b"$?", str(status).encode()) + b"\r\n=> "


# --- the prompt


def test_the_end_of_a_checksum_is_no_prompt() -> None:
    assert ends_with_prompt(b"...\r\n=> ", b"=> ")
    assert not ends_with_prompt(b"crc32 for 0 ... f ==> ", b"=> ")
    assert not ends_with_prompt(b"\r\n=>", b"=> ")


def test_the_countdown_is_stopped_by_its_key_and_a_prompt_counts_once_nothing_follows() -> None:
    reach = ReachPrompt(UBOOT, probing=False, patience_s=60)
    assert reach.start(0.0) == b""
    assert reach.receive(b"U-Boot 2023.01\r\nHit any key to stop auto", 1.0) == b""
    assert reach.receive(b"boot:  2 ", 1.1) == b" "
    assert reach.receive(b"\b\b\b 0 \r\n=> ", 1.2) == b""
    assert not reach.done
    assert reach.expire(1.2 + SETTLE_S) == b""
    assert reach.done


def test_a_prompt_within_a_script_is_none() -> None:
    reach = ReachPrompt(UBOOT, probing=True, patience_s=60)
    assert reach.start(0.0) == PROBE
    reach.receive(b"\r\n=> ", 0.1)
    reach.receive(b"load mmc 0", 0.15)
    assert reach.expire(PROBE_EVERY_S) == PROBE
    assert not reach.done


def test_silence_is_said_after_the_time() -> None:
    reach = ReachPrompt(UBOOT, probing=False, patience_s=60)
    reach.start(0.0)
    with pytest.raises(BoardSilent, match=r"within 60 s: nothing was received.* must be powered on now"):
        reach.expire(60.0)


# --- commands


def test_a_command_runs_when_its_echo_is_right_and_has_output_and_status() -> None:
    made, typed = command()
    assert made.receive(typed[:5], 0.1) == b""
    assert made.receive(typed[5:], 0.2) == b"\r"
    made.receive(b"\r\nU-Boot 2023.01\r\n" + marker(typed, 0)[:-1], 0.3)
    assert not made.done
    made.receive(b" ", 0.4)
    assert (made.done, made.output, made.status) == (True, "U-Boot 2023.01", 0)


def test_a_damaged_echo_is_thrown_away_and_typed_again() -> None:
    made, typed = command()
    assert made.receive(b"versiom", 0.1) == b"\x03"
    assert made.receive(b"<INTERRUPT>\r\n=> ", 0.2) == typed
    assert made.receive(typed, 0.3) == b"\r"


def test_a_line_that_damages_every_echo_is_given_up_without_a_run() -> None:
    made, _ = command()
    for _ in range(TYPED_MAX - 1):
        assert made.receive(b"?", 0.1) == b"\x03"
        made.receive(b"\r\n=> ", 0.2)
    with pytest.raises(ConsoleError, match=r'came back damaged 3 times, and was not run: received "\?"'):
        made.receive(b"?", 0.3)


def test_a_command_without_an_echo_is_said() -> None:
    made, _ = command()
    with pytest.raises(BoardSilent, match="was not echoed: nothing was received"):
        made.expire(9.0)


def test_a_command_without_an_end_is_said_with_what_it_printed() -> None:
    made, typed = command()
    made.receive(typed, 0.1)
    made.receive(b"\r\nhalf of", 0.2)
    with pytest.raises(BoardSilent, match=r'did not end within 5 s; received "\\r\\nhalf of"'):
        made.expire(5.3)


def test_a_start_in_the_midst_is_said() -> None:
    made, typed = command()
    made.receive(typed, 0.1)
    with pytest.raises(BoardReset, match="started anew during `version`"):
        made.receive(b"\r\nU-Boot 2023.01\r\nHit any key to stop autoboot:  2", 0.2)


def test_output_without_bounds_is_ended() -> None:
    made, typed = command()
    made.receive(typed, 0.1)
    with pytest.raises(ConsoleError, match="printed more than"):
        made.receive(b"x" * (1 << 19), 0.2)


def test_what_u_boot_would_cut_off_is_never_typed() -> None:
    with pytest.raises(ValueError, match="more than U-Boot takes"):
        Command(UBOOT, "echo " + "x" * 250, baud=115200)


# --- YMODEM


def test_blocks_are_numbered_padded_and_checked() -> None:
    sender = Sender("name", b"\x55" * 1500, baud=115200)
    sender.start(0.0)
    header = sender.receive(b"C", 0.0)
    assert header[:3] == b"\x01\x00\xff"
    assert header[3:].startswith(b"name\x001500\x00\x00")
    assert len(header) == 133
    first = sender.receive(ACK, 0.1)
    assert first[:3] == b"\x02\x01\xfe"
    assert first[3:-2] == b"\x55" * 1024
    assert first[-2:] == binascii.crc_hqx(first[3:-2], 0).to_bytes(2, "big")
    second = sender.receive(ACK, 0.2)
    assert second[3:-2] == b"\x55" * 476 + b"\x1a" * 548
    assert sender.receive(ACK, 0.3) == EOT
    assert sender.sent_bytes == 1500
    assert sender.receive(ACK + b"C", 0.4) == b"\x01\x00\xff" + bytes(130)
    assert sender.receive(ACK + b"## Total", 0.5) == b""
    assert (sender.done, sender.rest) == (True, b"## Total")


@pytest.mark.parametrize("again", [NAK, b"C", None])
def test_a_block_is_sent_again_when_asked_for_or_not_answered(again: bytes | None) -> None:
    sender = Sender("name", b"data", baud=115200)
    sender.start(0.0)
    sender.receive(b"C", 0.0)
    block = sender.receive(ACK, 0.1)
    repeated = sender.expire(sender.deadline_s) if again is None else sender.receive(again, 0.2)
    assert repeated == block


def test_a_block_that_never_arrives_ends_the_transfer() -> None:
    sender = Sender("name", b"data", baud=115200)
    sender.start(0.0)
    sender.receive(b"C", 0.0)
    for _ in range(TRIES_MAX - 1):
        sender.receive(NAK, 0.1)
    with pytest.raises(TransferFailed, match="asked for again 10 times at byte 0 of 4"):
        sender.receive(NAK, 0.2)


def test_the_board_may_end_the_transfer() -> None:
    sender = Sender("name", b"data", baud=115200)
    sender.start(0.0)
    assert sender.receive(CAN + b"x" + CAN, 0.1) == b""
    with pytest.raises(TransferFailed, match="ended the transfer at byte 0"):
        sender.receive(CAN, 0.2)


def test_patience_grows_with_a_slow_line() -> None:
    slow, fast = (Sender("name", b"data", baud=baud) for baud in (9600, 115200))
    slow.start(0.0)
    fast.start(0.0)
    assert slow.deadline_s > fast.deadline_s + line_seconds(1024, 9600) / 2


# --- answers


def test_a_checksum_of_other_memory_is_refused() -> None:
    assert answers.crc_of("crc32 for 40200000 ... 402000ff ==> 00c0ffee", 0x40200000, 256) == 0xC0FFEE
    with pytest.raises(ConsoleError, match="printed something else"):
        answers.crc_of("crc32 for 40200000 ... 402000fe ==> 00c0ffee", 0x40200000, 256)


@pytest.mark.parametrize("wrong", ["40200000: 00 01\n40200020: 02 03", "nonsense", "40200000: 00 01 "])
def test_memory_with_a_row_missing_is_refused(wrong: str) -> None:
    with pytest.raises(ConsoleError, match=r"md\.b printed"):
        answers.memory_of(wrong, 0x40200000, 18)


def test_what_cannot_be_printed_is_shown_escaped_on_one_line() -> None:
    assert shown(b"a\r\n\xff") == 'received "a\\r\\n\\xff"'
    assert shown(b"x" * 500).count("x") == 400
    with pytest.raises(ConsoleError, match="names no release"):
        answers.release_of("Barebox 2024")
