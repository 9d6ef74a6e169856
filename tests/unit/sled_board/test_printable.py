"""Nothing that others wrote acts on a terminal, and a line of a log stays one line."""

import json
import logging

import pytest
from sled_board.printable import INDENT, LINE_CHARS_MAX, LineFormatter, complain, escaped

ACTS = {
    "ESC, which begins ANSI and OSC sequences": "\x1b",
    "BEL, which ends an OSC sequence": "\x07",
    "carriage return": "\r",
    "backspace": "\b",
    "line feed": "\n",
    "NUL": "\0",
    "DEL": "\x7f",
    "CSI as one C1 character": "\x9b",
    "OSC as one C1 character": "\x9d",
    "NEL": "\x85",
    "right-to-left override": "\u202e",
    "left-to-right isolate": "\u2066",
    "right-to-left mark": "\u200f",
    "zero-width joiner": "\u200d",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "byte order mark": "\ufeff",
    "a tag character": "\U000e0041",
    "half of a surrogate pair": "\ud83d",
}


@pytest.mark.parametrize("char", ACTS.values(), ids=ACTS)
def test_what_acts_on_a_terminal_is_written_out(char: str) -> None:
    shown = escaped(f"name{char}[31m")
    assert shown.isprintable()
    assert shown.startswith("name\\")
    assert shown.endswith("[31m")


def test_what_people_write_stays_as_it_is() -> None:
    text = "Größe, 容量, объём, 1 GiB é 'quoted' \\n"
    assert escaped(text) is text
    assert escaped("a\tb\n", "\n\t") == "a\tb\n"


def test_json_stays_json() -> None:
    text = json.dumps({"name": "a\x7f\x1b\u202e"}, ensure_ascii=False)
    assert json.loads(escaped(text)) == {"name": "a\x7f\x1b\u202e"}


def record(text: str, *values: object, exception: BaseException | None = None) -> logging.LogRecord:
    info = None if exception is None else (type(exception), exception, exception.__traceback__)
    return logging.LogRecord("test", logging.INFO, __file__, 1, text, values, info)


@pytest.mark.parametrize("char", ["\n", "\r", "\x85", "\u2028", "\x1b", "\x0b"])
def test_a_value_in_a_log_line_makes_no_second_line(char: str) -> None:
    forged = f"x{char}2026-01-01 level=INFO logger=head_node event=enrolled"
    assert len(LineFormatter().format(record("event=refused detail=%s", forged)).splitlines()) == 1


def test_the_text_of_an_exception_is_no_line_of_the_log() -> None:
    try:
        raise ValueError("x\nlevel=INFO event=enrolled\x1b[2J")
    except ValueError as error:
        lines = LineFormatter().format(record("event=broke", exception=error)).splitlines()
    assert len(lines) > 3
    assert all(line.startswith(INDENT) and line.isprintable() for line in lines[1:])


def test_a_program_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("head-node", RuntimeError("refused:\nroot: \x1b]0;owned\x07"))
    assert capsys.readouterr().err == "head-node: refused:\\u000aroot: \\u001b]0;owned\\u0007\n"


def test_a_line_of_the_log_is_of_bounded_length() -> None:
    line = LineFormatter().format(record("event=refused detail=%s", "\n" * 100_000))
    assert len(line) <= 6 * LINE_CHARS_MAX + 3
