"""What is waited for in a rack, by what its authority says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from rackctl import state
from rackctl.launch import Command
from rackctl.rack import Rack
from rackctl.state import Node, NodeKind, RackState


def record(*members: str, exposed: bool) -> dict[str, Any]:
    return {
        "name": "data", "primary": "id-0", "epoch": 1, "state": "active", "health": {"exposed": exposed},
        "current": [{"head": member} for member in members],
    }  # fmt: skip


class FakeApi:
    """Gives one record after the other."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self._records: Iterator[dict[str, Any]] = iter(records)

    def volume(self, name: str) -> dict[str, Any]:
        return next(self._records)


def test_two_members_are_waited_for_until_the_volume_is_said_to_be_exposed_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [Node(f"head-{number}", NodeKind.HEAD, f"id-{number}") for number in range(2)]
    state.save(tmp_path, RackState(heads, temporary=False, token="", device_bytes=0))
    rack = Rack(tmp_path, owner=False)
    alone, joined = record("id-0", exposed=True), record("id-0", "id-1", exposed=True)
    whole = record("id-0", "id-1", exposed=False)

    monkeypatch.setattr(Rack, "api", FakeApi(alone, joined, whole, joined))
    assert rack.wait_members("data", 2).secondaries == ("head-1",)
    assert rack.api.volume("data") is joined  # the one behind the one that it took

    monkeypatch.setattr(Rack, "api", FakeApi(alone))
    assert rack.wait_members("data", 1).primary == "head-0"


def test_a_rack_is_started_again_without_the_heads_that_were_put_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revoked head ends as soon as it has asked, and would take the start of the whole rack with it."""
    heads = [Node(f"head-{number}", NodeKind.HEAD, f"id-{number}") for number in range(2)]
    nodes = [Node("authority", NodeKind.AUTHORITY), Node("sled-0", NodeKind.SLED, "id-2"), *heads]
    known = [{"id": node.id, "name": node.name, "revoked": node.name == "head-0"} for node in heads]
    (tmp_path / "token").write_text("secret")
    asked = RackState(nodes, temporary=False, token="", device_bytes=0, root_public_key="00", enrolled=True)
    state.save(tmp_path, asked)
    begun: list[str] = []

    def spawn(rack: Rack, now: RackState, commands: list[Command]) -> list[str]:
        begun.extend(command.name for command in commands)
        return [command.name for command in commands]

    def await_ready(started: list[str]) -> dict[str, dict[str, str]]:
        return {name: {"operator_token_file": str(tmp_path / "token")} for name in started}

    api = MagicMock(**{"nodes.return_value": {"heads": known}})
    api.__enter__.return_value = api
    monkeypatch.setattr(Rack, "_spawn", spawn)
    monkeypatch.setattr("rackctl.rack.await_ready", await_ready)
    monkeypatch.setattr(Rack, "connect", lambda rack: api)
    rack = Rack(tmp_path, owner=False)
    rack._start_all()
    rack._ports.release()
    assert sorted(begun) == ["authority", "head-1", "sled-0"]
