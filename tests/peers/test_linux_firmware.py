"""Linux and nvme-cli update a sled's firmware, as a host that manages it; any other host is denied."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import firmware, host
from kit.firmware_store import Board, board
from kit.sled import running_sled
from peers.guest import GATEWAY, Guest
from peers.guest.nvme import Connection, connected
from sled_board.flash_thread import FlashThread
from sled_board.slots import Slot, SlotState

from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.algorithms import HashId
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import FirmwareUpdate

SCENARIO_SECONDS_MAX = 300
HOST_ID = "0d9f8a4c-5d1b-4c1e-9d0e-3f1f5a6b7c8d"
HOST_NQN = f"nqn.2014-08.org.nvmexpress:uuid:{HOST_ID}"
WHO = f"--hostnqn={HOST_NQN} --hostid={HOST_ID}"
SECRET, CONTROLLER_SECRET = (Secret.generate(SystemEntropy(), HashId.SHA256) for _ in range(2))
PROOF = f"{WHO} --dhchap-secret={SECRET.text()} --dhchap-ctrl-secret={CONTROLLER_SECRET.text()}"
SLOT_BYTES = 4 << 20
OLD = firmware.signed()
NEW = firmware.signed(
    firmware.recipe(version="1.5.0", payloads={"application": bytes(range(251)) * (SLOT_BYTES // 300)})
)
IMAGE = "/tmp/sled.img"


@dataclass
class Bench:
    """A sled that runs `OLD` from slot 1, and the guest connected as one that manages it."""

    board: Board
    guest: Guest
    linux: Connection
    restarts: asyncio.Queue[None]

    async def log(self) -> Any:
        (page,) = (await self.linux.ask("fw-log")).values()
        return page

    async def command(self, words: str) -> tuple[int, str]:
        """Exit status and output of `nvme fw-...` with the controller."""
        name, _, options = words.partition(" ")
        result = await self.guest.run(f"nvme {name} {self.linux.controller} {options}", timeout_s=60)
        return result.status, result.stdout + result.stderr

    async def download(self, data: bytes, options: str = "") -> None:
        await self.guest.put(IMAGE, data + bytes(-len(data) % 4))  # nvme-cli sends whole dwords only
        status, said = await self.command(f"fw-download --fw={IMAGE} {options}")
        assert status == 0, said

    def state(self, slot: Slot) -> SlotState:
        return self.board.slots[slot].state


@asynccontextmanager
async def bench(folder: Path, guest: Guest, who: str) -> AsyncIterator[Bench]:
    await guest.check("dmesg -c >/dev/null")
    made = board(folder, slot_bytes=SLOT_BYTES)
    made.use(OLD)
    restarts: asyncio.Queue[None] = asyncio.Queue()
    flash = FlashThread()
    update = FirmwareUpdate(made.store, flash.submit, lambda: restarts.put_nowait(None))
    managers = ManagementHosts({HOST_NQN: Terms(SECRET, CONTROLLER_SECRET)})
    async with (
        running_sled(advertised_host=GATEWAY, firmware=update, managers=managers) as sled,
        connected(guest, host.NQN, sled.port, who) as linux,
    ):
        yield Bench(made, guest, linux, restarts)
    flash.close()


def play(folder: Path, guest: Guest, scenario: Callable[[Bench], Awaitable[None]], who: str = PROOF) -> None:
    async def whole() -> None:
        async with asyncio.timeout(SCENARIO_SECONDS_MAX), bench(folder, guest, who) as it:
            await scenario(it)

    asyncio.run(whole())


def test_an_image_is_downloaded_committed_and_shown(guest: Guest, tmp_path: Path) -> None:
    async def scenario(it: Bench) -> None:
        controller = await it.linux.ask("id-ctrl")
        assert (controller["fr"].strip(), controller["frmw"], controller["oacs"] & 4) == ("1.4.0", 0x14, 4)
        await it.download(NEW)
        status, said = await it.command("fw-commit --slot=0 --action=3")
        assert status == 0, said
        await it.restarts.get()
        log = await it.log()
        assert log["Active Firmware Slot (afi)"] == 0x21
        assert "1.4.0" in str(log["Firmware Rev Slot 1"])
        assert "1.5.0" in str(log["Firmware Rev Slot 2"])
        assert it.state(Slot.B) is SlotState.TEST

    play(tmp_path, guest, scenario)


def test_long_pieces_and_a_reset_of_the_subsystem_do_as_well(guest: Guest, tmp_path: Path) -> None:
    async def scenario(it: Bench) -> None:
        await it.download(NEW, "--xfer=0x20000")
        status, said = await it.command("fw-commit --slot=2 --action=0")
        assert status == 0, said
        assert it.state(Slot.B) is SlotState.INACTIVE
        status, said = await it.command("fw-commit --slot=2 --action=2")
        assert "subsystem" in said.lower(), (status, said)
        assert it.state(Slot.B) is SlotState.TEST
        assert it.restarts.empty()
        await it.command("subsystem-reset")
        await it.restarts.get()

    play(tmp_path, guest, scenario)


def test_what_is_damaged_or_older_is_refused_and_says_so(guest: Guest, tmp_path: Path) -> None:
    async def scenario(it: Bench) -> None:
        damaged = bytearray(NEW)
        damaged[len(NEW) // 2] ^= 1
        older = firmware.signed(firmware.recipe(counter=firmware.COUNTER - 1))
        for data, said_of in ((bytes(damaged), "0x4107"), (older, "0x4113")):
            await it.download(data, "--xfer=0x20000")
            status, said = await it.command("fw-commit --slot=0 --action=3")
            assert status != 0
            assert said_of in said.lower(), said
            assert it.state(Slot.B) is SlotState.EMPTY
        assert it.restarts.empty()
        assert it.state(Slot.A) is SlotState.CONFIRMED

    play(tmp_path, guest, scenario)


def test_a_host_that_does_not_manage_the_sled_is_denied(guest: Guest, tmp_path: Path) -> None:
    async def scenario(it: Bench) -> None:
        await it.guest.put(IMAGE, NEW + bytes(-len(NEW) % 4))
        status, said = await it.command(f"fw-download --fw={IMAGE}")
        assert status != 0
        assert "0x286" in said.lower() or "access denied" in said.lower(), said
        status, said = await it.command("fw-commit --slot=2 --action=3")
        assert status != 0
        assert it.state(Slot.B) is SlotState.EMPTY
        assert it.restarts.empty()

    play(tmp_path, guest, scenario, who="")


def test_the_name_of_a_managing_host_without_its_secret_opens_nothing(guest: Guest, tmp_path: Path) -> None:
    async def scenario(it: Bench) -> None:
        where = f"-t tcp -a {GATEWAY} -s {await port_of(it)} -n {host.NQN}"
        result = await it.guest.run(f"nvme connect {where} {WHO}", timeout_s=20)
        assert result.status != 0, result.stdout

    play(tmp_path, guest, scenario, who="")


async def port_of(it: Bench) -> str:
    """The sled's, as the guest knows it."""
    address = await it.guest.check(f"cat /sys/class/nvme/{Path(it.linux.controller).name}/address")
    return dict(part.split("=") for part in address.strip().split(","))["trsvcid"]
