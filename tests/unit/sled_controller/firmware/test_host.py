"""A management host updates a sled over real sockets, and is told why where it cannot."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kit import firmware, guarded, host
from kit.firmware_store import Board, board
from kit.sled import running_sled
from sled_board.flash_thread import FlashThread
from sled_board.slots import Slot, SlotState

from sled_controller.environment import Environment
from sled_controller.errors import AuthenticationFailed, CommandFailed, SledUnavailable
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.firmware.host import PIECE_BYTES, ManagedSled, ManagementHost, managed
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import CommitAction, FirmwareUpdate
from spdk_bindings.nvme import Status

OLD = firmware.signed()
NEW = firmware.signed(
    firmware.recipe(version="1.5.0", payloads={"application": bytes(range(256)) * (6 * PIECE_BYTES // 256)})
)
MANAGER = ManagementHost(guarded.NAME, host.HEAD, guarded.TERMS)


def update(
    folder: Path, scenario: Callable[[ManagedSled, Board], Awaitable[None]], manager: ManagementHost = MANAGER
) -> int:
    """Serve a sled that runs `OLD` and play the scenario as `manager`; how often the sled was to restart."""

    async def run() -> int:
        made = board(folder)
        made.use(OLD)
        flash = FlashThread()
        restarts: list[None] = []
        update = FirmwareUpdate(made.store, flash.submit, lambda: restarts.append(None))
        managers = ManagementHosts({guarded.NAME: guarded.TERMS})
        async with (
            running_sled(firmware=update, managers=managers) as sled,
            managed((sled.host, sled.port), host.NQN, manager, Environment()) as connection,
        ):
            await scenario(connection, made)
        flash.close()
        return len(restarts)

    return asyncio.run(asyncio.wait_for(run(), 60))


async def send(sled: ManagedSled, image: bytes) -> list[int]:
    return [written async for written in sled.download(image)]


def test_an_image_is_sent_committed_and_shown(tmp_path: Path) -> None:
    async def scenario(sled: ManagedSled, made: Board) -> None:
        assert (await sled.slots()) == made.slots
        written = await send(sled, NEW)
        assert written == sorted(written)
        assert written[-1] == len(NEW)
        await sled.commit(0, CommitAction.REPLACE_AND_ACTIVATE)
        slots = await sled.slots()
        assert (slots[Slot.B].state, slots[Slot.B].version, slots.active) == (SlotState.TEST, "1.5.0", Slot.A)
        await sled.commit(2, CommitAction.ACTIVATE_NOW)

    assert update(tmp_path, scenario) == 1


def test_a_refusal_says_its_status(tmp_path: Path) -> None:
    async def scenario(sled: ManagedSled, made: Board) -> None:
        await send(sled, firmware.signed(keys=()))
        with pytest.raises(CommandFailed, match="FIRMWARE_IMAGE_INVALID") as caught:
            await sled.commit(0, CommitAction.ACTIVATE_NOW)
        assert caught.value.status == Status.FIRMWARE_IMAGE_INVALID
        with pytest.raises(CommandFailed, match="INVALID_FIELD"):
            await send(sled, bytes(2 << 20))

    assert update(tmp_path, scenario) == 0


def test_a_wrong_secret_is_said(tmp_path: Path) -> None:
    async def scenario(sled: ManagedSled, made: Board) -> None:
        raise AssertionError

    wrong = replace(MANAGER, terms=replace(guarded.TERMS, secret=Secret(bytes(32), None)))
    with pytest.raises(AuthenticationFailed):
        update(tmp_path, scenario, wrong)


def test_a_sled_that_is_not_there_is_said() -> None:
    async def run() -> None:
        async with managed(("127.0.0.1", 1), host.NQN, MANAGER, Environment()):
            raise AssertionError

    with pytest.raises(SledUnavailable, match=r"127\.0\.0\.1:1"):
        asyncio.run(run())
