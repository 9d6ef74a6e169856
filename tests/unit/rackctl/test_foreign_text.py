"""What nodes say is shown by `rackctl`, never obeyed by its terminal."""

import asyncio
import io
import json
import sys
from typing import Any

import httpx
import pytest
from rackctl import terminal
from rackctl.api import OperatorApi
from rackctl.cli import main
from rackctl.errors import ApiRefused
from rackctl.firmware.flash_progress import Progress
from rackctl.output import EscapingStream, output_escaped
from rackctl.rack import Rack
from rackctl.status import RackStatus
from rackctl.table import aligned, markdown, named
from sled_board.flash_events import AtPrompt, Sent

OWNED = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eALL IS WELL\r\nrack fine"


def status_with(text: str) -> RackStatus:
    return RackStatus(
        {
            "directory": "/rack", "api": "http://127.0.0.1:1", "problem": text,
            "nodes": [
                {
                    "name": text, "state": "running", "pid": 1, "ports": {text: 1}, "resident_bytes": 0, "note": text,
                },
            ],
            "volumes": [
                {
                    "name": text, "size_bytes": 4096, "state": text, "epoch": 1, "primary": text, "secondaries": [text],
                    "sleds": [], "stopped": text, "exposed": False,
                },
            ],
            "fences": [
                {"head": text, "volume": text, "stale_epoch": text, "current_epoch": 2, "sled": text},
            ],
        }
    )  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_shows_what_heads_report_and_obeys_none_of_it(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rackctl.cli.status_of", lambda rack: status_with(OWNED))
    monkeypatch.setattr(Rack, "find", classmethod(lambda cls, directory: None))
    assert main(["status", *options]) == 0
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    if options:
        assert json.loads(out)["volumes"][0]["stopped"] == OWNED
    else:
        assert "\nrack fine" not in out.partition("NODE")[2]


def test_whatever_is_printed_is_escaped_errors_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(cls: type[Rack], directory: object) -> Rack:
        raise ApiRefused(409, OWNED)

    monkeypatch.setattr(Rack, "find", classmethod(refused))
    assert main(["status"]) == 2
    err = capsys.readouterr().err
    assert "\\u001b]0;owned" in err
    assert all(char.isprintable() or char == "\n" for char in err)


def test_output_is_what_it_was_when_a_command_has_ended() -> None:
    before = sys.stdout, sys.stderr
    with output_escaped():
        assert isinstance(sys.stdout, EscapingStream)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    "shape", [lambda: aligned(("A", "B"), [(OWNED, 1)]), lambda: markdown(("A", "B"), [(OWNED, 1)])]
)
def test_a_cell_of_a_table_is_one_line(shape: Any) -> None:
    text = shape()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == (2 if "| A" not in text else 3)


def test_a_named_value_is_one_line() -> None:
    assert named([("reason", OWNED)]).isprintable()


@pytest.mark.parametrize("problem", [{"title": OWNED}, {"title": "Refused", "detail": OWNED}, {}])
def test_a_refusal_of_the_authority_is_one_line(problem: dict[str, str]) -> None:
    api = OperatorApi("http://127.0.0.1:1", "token")
    api._http = httpx.Client(
        base_url="http://127.0.0.1:1",
        transport=httpx.MockTransport(lambda request: httpx.Response(409, json=problem)),
    )
    with pytest.raises(ApiRefused) as refused:
        api.volumes()
    assert str(refused.value).isprintable()


def test_a_moving_line_of_our_own_still_moves_and_a_boards_word_does_not() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    progress = Progress(EscapingStream(out), lambda: 0.0, as_json=False)  # type: ignore[arg-type]
    progress.show(Sent(1, 2, 0))
    progress.show(AtPrompt(OWNED, 115200))
    assert out.getvalue().startswith("\r[")
    assert out.getvalue().count("\x1b") == out.getvalue().count("\x1b[K") == 1


def test_a_console_is_shown_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        b"sled> \b \b\r\n",
        b"\x1b]0;owned\x07",
        "\x9b2J".encode(),
        b"caf\xc3",
        b"\xa9\xff",
        "\u202e".encode(),
    ]

    class Line:
        async def read(self, timeout_s: float) -> bytes:
            if not said:
                raise EOFError
            return said.pop(0)

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", EscapingStream(out))
    with pytest.raises(EOFError):
        asyncio.run(terminal._show(Line()))  # type: ignore[arg-type]
    assert out.getvalue() == "sled> \b \b\r\n\\u001b]0;owned\x07\\u009b2Jcafé\ufffd\\u202e"
