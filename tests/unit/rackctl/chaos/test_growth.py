"""A process that comes to hold more and more is told."""

import os
from pathlib import Path

import pytest
from rackctl.chaos import growth
from rackctl.chaos.growth import BYTES_MORE_MAX, DESCRIPTORS_MORE_MAX, Growth, Held, held
from rackctl.processes import ProcessIdentity, identify

ONE = ProcessIdentity(7, 8)


def seen(monkeypatch: pytest.MonkeyPatch, *moments: Held | None) -> Growth:
    found = Growth()
    for moment in moments:
        monkeypatch.setattr(growth, "held", lambda process, moment=moment: moment)
        found.look([("head-0", ONE)])
    return found


def test_what_its_work_explains_is_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(monkeypatch, Held(20, 100 << 20), Held(20 + DESCRIPTORS_MORE_MAX, (100 << 20) + BYTES_MORE_MAX))
    assert found.grown == []
    assert found.compared == 1


def test_more_descriptors_and_more_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    more = Held(21 + DESCRIPTORS_MORE_MAX, (101 << 20) + BYTES_MORE_MAX)
    assert seen(monkeypatch, Held(20, 100 << 20), Held(10, 50 << 20), more).grown == [
        "head-0 (pid 7): 20 descriptors became 45", "head-0 (pid 7): 100 MiB became 197 MiB",
    ]  # fmt: skip


def test_a_process_seen_once_or_gone_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, Held(20, 100)).compared == 0
    assert seen(monkeypatch, Held(20, 100), None).compared == 0


def test_an_open_file_is_held(tmp_path: Path) -> None:
    own = identify(os.getpid())
    assert own is not None
    before = held(own)
    with (tmp_path / "file").open("w"):
        now = held(own)
    assert before is not None
    assert now is not None
    assert now.descriptors == before.descriptors + 1
    assert now.resident_bytes > 0
    assert held(ProcessIdentity(own.pid, own.started_ticks + 1)) is None
