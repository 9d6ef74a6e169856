"""Histories as files: what is written is what is read, each operation once, and other programs find what they need."""

import json
from pathlib import Path

import pytest
from rackctl.consistency.history import ZERO, History, Operation
from rackctl.consistency.history_file import HistoryFile, read_history
from rackctl.consistency.linearizability import check


def a_history() -> History:
    """Block 3 is written, read and trimmed; a write of block 4 is never answered, a read of it is refused."""
    history = History()
    history.write("a", 3, history.new_value(), 10).returned_ns = 20
    history.read("b", 3, 1, 15, 30)
    history.write("a", 3, ZERO, 40).returned_ns = 50
    history.write("a", 4, history.new_value(), 55)
    history.read("b", 3, ZERO, 60, 70)
    history.read_failed("b", 4, 80, 90)
    return history


def everything(history: History) -> list[Operation]:
    found = [operation for operations in history.blocks.values() for operation in operations] + history.failed_reads
    return sorted(found, key=lambda operation: operation.invoked_ns)


def test_a_line_says_who_what_when_and_how_it_ended(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    file.finish(a_history())
    lines = [json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines()]
    assert file.operations == len(lines) == 6
    # fmt: off
    wanted = (
        {"client": "a", "block": 3, "kind": "write", "value": 1, "call_ns": 10, "return_ns": 20, "outcome": "ok"},
        {"client": "b", "block": 3, "kind": "read", "value": 0, "call_ns": 60, "return_ns": 70, "outcome": "ok"},
        {
            "client": "a",
            "block": 4,
            "kind": "write",
            "value": 2,
            "call_ns": 55,
            "return_ns": None,
            "outcome": "unknown",
        },
        {"client": "b", "block": 4, "kind": "read", "value": None, "call_ns": 80, "return_ns": 90, "outcome": "fail"},
    )
    # fmt: on
    assert all(line in lines for line in wanted)


def test_a_file_is_read_as_the_history_that_was_written(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    file.finish(a_history())
    read = read_history(file.path)
    assert everything(read) == everything(a_history())
    assert read.new_value() == a_history().new_value()
    check(read)


def test_what_is_forgotten_between_rounds_is_written_once(tmp_path: Path) -> None:
    history, whole = a_history(), a_history()
    file = HistoryFile(tmp_path / "history.jsonl")
    history.on_forgotten = file.write
    for begin in (100, 200):
        history.forget()
        for one in (history, whole):
            one.write("a", 3, one.new_value(), begin).returned_ns = begin + 5
            one.read("b", 3, one.last_value, begin + 10, begin + 15)
    file.finish(history)
    assert everything(read_history(file.path)) == everything(whole)


@pytest.mark.parametrize("line", ["[]", "{}", '{"client": 1}', "nothing"])
def test_what_is_no_operation_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        read_history(path)
