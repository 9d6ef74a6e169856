"""A volume whose only up-to-date head is gone for good goes on from an older log when the operator insists."""

import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.blocks import read_block, write_block
from rackctl.rack import Rack, RackSize, wait_until

RACKCTL = str(Path(sysconfig.get_path("scripts")) / "rackctl")
MIB = 1 << 20
OLD, NEW = b"\x01" * 4096, b"\x02" * 4096


@pytest.fixture
def short_term(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Rack]:
    """A rack whose credentials are good for five seconds."""
    monkeypatch.setenv("RACK_AUTHORITY_CREDENTIAL_TERM_S", "5")
    with Rack.running(tmp_path / "rack", RackSize()) as rack:
        yield rack


def rackctl(rack: Rack, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [RACKCTL, *arguments, "--dir", str(rack.directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def warning(rack: Rack, *force: str) -> str | None:
    """What a forced takeover says without --yes, once it knows enough."""
    asked = rackctl(rack, *force)
    assert asked.returncode == 2
    return asked.stderr if "Add --yes" in asked.stderr else None


def test_a_forced_takeover_warns_waits_and_serves_what_the_older_log_has(short_term: Rack) -> None:
    rack = short_term
    rack.create_volume("v", 16 * MIB)
    before = rack.wait_members("v", 2)
    (left_behind,) = before.secondaries
    assert before.primary is not None
    write_block(rack, "v", OLD)
    rack.kill(left_behind)
    wait_until(lambda: not rack.roles("v").secondaries or None, "the killed head to be removed", 30)
    write_block(rack, "v", NEW)
    rack.kill(before.primary)
    rack.restart(left_behind)
    force = ("volume", "force-takeover", "v", "--head", left_behind)
    warned = wait_until(lambda: warning(rack, *force), "the head that was left behind to report", 30)
    assert "every write that was acknowledged after it had left is lost" in warned
    assert rack.roles("v").state == "active", "without --yes something was done"
    done = rackctl(rack, *force, "--yes")
    assert done.returncode == 0, done.stderr
    assert "waiting" in done.stderr
    assert f"served by {left_behind}" in done.stdout
    assert read_block(rack, "v") == OLD
    rack.restart(before.primary)
    rack.wait_members("v", 2, 60)
    assert read_block(rack, "v") == OLD
