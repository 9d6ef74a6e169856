"""A rack's sleds are updated under load, one after the other, and a bad image comes back out of them by itself."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from kit import firmware
from kit.applications import SLED, packed
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.firmware.rollout import STATUS_ROLLED_BACK, sleds_of
from rackctl.firmware.sled_access import NvmeAccess, SledAddress
from rackctl.rack import Rack, RackSize, wait_until
from rackctl.staged_sleds import HARDWARE, SledFirmware, manager_of, managers_file
from rackctl.state import NodeKind
from sled_board.firmware_store import THIS_ARCHITECTURE
from sled_board.slots import Slots

from sled_controller.environment import Environment

ROLLOUT_SECONDS_MAX = 400
SIZE = 64 << 20
FAILS_ON_THE_THIRD = f'import sys\nif "sled-2" in sys.argv:\n    raise SystemExit(1)\n{SLED}'
"""Healthy everywhere but on one sled."""


def image(version: str, main: str = SLED) -> bytes:
    return firmware.signed(
        firmware.recipe(
            version=version,
            hardware=(HARDWARE,),
            architecture=THIS_ARCHITECTURE,
            payloads={"application": packed(main)},
        )
    )


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Six sleds that run from slots."""
    directory = tmp_path_factory.mktemp("rollout") / "rack"
    with Rack.running(directory, RackSize(), SledFirmware(image("1.0.0"), firmware.ROOT.public)) as started:
        yield started


async def rollout(rack: Rack, path: Path) -> tuple[int, list[dict[str, str]]]:
    """Exit status and events of the command."""
    command = [
        *(sys.executable, "-m", "rackctl.cli", "firmware", "rollout", str(path), "--dir", str(rack.directory)),
        *("--json", "--settle", "0.5"),
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=os.environ)
    output, _ = await asyncio.wait_for(process.communicate(), ROLLOUT_SECONDS_MAX)
    assert process.returncode is not None
    return process.returncode, [json.loads(line) for line in output.decode().splitlines()]


def versions(rack: Rack) -> set[str]:
    """What the sleds run, once each has been found healthy."""
    access = NvmeAccess(manager_of(managers_file(rack.directory)), Environment())

    def settled(sled: SledAddress) -> Slots | None:
        slots = access.slots(sled)
        return slots if slots.settled else None

    found = set()
    for sled in sleds_of(rack.api.nodes()):
        slots = wait_until(partial(settled, sled), f"{sled.name} to be healthy", 30.0)
        assert slots.active is not None
        found.add(slots[slots.active].version)
    return found


@pytest.mark.timeout(900)
def test_a_rollout_under_load_costs_no_client_an_error_and_a_bad_image_is_taken_back(
    rack: Rack, tmp_path: Path
) -> None:
    for name, data in (("good", image("1.1.0")), ("bad", image("1.2.0", FAILS_ON_THE_THIRD))):
        (tmp_path / name).write_bytes(data)

    async def story() -> None:
        await asyncio.to_thread(rack.create_volume, "data", SIZE)
        volume = Volume(rack, "data", SIZE, await asyncio.to_thread(rack.wait_members, "data", 2))
        async with writing(volume) as writer:
            status, events = await rollout(rack, tmp_path / "good")
            assert status == 0, events
            assert [event["sled"] for event in events if event["event"] == "updated"] == [
                node.name for node in rack.state.of_kind(NodeKind.SLED)
            ]
            assert await asyncio.to_thread(versions, rack) == {"1.1.0"}

            status, events = await rollout(rack, tmp_path / "good")
            assert status == 0
            assert [event["event"] for event in events] == ["current"] * 6 + ["done"]

            status, events = await rollout(rack, tmp_path / "bad")
            assert status == STATUS_ROLLED_BACK, events
            happened = [(event["event"], event["sled"]) for event in events if event["event"] != "sent"]
            assert happened == [
                ("updating", "sled-0"), ("updated", "sled-0"), ("updating", "sled-1"), ("updated", "sled-1"),
                ("updating", "sled-2"), ("halted", None),
                ("taken_back", "sled-2"), ("taken_back", "sled-1"), ("taken_back", "sled-0"),
            ]  # fmt: skip
            assert await asyncio.to_thread(versions, rack) == {"1.1.0"}
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    asyncio.run(story())


def test_a_sled_that_is_killed_or_frozen_goes_with_its_stage(rack: Rack) -> None:
    before = versions(rack)
    rack.pause("sled-4")
    rack.resume("sled-4")
    rack.kill("sled-5")
    rack.restart("sled-5")
    assert versions(rack) == before
