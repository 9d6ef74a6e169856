"""What is waited for in a rack, by what its authority says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rackctl import state
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
