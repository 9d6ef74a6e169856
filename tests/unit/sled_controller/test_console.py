"""A sled over its console: provisioned once, locked from then on, looked at, restarted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import firmware, host
from kit.console import ask, values
from kit.firmware_store import board
from sled_board.errors import CommandNotDone

from sled_controller.config import PROG, SledSettings
from sled_controller.server import RESTART_STATUS, main
from sled_controller.settings import SettingsError, build_parser, merge
from sled_controller.state_dir import StateDirectory, StateDirectoryUnusable

ROOT = host.public_key(host.ROOT).hex()
OTHER = "cd" * 32
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
        with self.log.open() as log:
            while event not in log.readline():
                assert self.process.poll() is None, self.log.read_text()

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
    with pytest.raises(StateDirectoryUnusable, match=r"provisioned\.json: is damaged; restore it"):
        _ = StateDirectory(tmp_path).provisioning
