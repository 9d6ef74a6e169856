"""A program finds its reply between kernel messages, log lines and leftovers, or says what it saw."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sled_board.console.request import HEARD_BYTES_MAX, TRIES_MAX, Request
from sled_board.console.session import Command, ConsoleSession
from sled_board.errors import BoardSilent, CommandNotDone

KERNEL = b"[   12.345678] eth0: link up: ok\r\n"


def request(command: str = "status") -> Request:
    return Request(command, baud=115200, patience_s=6.0)


def session() -> ConsoleSession:
    return ConsoleSession("sled", [Command("status", "", lambda words: ["state=serving", "uptime_s=7"])])


def asked(between: bytes = b"") -> Request:
    """A request that has seen the prompt, and perhaps more before that."""
    one = request()
    assert one.start(0.0) == b"\x03"
    assert one.receive(b"old: reply\r\n: ok\r\n^C\r\n" + between + b"sled> ", 0.0) == b"status"
    assert one.receive(b"status", 0.0) == b"\r"
    return one


def test_it_speaks_with_a_console() -> None:
    console, one = session(), request()
    sent = one.start(0.0)
    while not one.done:
        sent = one.receive(console.receive(sent), 0.0)
    assert one.lines == ["state=serving", "uptime_s=7"]


def test_a_reply_is_found_between_other_lines() -> None:
    one = asked(between=KERNEL)
    one.receive(b"\r\n" + KERNEL + b": state=serving\r\n" + KERNEL + b": uptime_s=7\r\n: ok\r\n", 0.0)
    assert one.done
    assert one.lines == ["state=serving", "uptime_s=7"]


def test_a_reply_may_come_in_pieces() -> None:
    one = asked()
    for byte in b"\r\n: state=serving\r\n: ok\r\n":
        assert not one.done
        one.receive(bytes((byte,)), 0.0)
    assert one.done
    assert one.lines == ["state=serving"]


def test_the_reply_to_an_earlier_command_does_not_count() -> None:
    one = request()
    one.start(0.0)
    assert one.receive(b": state=old\r\n: ok\r\nsled> ", 0.0) == b""
    assert not one.done
    assert one.lines == []


def test_a_refusal_is_raised_with_its_reason() -> None:
    with pytest.raises(CommandNotDone, match=r"^it is locked$"):
        asked().receive(b"\r\n! it is locked\r\nsled> ", 0.0)


def test_a_board_that_sends_a_return_more_is_understood() -> None:
    one = request()
    one.start(0.0)
    assert one.receive(b"^C\r\r\nsled> ", 0.0) == b"status"
    assert one.receive(b"status", 0.0) == b"\r"
    one.receive(b"\r\r\n: state=serving\r\r\n: ok\r\r\n", 0.0)
    assert one.lines == ["state=serving"]


def test_a_command_whose_echo_differs_is_given_up_and_typed_again() -> None:
    one = request("provision root=1234")
    one.start(0.0)
    assert one.receive(b"^C\r\nsled> ", 0.0) == b"provision root=1234"
    assert one.receive(b"provision root=1235", 1.0) == b""
    assert one.expire(one.deadline_s) == b"\x03"
    assert one.receive(b"^C\r\nsled> ", 4.0) == b"provision root=1234"
    assert one.receive(b"provision root=1234", 4.0) == b"\r"


def test_a_command_that_is_never_echoed_is_not_sent() -> None:
    one = request()
    one.start(0.0)
    for _ in range(TRIES_MAX - 1):
        assert one.receive(b"^C\r\nsled> ", 0.0) == b"status"
        one.expire(0.0)
    one.receive(b"^C\r\nsled> ", 0.0)
    with pytest.raises(BoardSilent, match="does not come back as it was sent"):
        one.expire(0.0)


def test_a_long_reply_on_a_slow_line_is_waited_for_while_it_comes() -> None:
    one, now_s = asked(), 0.0
    one.receive(b"\r\n", now_s)
    for number in range(200):
        now_s = one.deadline_s - 0.01
        one.receive(f": line={number}\r\n".encode(), now_s)
    one.receive(b": ok\r\n", now_s)
    assert len(one.lines) == 200


def test_silence_is_met_with_a_few_more_tries() -> None:
    one = request()
    sent, now_s = one.start(0.0), 0.0
    for _ in range(TRIES_MAX - 1):
        assert sent == b"\x03"
        assert one.deadline_s > now_s
        now_s = one.deadline_s
        sent = one.expire(now_s)
    with pytest.raises(BoardSilent, match="no prompt of a sled; nothing was received"):
        one.expire(now_s)


def test_what_came_instead_is_shown() -> None:
    one = request()
    one.start(0.0)
    one.receive(b"login: ", 0.0)
    for _ in range(TRIES_MAX - 1):
        one.expire(0.0)
    with pytest.raises(BoardSilent, match='received "login: "'):
        one.expire(0.0)


def test_a_reply_that_does_not_end_is_said() -> None:
    one = asked()
    one.receive(b"\r\n: state=serving\r\n", 0.0)
    with pytest.raises(BoardSilent, match=r"the reply does not end.*state=serving"):
        one.expire(9.0)


@pytest.mark.parametrize("piece", [b"x", b"^C\r\n"])
def test_whoever_does_not_stop_is_left(piece: bytes) -> None:
    one, count = asked(), HEARD_BYTES_MAX // len(piece)
    for _ in range(count // 16 - 16):
        one.receive(piece * 16, 0.0)
    with pytest.raises(BoardSilent, match="no end of it"):
        one.receive(piece * 512, 0.0)


@pytest.mark.parametrize("command", ["two\rlines", "gr\u00fcn", "x" * 257])
def test_what_is_no_line_is_not_sent(command: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        request(command)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"^C\r\nsled> ", b": ok\r\n", b": x\r\n", b"! no\r\n"])))
def test_whatever_comes_it_ends_in_a_reply_or_an_error_of_ours(pieces: list[bytes]) -> None:
    one = request()
    one.start(0.0)
    try:
        for piece in pieces:
            if one.done:
                return
            one.receive(piece, 0.0)
        for _ in range(TRIES_MAX + 1):
            one.expire(one.deadline_s)
    except (BoardSilent, CommandNotDone):
        return
    assert one.done
