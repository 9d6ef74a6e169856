"""A rack one of whose sleds has an NVMe drive by SPDK, under load, while its primary and then that sled are killed."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import spdk_drive
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from peers import spdk
from rackctl import programs, rack
from rackctl.launch import Command
from rackctl.programs import Layout
from rackctl.rack import Rack
from rackctl.state import Node

NQN = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000005"
SLED = "sled-0"
STORY_SECONDS_MAX = 240
SETTINGS = {
    "SPDK_CORE_MASK": "0x2", "SPDK_MEMORY_MIB": "128", "SPDK_NO_HUGE": "true", "SPDK_NO_PCI": "true",
    "FORMAT_BLANK": "true",
}  # fmt: skip


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[str]:
    """The transport id of a blank drive of 1 GiB."""
    spdk_drive.shim()
    image = tmp_path / "drive"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        target = runner.run(stack.enter_async_context(spdk.exported(NQN, file=image)))
        yield spdk_drive.address(target.port, target.nqn)
        runner.run(stack.aclose())


def on_drive(monkeypatch: pytest.MonkeyPatch, drive: str) -> None:
    """Have the rack start SLED over the drive instead of a file."""
    over_a_file = programs.sled

    def sled(node: Node, layout: Layout, *, root_public_key: str, device_bytes: int) -> Command:
        command = over_a_file(node, layout, root_public_key=root_public_key, device_bytes=device_bytes)
        if node.name != SLED:
            return command
        argv = list(command.argv)
        argv[argv.index("--devices") + 1] = json.dumps([drive])
        settings = {f"SLED_CONTROLLER_{name}": value for name, value in SETTINGS.items()}
        return programs.command_of(node, layout, argv=argv, environ=settings)

    monkeypatch.setattr(rack.programs, "sled", sled)


def test_nothing_is_lost_when_primary_and_sled_are_killed(drive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_drive(monkeypatch, drive)
    with Rack.running() as running:
        running.create_volume("data", 64 << 20)
        volume = Volume(running, "data", 64 << 20, running.wait_members("data", 2))

        async def story() -> None:
            async with writing(volume) as writer:
                await asyncio.to_thread(running.kill, volume.roles.primary)
                await asyncio.to_thread(running.wait_epoch_above, volume.name, volume.roles.epoch)
                await writer.wait_acknowledged(2000)
                await asyncio.to_thread(running.kill, SLED)
                await writer.wait_acknowledged(1000)
                await asyncio.to_thread(running.restart, SLED)
                await writer.wait_acknowledged(1000)
                await assert_nothing_lost(writer)

        asyncio.run(asyncio.wait_for(story(), STORY_SECONDS_MAX))
        log = running.layout.log(running.node(SLED)).read_text(encoding="utf-8")
        assert log.count("event=device_opened address='trtype:TCP") == 2
        assert "Traceback" not in log
