"""Sled by sled; what fails halts, and whoever was updated goes back, last first."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit import firmware
from rackctl.cli import main
from rackctl.errors import ApiRefused, RackError
from rackctl.firmware.gate import Gate, GateClosed
from rackctl.firmware.rollout import STATUS_ROLLED_BACK, STATUS_STUCK, Rollout, alone
from rackctl.firmware.sled_access import SledAddress, SledRefused
from rackctl.rack import Rack
from sled_board.errors import RolledBack, WrongSignature
from sled_board.image import read_image
from sled_board.slots import Slot, SlotRecord, Slots, SlotState

from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.secret import Secret

DATA = firmware.signed()
IMAGE = read_image(DATA)
SLEDS = [SledAddress(f"sled-{number}", "host", number, f"nqn.{number}") for number in range(3)]
OLD = SlotRecord(SlotState.CONFIRMED, 3, 1, "aa" * 32, "1.0.0")
OLDER = SlotRecord(SlotState.INACTIVE, 0, 1, "bb" * 32, "0.9.0")


class FakeSled:
    """Takes three looks to be back after a restart, the first of which finds nobody. `breaks` is what goes wrong."""

    def __init__(self) -> None:
        self.slots = Slots(OLD, OLDER, Slot.A, 1)
        self.breaks = ""
        self._coming: list[Slots | None] = []

    def look(self, name: str) -> Slots:
        if self.breaks == "away":
            raise SledRefused(f"{name}: nobody there")
        if self._coming:
            now = self._coming.pop(0)
            if now is None:
                raise SledRefused(f"{name}: connection refused")
            self.slots = now
        return self.slots

    def started(self, slots: Slots) -> None:
        """It restarts from these."""
        trying, slot = slots.start()
        assert slot is not None
        if self.breaks == "unhealthy":
            for _ in range(3):
                trying, slot = trying.start()
            assert slot is not None
        if self.breaks == "vanishes":
            self.breaks = "away"
            return
        self._coming = [slots, None, trying, trying.confirm(slot)]


class FakeAccess:
    def __init__(self) -> None:
        self.sleds = {sled.name: FakeSled() for sled in SLEDS}
        self.counter = 1  # of the image: that of the generation that runs

    def slots(self, sled: SledAddress) -> Slots:
        return self.sleds[sled.name].look(sled.name)

    def update(self, sled: SledAddress, image: bytes, progress: Callable[[int], None]) -> None:
        one = self.sleds[sled.name]
        if one.breaks == "refuses":
            raise SledRefused(f"{sled.name}: FIRMWARE_IMAGE_INVALID")
        progress(len(image) // 2)
        progress(len(image))
        slot = one.slots.spare
        stored = one.slots.erase(slot).store(slot, image_id=IMAGE.id, version=IMAGE.version, counter=self.counter)
        one.started(stored.activate(slot))
        if one.breaks == "answer lost":
            raise SledRefused(f"{sled.name}: the connection is lost")

    def activate(self, sled: SledAddress, slot: Slot) -> None:
        one = self.sleds[sled.name]
        one.started(one.slots.activate(slot))


class FakeGate(Gate):
    """Open until told otherwise: `closed` names the passage (0 is before the first sled) at which it stays shut."""

    def __init__(self) -> None:
        super().__init__(None, 0.0, 0.0)  # type: ignore[arg-type]
        self.closed: set[int] = set()
        self.refused: dict[int, Exception] = {}
        self.passages = 0

    def mark(self) -> None:
        """Nothing is reported here."""

    def wait(self) -> None:
        self.passages += 1
        if self.passages - 1 in self.closed:
            raise GateClosed("the rack is not healthy")
        if self.passages - 1 in self.refused:
            raise self.refused[self.passages - 1]


class Bench:
    def __init__(self) -> None:
        self.access = FakeAccess()
        self.gate = FakeGate()
        self.events: list[tuple[str, str]] = []
        self.now_s = 0.0

    def run(self, root_public: bytes | None = None) -> int:
        def say(event: str, sled: str, words: str) -> None:
            if event != "sent":
                self.events.append((event, sled))

        def sleep(seconds: float) -> None:
            self.now_s += seconds

        rollout = Rollout(self.access, self.gate, say, root_public, 10.0, lambda: self.now_s, sleep)
        return rollout.run(SLEDS, DATA, IMAGE)

    @property
    def versions(self) -> list[str]:
        found = []
        for sled in self.access.sleds.values():
            assert sled.slots.active is not None
            assert sled.slots.settled
            found.append(sled.slots[sled.slots.active].version)
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_all_sleds_are_updated_in_order_with_the_gate_between(bench: Bench) -> None:
    assert bench.run() == 0
    assert bench.versions == ["1.4.0"] * 3
    assert bench.gate.passages == 4
    assert bench.events == [
        step for sled in SLEDS for step in (("updating", sled.name), ("updated", sled.name))
    ] + [("done", "")]  # fmt: skip


def test_sleds_that_run_it_already_are_left_alone(bench: Bench) -> None:
    assert bench.run() == 0
    bench.events.clear()
    assert bench.run() == 0
    assert bench.events == [("current", sled.name) for sled in SLEDS] + [("done", "")]


def test_a_sled_that_rolls_back_halts_and_the_others_go_back(bench: Bench) -> None:
    bench.access.sleds["sled-1"].breaks = "unhealthy"
    assert bench.run() == STATUS_ROLLED_BACK
    assert bench.versions == ["1.0.0"] * 3
    assert bench.events[2:] == [
        ("updating", "sled-1"), ("halted", ""), ("taken_back", "sled-1"), ("taken_back", "sled-0"),
    ]  # fmt: skip


def test_a_sled_that_refuses_halts(bench: Bench) -> None:
    bench.access.sleds["sled-2"].breaks = "refuses"
    assert bench.run() == STATUS_ROLLED_BACK
    assert bench.versions == ["1.0.0"] * 3


def test_a_rack_that_is_not_healthy_again_halts(bench: Bench) -> None:
    bench.gate.closed = {2}
    assert bench.run() == STATUS_ROLLED_BACK
    assert bench.versions == ["1.0.0"] * 3
    assert ("updated", "sled-1") not in bench.events


def test_a_commit_whose_answer_is_lost_is_taken_back_too(bench: Bench) -> None:
    bench.access.sleds["sled-1"].breaks = "answer lost"
    assert bench.run() == STATUS_ROLLED_BACK
    assert bench.versions == ["1.0.0"] * 3


def test_a_sled_that_does_not_come_back_is_said_and_the_others_go_back(bench: Bench) -> None:
    bench.access.sleds["sled-1"].breaks = "vanishes"
    assert bench.run() == STATUS_STUCK
    assert ("not_taken_back", "sled-1") in bench.events
    assert ("taken_back", "sled-0") in bench.events


def test_a_generation_that_is_over_is_not_come_back_from(bench: Bench) -> None:
    bench.access.counter = 2
    bench.access.sleds["sled-1"].breaks = "unhealthy"
    assert bench.run() == STATUS_STUCK
    assert ("not_taken_back", "sled-0") in bench.events


def test_nothing_is_begun_where_a_sled_is_away_or_the_rack_is_not_healthy(bench: Bench) -> None:
    bench.gate.closed = {0}
    with pytest.raises(GateClosed):
        bench.run()
    bench.gate.closed = set()
    bench.access.sleds["sled-2"].breaks = "away"
    with pytest.raises(SledRefused, match="sled-2"):
        bench.run()
    assert bench.events == []


def test_what_one_of_the_sleds_would_refuse_is_sent_to_none(bench: Bench) -> None:
    one = bench.access.sleds["sled-2"]
    assert bench.run(firmware.ROOT.public) == 0
    bench.events.clear()
    with pytest.raises(WrongSignature, match="sled-0: "):
        bench.run(firmware.FIRST.public)
    one.slots = replace(one.slots, key_set=firmware.key_set(7, 3, (firmware.FIRST, firmware.SECOND, firmware.THIRD)))
    with pytest.raises(WrongSignature, match="sled-2: signed by 2 of the 3 keys of key set 7, 3 must sign"):
        bench.run(firmware.ROOT.public)
    one.slots = replace(one.slots, counter_min=IMAGE.counter + 1)
    with pytest.raises(RolledBack, match="sled-2: the image's rollback counter is 3, the sled accepts 4 and above"):
        bench.run()
    assert bench.events == []


def test_a_damaged_image_is_named_and_every_option_has_a_variable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(DATA[:-1])
    monkeypatch.setattr(Rack, "find", lambda _: None)
    assert main(("firmware", "rollout", str(damaged))) == 2
    assert f"rackctl: {damaged}: " in capsys.readouterr().err
    for name in ("SETTLE", "GATE_TIMEOUT", "SLED_TIMEOUT"):
        monkeypatch.setenv(f"RACKCTL_{name}", "never")
        assert main(("firmware", "rollout", str(damaged))) == 2
        assert f"RACKCTL_{name}: 'never' is not a positive number of seconds" in capsys.readouterr().err
        monkeypatch.delenv(f"RACKCTL_{name}")


@pytest.mark.parametrize("error", [ApiRefused(503, "busy"), OSError(24, "Too many open files"), KeyError("sleds")])
def test_whatever_comes_in_the_middle_halts_and_the_sleds_go_back(bench: Bench, error: Exception) -> None:
    bench.gate.refused = {2: error}
    assert bench.run() == STATUS_ROLLED_BACK
    assert bench.versions == ["1.0.0"] * 3
    bench.events.clear()
    bench.gate.refused = {bench.gate.passages + number: error for number in (2, 3)}
    assert bench.run() == STATUS_STUCK
    assert ("not_taken_back", "sled-1") in bench.events
    assert ("taken_back", "sled-0") in bench.events


def test_two_rollouts_at_once_are_one_and_a_refusal(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(RackError, match="another rollout is at work there"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_the_command_refuses_beside_another_rollout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, managers = tmp_path / "image", tmp_path / "managers"
    image.write_bytes(DATA)
    secret = Secret.generate(SystemEntropy()).text()
    managers.write_text(f'[[host]]\nnqn = "nqn.2014-08.org.example:one"\nsecret = "{secret}"\n')
    managers.chmod(0o600)
    monkeypatch.setattr(Rack, "find", lambda _: SimpleNamespace(directory=tmp_path, api=None))
    with alone(tmp_path):
        assert main(("firmware", "rollout", str(image), "--managers", str(managers))) == 2
    assert "another rollout is at work there" in capsys.readouterr().err


def test_a_rollout_goes_on_when_its_terminal_is_closed() -> None:
    told = """
import os, signal
from rackctl.firmware.rollout import _say_text as say, without_a_terminal
with without_a_terminal():
    os.kill(os.getpid(), signal.SIGHUP)
    say("sent", "sled-\u00e9", "9 %")
raise SystemExit(7)
"""
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", told], capture_output=True, env=plain)
    assert (ended.returncode, ended.stdout) == (7, b"sled-\\xe9: sent: 9 %\n")


def test_a_rollout_goes_on_when_nobody_listens_any_more() -> None:
    told = "from rackctl.firmware.rollout import _say_text as say\nfor n in range(9): say('sent', 'sled-0', '9 %')\n"
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", told], stdout=full, stderr=subprocess.PIPE, check=True)
    assert ended.stderr == b""


def test_a_sled_that_runs_from_no_slot_halts(bench: Bench) -> None:
    one = bench.access.sleds["sled-0"]
    one.slots = replace(one.slots, active=None)
    assert bench.run() == STATUS_ROLLED_BACK
    assert bench.events == [("halted", "")]
