"""The console as it is typed on: echo, editing, replies, and whatever a line may bring."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sled_board.console.line_input import LINE_CHARS_MAX
from sled_board.console.session import REPLY_BYTES_MAX, REPLY_LINES_MAX, TEXT_CHARS_MAX, Command, ConsoleSession
from sled_board.errors import CommandNotDone

PROMPT = b"sled> "


def greet(words: Sequence[str]) -> list[str]:
    if words == ["nobody"]:
        raise CommandNotDone("nobody is there")
    if words == ["disk"]:
        raise OSError(5, "Input/output error", "disk")
    return [f"greeted={' '.join(words)}"]


def session() -> ConsoleSession:
    return ConsoleSession("sled", [
        Command("greet", "say hello", greet, "[NAME]", 1),
        Command("flood", "say a lot", lambda words: ["\x1b[2Jx" * 200] * 1000),
    ])  # fmt: skip


def reply(typed: bytes) -> bytes:
    return session().receive(typed)


def answered(line: str) -> list[str]:
    """The reply to a line."""
    *lines, prompt = reply(line.encode() + b"\r").decode().split("\r\n")[1:]
    assert prompt == "sled> "
    return lines


def test_it_begins_with_a_prompt_on_a_line_of_its_own() -> None:
    assert session().begin() == b"\r\n" + PROMPT


def test_what_is_typed_is_echoed_and_answered_line_by_line() -> None:
    assert reply(b"greet Ada\r") == b"greet Ada\r\n: greeted=Ada\r\n: ok\r\n" + PROMPT


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
def test_each_end_of_a_line_counts_once(end: bytes) -> None:
    assert reply((b"greet" + end) * 2).count(b": ok") == 2
    assert reply((b"greet" + end) * 2).count(PROMPT) == 2


def test_a_line_may_come_in_pieces() -> None:
    console = session()
    out = b"".join(console.receive(bytes((byte,))) for byte in b"greet Ada\r\ngreet Bob\r\n")
    assert out == reply(b"greet Ada\r\ngreet Bob\r\n")


def test_an_empty_line_gets_a_prompt_only() -> None:
    assert reply(b"\r") == b"\r\n" + PROMPT


@pytest.mark.parametrize("typed", [b"greex\bt Ada", b"greex\x7ft Ada", b"nonsense\x15greet Ada", b"\b\bgreet Ada"])
def test_characters_can_be_taken_back(typed: bytes) -> None:
    assert b": greeted=Ada\r\n: ok\r\n" in reply(typed + b"\r")


def test_what_is_taken_back_is_erased_on_the_screen() -> None:
    assert reply(b"ab\b\x15") == b"ab\b \b\b \b"


def test_a_line_is_given_up_with_a_new_prompt() -> None:
    assert reply(b"greet\x03\r") == b"greet^C\r\n" + PROMPT + b"\r\n" + PROMPT


@pytest.mark.parametrize("keys", [b"\x1b[A", b"\x1b[1;5C", b"\x1bOP", b"\x1bx"])
def test_keys_that_move_a_cursor_are_passed_over(keys: bytes) -> None:
    assert reply(b"greet " + keys + b"Ada\r") == reply(b"greet Ada\r")


def test_a_line_that_is_too_long_rings_and_is_refused() -> None:
    out = reply(b"z" * (LINE_CHARS_MAX + 3) + b"\r")
    assert out.count(b"z") == LINE_CHARS_MAX
    assert out.count(b"\a") == 3
    assert b"! the line has more than 256 characters; type it again\r\n" + PROMPT in out


@pytest.mark.parametrize("noise", [b"\x00", b"\xff", b"\x80", b"\t"])
def test_a_damaged_line_is_not_taken_at_its_word(noise: bytes) -> None:
    out = reply(b"gre" + noise + b"et\r")
    assert b"! the line came with bytes that are no text" in out
    assert b"greeted" not in out
    assert b"greeted" in reply(noise + b"\x03greet\r")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("greet nobody", "! nobody is there"),
        ("greet disk", "! [Errno 5] Input/output error: 'disk'"),
        ("greet a b", "! too many words: greet [NAME]"),
        ("GREET", "! there is no command 'GREET': try help"),
    ],
)
def test_a_refusal_says_why(line: str, said: str) -> None:
    assert answered(line) == [said]


def test_help_lists_every_command() -> None:
    assert answered("help") == [
        ": help = what there is to say", ": greet [NAME] = say hello", ": flood = say a lot", ": ok"
    ]  # fmt: skip


def test_a_line_that_echoes_all_does_not_make_it_talk_to_itself() -> None:
    console = session()
    coming, rounds = console.begin() + console.receive(b"greet\r"), 0
    while coming:
        coming = console.receive(coming)
        rounds += 1
        assert rounds < 10
    assert console.receive(b"greet\r") == b""
    assert console.receive(b"\x03greet\r").endswith(b": ok\r\n" + PROMPT)


def test_our_own_reply_from_a_line_that_echoes_is_not_answered() -> None:
    assert answered(": greeted=Ada") == answered("! no") == []


def test_a_reply_is_bounded_and_does_nothing_to_a_terminal() -> None:
    lines = answered("flood")
    assert len(lines) == REPLY_LINES_MAX + 1
    assert lines[-1] == ": ok"
    assert {len(line) for line in lines[:-1]} == {TEXT_CHARS_MAX + 2}
    assert all(" " <= character <= "~" for line in lines for character in line)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=400) | st.sampled_from([b"greet\r", b"flood\n", b"\x03", b"\x15", b"\x1b["])))
def test_whatever_comes_it_goes_on_within_bounds(pieces: list[bytes]) -> None:
    console = session()
    for piece in pieces:
        out = console.receive(piece)
        ends = sum(piece.count(end) for end in (b"\r", b"\n", b"\x03"))
        erased = 3 * LINE_CHARS_MAX * piece.count(b"\x15")
        assert len(out) <= 3 * len(piece) + erased + ends * (REPLY_BYTES_MAX + len(PROMPT) + 2)
    assert console.receive(b"\x03greet Ada\r").endswith(b": greeted=Ada\r\n: ok\r\n" + PROMPT)
