"""The program: start, restart, SIGTERM, and what it says when it cannot start."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from kit import firmware, guarded, host
from kit.firmware_store import board
from sled_board.slots import Slot, SlotState
from sled_board.stage.notices import RESTART_STATUS

from sled_controller.config import PROG, SledSettings
from sled_controller.environment import Environment, SystemEntropy
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.firmware.host import ManagementHost, managed
from sled_controller.firmware.update import CommitAction
from sled_controller.server import main
from sled_controller.settings import SettingsError, build_parser, merge
from sled_controller.state_dir import StateDirectory, StateDirectoryUnusable

ROOT_KEY = host.public_key(host.ROOT)
DEVICE_BYTES = 64 << 20


def arguments(folder: Path, port: int = 0) -> list[str]:
    return [
        "--state-dir", str(folder / "state"), "--listen-port", str(port), "--devices",
        json.dumps([str(folder / "a"), str(folder / "b")]), "--device-bytes", str(DEVICE_BYTES),
        "--root-public-key", ROOT_KEY.hex(),
    ]  # fmt: skip


@contextmanager
def running(
    folder: Path, *options: str, status: int = 0
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], tuple[str, int]]]:
    """The program, from its first log line that says it serves until it has ended with `status`."""
    command = [sys.executable, "-c", "from sled_controller.server import main; main()", *arguments(folder), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "event=serving" in line:
                break
        identity = json.loads((folder / "state/identity.json").read_text())
        endpoints = json.loads((folder / "state/endpoints.json").read_text())
        assert endpoints["pid"] == process.pid
        yield process, identity, tuple(endpoints["nvme_tcp"])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == status
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_it_ends_with_its_own_status_when_it_is_asked_to_restart(tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    made = board(tmp_path / "board")
    made.use(firmware.signed())
    managers = tmp_path / "managers.toml"
    secret = Secret.generate(SystemEntropy())
    managers.write_text(f'[[host]]\nnqn = "{guarded.NAME}"\nsecret = "{secret.text()}"\n')
    managers.chmod(0o600)
    manager = ManagementHost(guarded.NAME, host.HEAD, Terms(secret))
    new = firmware.signed(firmware.recipe(version="1.5.0"))

    async def update(nqn: str, address: tuple[str, int]) -> None:
        async with managed(address, nqn, manager, Environment()) as sled:
            async for _ in sled.download(new):
                pass
            await sled.commit(0, CommitAction.ACTIVATE_NOW)

    options = ("--firmware-store", str(made.path), "--management-hosts", str(managers))
    with running(tmp_path, *options, status=RESTART_STATUS) as (process, identity, address):
        asyncio.run(update(identity["nqn"], address))
        process.wait(10)
    assert made.slots[Slot.B].state is SlotState.TEST


def test_it_keeps_identity_fences_and_data_over_a_restart(tmp_path: Path) -> None:
    async def use(identity: dict[str, str], address: tuple[str, int], epoch: int, expected: bytes) -> int:
        env = Environment()
        now = env.clock.wall_ms()
        client = SledClient(
            host=address[0], port=address[1], sled_id=UUID(identity["id"]),
            sled_public=bytes.fromhex(identity["public_key"]), head_key=host.private_key(host.HEAD_KEY),
            head_id=host.HEAD, env=env, key_set=lambda: host.key_set().sign(host.private_key(host.ROOT)),
        )  # fmt: skip
        await client.open()
        credential = host.signed(epoch=epoch, issued_ms=now, sleds=(UUID(identity["id"]),))
        volume = await client.attach(credential, 1)
        nsid = await volume.create_namespace(0, 64)
        assert bytes(await volume.read(nsid, 5, 1)) == expected
        await volume.write(nsid, 5, [b"k" * 4096], fua=True)
        await client.close()
        return volume.receipt.boot_counter

    with running(tmp_path) as (_, first, address):
        assert asyncio.run(use(first, address, 5, bytes(4096))) == 1
    with running(tmp_path) as (_, second, address):
        assert second == first
        assert asyncio.run(use(second, address, 6, b"k" * 4096)) == 2
    assert (tmp_path / "state/identity.key").stat().st_mode & 0o777 == 0o600


def test_a_port_in_use_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as caught:
        main(arguments(tmp_path, taken.getsockname()[1]))
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "cannot listen on 127.0.0.1" in error
    assert "choose another listen_port" in error


def test_a_device_in_use_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path), pytest.raises(SystemExit) as caught:
        main(arguments(tmp_path))
    assert caught.value.code == 1
    assert "another process has it open" in capsys.readouterr().err


def test_a_device_wiped_after_the_first_start_is_not_formatted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path):
        pass
    (tmp_path / "state/endpoints.json").unlink()
    for name in ("a", "b"):
        path = tmp_path / name
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(DEVICE_BYTES)
    with pytest.raises(SystemExit) as caught:
        main(arguments(tmp_path))
    assert caught.value.code == 1
    assert "blank" in capsys.readouterr().err
    assert not any((tmp_path / "a").read_bytes()[: 1 << 20])


def test_devices_gone_after_the_first_start_are_not_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path):
        pass
    (tmp_path / "state/endpoints.json").unlink()
    for name in ("a", "b"):
        (tmp_path / name).unlink()
    with pytest.raises(SystemExit) as caught:
        main(arguments(tmp_path))
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "a") in error
    assert "bring them back" in error
    assert not (tmp_path / "a").exists()


def test_a_damaged_identity_is_named_with_its_remedy(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.identity("sled", ROOT_KEY, host.environment())
    for damage in ("", "{}", '{"id": "x", "private_key": "00"}', "[1]"):
        (tmp_path / "identity.key").write_text(damage)
        with pytest.raises(StateDirectoryUnusable, match="restore it from a backup"):
            state.identity("sled", ROOT_KEY, host.environment())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"root_public_key": "abc"}, "root_public_key"),
        ({"root_public_key": "00" * 31}, "32 bytes"),
        ({"device_bytes": "5000001"}, "device_bytes"),
        ({"device_bytes": str((64 << 20) + 1)}, "multiple of 4096"),
        ({"listen_port": "70000"}, "listen_port"),
        ({"devices": "[]"}, "devices"),
        ({"name": "a b"}, "name"),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    given = vars(build_parser(SledSettings, PROG).parse_args(arguments(tmp_path)))
    with pytest.raises(SettingsError) as caught:
        merge(SledSettings, PROG, {**given, **changed}, {})
    assert said in str(caught.value)
    assert "flag --" in str(caught.value)
