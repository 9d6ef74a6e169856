"""The clocks of a whole rack go wrong and right again, a sled is put back: what operations.md says is what helps."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.volumes import Volume
from rackctl import cli
from rackctl.rack import Rack, RackSize, wait_until
from rackctl.status import status_of

from sled_controller.environment import CLOCK_FAULTS

YEAR_MS = 365 * 86_400_000
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


class Clocks:
    """The wall clocks of every machine of the rack."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set_ahead(0)

    def set_ahead(self, milliseconds: int) -> None:
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(CLOCK_FAULTS.pack(milliseconds, 0))


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks") / "ahead")


@pytest.fixture(scope="module")
def rack(clocks: Clocks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """One whose programs all read their wall clock from `clocks`."""
    with pytest.MonkeyPatch.context() as patch:
        for prefix in ("RACK_AUTHORITY", "HEAD_NODE", "SLED_CONTROLLER"):
            patch.setenv(f"{prefix}_CLOCK_FAULTS", str(clocks._file))
        with Rack.running(tmp_path_factory.mktemp("rack") / "rack", RackSize()) as started:
            patch.setenv("RACK_DIR", str(started.directory))
            yield started


def procedure(title: str) -> list[list[str]]:
    """The commands of a section of operations.md, word by word."""
    text = OPERATIONS.read_text(encoding="utf-8")
    section = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("        ")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("rackctl ")]


def test_expiry_a_rack_whose_clocks_were_a_year_ahead_is_brought_back_by_the_book(
    rack: Rack, volume: Volume, clocks: Clocks, capsys: pytest.CaptureFixture[str]
) -> None:
    clocks.set_ahead(YEAR_MS)
    for node in (volume.roles.primary, "sled-0"):  # a takeover, and a sled that starts in the wrong time
        rack.restart(node)
    rack.wait_epoch_above(volume.name, volume.roles.epoch)
    clocks.set_ahead(0)
    before = rack.roles(volume.name)
    rack.restart(before.primary)
    rack.wait_epoch_above(volume.name, before.epoch)
    rack.wait_members(volume.name, 2)
    shows = []
    for words in procedure("When clocks were wrong"):
        if words[0] == "console":
            words = [*words[:-1], shows[-1].strip()]
        if words[:2] == ["time", "statement"]:
            words = ["time", "statement", "--serial", "2", "--root", str(rack.directory / "nodes/authority/root.key")]
        assert cli.main(words) == 0, words
        shows.append(capsys.readouterr().out)
    assert "issues 364 d" in shows[0]
    assert "ahead" not in shows[-1]
    assert "waits" not in shows[-1]
    assert "time_serial=2" in shows[3]
    now = rack.roles(volume.name)
    rack.restart(now.primary)
    rack.wait_epoch_above(volume.name, now.epoch)


def test_f2_a_sled_that_was_put_back_is_refused_and_accepted_by_the_book(
    rack: Rack, volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    def note() -> str:
        (found,) = [node["note"] for node in status_of(rack).data["nodes"] if node["name"] == "sled-0"]
        return str(found)

    state = rack.layout.state_dir(rack.node("sled-0"))
    rack.kill("sled-0")
    image = state.with_name("image")
    shutil.copytree(state, image, symlinks=True)
    for _ in range(2):
        rack.restart("sled-0")
        seen = next(sled["boot_counter"] for sled in rack.api.nodes()["sleds"] if sled["name"] == "sled-0")
        wait_until(lambda seen=seen: _boots(rack) > seen or None, "the authority to note the start", 20)  # type: ignore[misc]
    rack.kill("sled-0")
    shutil.rmtree(state)
    image.rename(state)
    rack.restart("sled-0")
    wait_until(lambda: "its boot counter went back" in note() or None, "the sled to be refused", 20)
    assert any(event["kind"] == "sled-went-back" for event in rack.api.events())
    (accept,) = procedure("A sled that was put back")
    assert cli.main(accept) == 0
    assert "serves again" in capsys.readouterr().out
    wait_until(lambda: not note() or None, "the sled to be taken back", 20)
    before = rack.roles(volume.name)
    rack.restart(before.primary)
    rack.wait_epoch_above(volume.name, before.epoch)


def _boots(rack: Rack) -> int:
    return next(int(sled["boot_counter"]) for sled in rack.api.nodes()["sleds"] if sled["name"] == "sled-0")
