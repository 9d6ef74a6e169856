"""A sled over its console: provisioned once, locked from then on, looked at, restarted."""

import asyncio
import json
import os
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import firmware, host
from kit.console import answer, ask, values
from kit.firmware_store import Board, board
from sled_board.console.provisioning import Provisioning
from sled_board.console.request import Request
from sled_board.errors import CommandNotDone
from sled_board.slots import Slot, Slots

from sled_controller import server
from sled_controller.config import PROG, SledSettings
from sled_controller.server import RESTART_STATUS, main
from sled_controller.settings import SettingsError, build_parser, merge
from sled_controller.state_dir import StateDirectory, StateDirectoryUnusable

ROOT = host.public_key(host.ROOT).hex()
OTHER = "cd" * 32
LIMIT_S = 30.0
LOOPBACK = "127.0.0.1/8"


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--state-dir", str(folder / "sled"), "--listen-port", "0", "--console", "pty",
        "--devices", json.dumps([str(folder / "device")]), "--device-bytes", str(64 << 20), *more,
    ]  # fmt: skip


class Running:
    """A sled's process, up to the line of its log that says what it does."""

    def __init__(self, folder: Path, *more: str) -> None:
        program = "from sled_controller.server import main; main()"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-c", program, *arguments(folder, *more)], stderr=log)
        self.console = folder / "sled" / "console"
        self.state = folder / "sled"

    def wait_for(self, event: str) -> None:
        """Until the log has the event."""
        deadline = time.monotonic() + LIMIT_S
        while event not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def ended(self) -> int:
        return self.process.wait(timeout=20)


@contextmanager
def running(folder: Path, *more: str, event: str = "event=serving") -> Iterator[Running]:
    one = Running(folder, *more)
    try:
        one.wait_for(event)
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def refusal(sled: Running, command: str) -> str | None:
    """Why the command is refused; None if it was done."""
    try:
        ask(sled.console, command)
    except CommandNotDone as error:
        return str(error)
    return None


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def provision(root: str = ROOT, name: str = "sled-7", network: str = LOOPBACK) -> str:
    return f"provision name={name} root={root} network={network}"


def test_a_bare_sled_is_provisioned_over_its_console_and_is_locked_from_then_on(tmp_path: Path) -> None:
    with running(tmp_path, event="event=unprovisioned") as sled:
        status = values(ask(sled.console, "status"))
        assert (status["state"], status["drives"], status["drives_online"]) == ("unprovisioned", "1", "0")
        before = values(ask(sled.console, "identity"))
        assert (before["root_key"], before["locked"]) == ("none", "no")
        assert not (sled.state / "endpoints.json").exists()
        assert not (tmp_path / "device").exists()
        assert ask(sled.console, provision()) == ["changed=yes", "restarting=yes"]
        with pytest.raises(CommandNotDone, match=f"locked to {ROOT} and takes no other"):
            ask(sled.console, provision(OTHER))
        assert sled.ended() == RESTART_STATUS
        assert not sled.console.is_symlink()

    with running(tmp_path) as sled:
        after = values(ask(sled.console, "identity"))
        assert (after["name"], after["root_key"], after["locked"]) == ("sled-7", ROOT, "yes")
        assert after["sled_id"] == before["sled_id"]
        assert after["network"] == LOOPBACK
        assert values(ask(sled.console, "status"))["state"] == "serving"
        assert json.loads((sled.state / "endpoints.json").read_text())["nvme_tcp"][0] == "127.0.0.1"
        assert json.loads((sled.state / "identity.json").read_text())["name"] == "sled-7"
        with pytest.raises(CommandNotDone, match="takes no other"):
            ask(sled.console, provision(OTHER))
        assert ask(sled.console, provision()) == ["changed=no"]
        assert ask(sled.console, provision(name="sled-8", network="dhcp"))[0] == "changed=yes"
        assert sled.ended() == RESTART_STATUS
    kept = StateDirectory(tmp_path / "sled").provisioning
    assert kept is not None
    assert (kept.name, kept.root_public.hex(), str(kept.network)) == ("sled-8", ROOT, "dhcp")


def test_a_setting_that_says_another_root_key_than_the_console_did_keeps_it_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path, event="event=unprovisioned") as sled:
        ask(sled.console, provision())
        assert sled.ended() == RESTART_STATUS
    with pytest.raises(SystemExit) as ended:
        main(arguments(tmp_path, "--root-public-key", OTHER))
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert f"root_public_key is {OTHER}, but this sled is locked to {ROOT}" in error
    with running(tmp_path, "--root-public-key", ROOT.upper()) as sled:
        assert values(ask(sled.console, "identity"))["name"] == "sled-7"


def test_a_sled_whose_settings_name_its_root_key_is_locked_to_that(tmp_path: Path) -> None:
    with running(tmp_path, "--root-public-key", ROOT) as sled:
        with pytest.raises(CommandNotDone, match="takes no other"):
            ask(sled.console, provision(OTHER))
        assert not (sled.state / "provisioned.json").exists()


def test_an_address_that_the_machine_has_not_is_refused_before_it_locks_anybody_out(tmp_path: Path) -> None:
    with running(tmp_path, event="event=unprovisioned") as sled:
        with pytest.raises(CommandNotDone, match=r"network: 192\.0\.2\.1: .*the machine needs the address"):
            ask(sled.console, provision(network="192.0.2.1/24"))
        assert values(ask(sled.console, "identity"))["locked"] == "no"


def test_where_the_base_system_gives_the_machine_its_address_the_sled_listens_on_all(tmp_path: Path) -> None:
    with running(tmp_path, "--console-network", event="event=unprovisioned") as sled:
        ask(sled.console, provision(network="192.0.2.1/24"))
        assert sled.ended() == RESTART_STATUS
    with running(tmp_path, "--console-network") as sled:
        assert values(ask(sled.console, "identity"))["network"] == "192.0.2.1/24"
        assert json.loads((sled.state / "endpoints.json").read_text())["nvme_tcp"][0] == "0.0.0.0"


def test_it_shows_its_log_and_restarts_in_good_order(tmp_path: Path) -> None:
    with running(tmp_path, "--root-public-key", ROOT) as sled:
        assert any("event=serving" in line for line in ask(sled.console, "log 200"))
        status = values(ask(sled.console, "status"))
        assert (status["drives_online"], status["namespaces"]) == ("1", "0")
        assert ask(sled.console, "restart") == ["restarting=yes"]
        assert sled.ended() == RESTART_STATUS


def test_a_sled_on_slots_shows_them_and_is_not_restarted_before_it_is_confirmed(tmp_path: Path) -> None:
    slots = board(tmp_path)
    slots.use(firmware.signed())
    slots.store.change(lambda state: state.start()[0])
    with running(tmp_path, "--root-public-key", ROOT, "--firmware-store", str(slots.path)) as sled:
        status = values(ask(sled.console, "status"))
        assert status["slot_active"] == "a"
        assert status["slot_a"] == f"confirmed {status['version']}"
        assert status["slot_b"] == "empty"
        assert values(ask(sled.console, "identity"))["hardware"] == firmware.HARDWARE
        with pytest.raises(CommandNotDone, match="not confirmed yet"):
            ask(sled.console, "restart")


def settled(folder: Path) -> Board:
    """A store whose slot A runs and was confirmed in this start."""
    slots = board(folder)
    slots.use(firmware.signed())
    return slots


def test_a_sled_on_slots_is_restarted_once_it_is_confirmed(tmp_path: Path) -> None:
    slots = settled(tmp_path)
    slots.store.change(lambda state: state.start()[0])
    with running(tmp_path, "--root-public-key", ROOT, "--firmware-store", str(slots.path)) as sled:
        slots.store.change(lambda state: state.confirm(Slot.A))
        until(lambda: refusal(sled, "restart") is None)
        assert sled.ended() == RESTART_STATUS


def test_a_sled_whose_slot_state_cannot_be_read_says_so_and_is_provisioned_all_the_same(tmp_path: Path) -> None:
    slots = settled(tmp_path)
    (tmp_path / "state").write_bytes(b"x" * 8192)
    with running(tmp_path, "--firmware-store", str(slots.path), event="event=unprovisioned") as sled:
        assert values(ask(sled.console, "status"))["slot_state"].startswith("unreadable: both copies")
        assert ask(sled.console, provision()) == ["changed=yes", "restarting=yes"]
        assert sled.ended() == RESTART_STATUS


def test_a_sled_that_cannot_start_stays_on_its_console_until_it_is_put_right(tmp_path: Path) -> None:
    slots = settled(tmp_path)
    store = ("--firmware-store", str(slots.path))
    with running(tmp_path, *store, "--console-network", event="event=unprovisioned") as sled:
        ask(sled.console, provision(network="192.0.2.1/24"))
        assert sled.ended() == RESTART_STATUS
    with running(tmp_path, *store, event="event=cannot_start") as sled:
        status = values(ask(sled.console, "status"))
        assert status["state"] == "failed"
        assert status["reason"].startswith("cannot listen on 192.0.2.1:0")
        assert "takes no other" in (refusal(sled, provision(OTHER)) or "")
        assert ask(sled.console, provision()) == ["changed=yes", "restarting=yes"]
        assert sled.ended() == RESTART_STATUS
    with running(tmp_path, *store):
        pass


@pytest.mark.parametrize("damage", ["{", '{"name": "s", "root_public_key": "12", "network": "dhcp"}'])
def test_a_sled_whose_provisioning_is_damaged_shows_it_and_takes_no_other(tmp_path: Path, damage: str) -> None:
    slots = settled(tmp_path)
    (tmp_path / "sled").mkdir()
    (tmp_path / "sled" / "provisioned.json").write_text(damage)
    with running(tmp_path, "--firmware-store", str(slots.path), event="event=cannot_start") as sled:
        assert "provisioned.json: is damaged" in values(ask(sled.console, "status"))["reason"]
        assert "is damaged" in (refusal(sled, provision()) or "")


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        (lambda slots: slots, True),
        (lambda slots: slots.erase(Slot.B).store(Slot.B, image_id="ab" * 32, version="2.0.0", counter=7), True),
        (lambda slots: slots.reject(Slot.A), False),
    ],
)
def test_what_was_confirmed_once_loses_no_attempt_by_a_start_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Slots], Slots], restarts: bool
) -> None:
    monkeypatch.setattr(server, "FAILED_STAYS_S", 0.01)
    slots = settled(tmp_path).store.change(change)

    async def story() -> bool:
        stop = server.Stop(asyncio.get_running_loop().call_later)
        await server._stay(slots, stop)
        return stop.restarts

    assert asyncio.run(story()) is restarts


def test_what_is_in_test_gives_way_at_once(tmp_path: Path) -> None:
    slots = settled(tmp_path)
    slots.install(Slot.B, firmware.signed(firmware.recipe(version="1.5.0")))
    slots.store.change(lambda state: state.start()[0])
    with running(tmp_path, "--firmware-store", str(slots.path), event="event=unprovisioned") as sled:
        (sled.state / "provisioned.json").write_text("{")
        sled.process.terminate()
        assert sled.ended() == 0
    one = Running(tmp_path, "--firmware-store", str(slots.path))
    assert one.ended() == 1


def test_two_that_share_a_state_directory_are_locked_to_one_key(tmp_path: Path) -> None:
    with running(tmp_path, event="event=unprovisioned") as first:
        StateDirectory(first.state).provision(Provisioning.of("other", OTHER, "dhcp"))
        assert "takes no other" in (refusal(first, provision()) or "")


def test_a_console_that_goes_away_is_opened_again_when_it_is_back(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    ours, theirs = os.openpty()
    link.symlink_to(os.ttyname(theirs))
    with running(tmp_path, "--console", str(link), event="event=unprovisioned") as sled:
        os.close(theirs)
        os.close(ours)
        sled.wait_for("event=console_lost")
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        link.unlink()
        link.symlink_to(os.ttyname(theirs))
        assert values(answer(ours, Request("status", baud=115200, patience_s=LIMIT_S)))["state"] == "unprovisioned"
        assert sled.process.poll() is None
    os.close(ours)
    os.close(theirs)


def test_a_console_that_cannot_be_had_keeps_no_sled_from_serving(tmp_path: Path) -> None:
    with running(
        tmp_path, "--root-public-key", ROOT, "--console", "/dev/nonesuch", event="event=console_unusable"
    ) as sled:
        sled.wait_for("event=serving")


def test_a_bare_sled_without_its_console_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(tmp_path, "--console", "/dev/null"))
    assert ended.value.code == 1
    assert "console: " in capsys.readouterr().err


def test_without_a_console_the_root_key_has_to_be_a_setting(tmp_path: Path) -> None:
    given = vars(build_parser(SledSettings, PROG).parse_args(arguments(tmp_path)))
    with pytest.raises(SettingsError, match="root_public_key: is missing, and there is no console to be given it on"):
        merge(SledSettings, PROG, {key: value for key, value in given.items() if key != "console"}, {})


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"name": "x", "root_public_key": "12", "network": "dhcp"}'])
def test_a_damaged_provisioning_is_named_with_its_remedy(tmp_path: Path, damage: str) -> None:
    (tmp_path / "provisioned.json").write_text(damage)
    with pytest.raises(StateDirectoryUnusable, match=r"provisioned\.json: is damaged; restore it from a backup"):
        _ = StateDirectory(tmp_path).provisioning
