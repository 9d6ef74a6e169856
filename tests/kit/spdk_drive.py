"""SPDK's driver in tests: over the fake SPDK wherever there is a compiler, over SPDK's own target where that is."""

import asyncio
import ctypes
import functools
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from kit.drive import run, status_of
from kit.peers import require
from peers.spdk import Target

from spdk_bindings.device import BLOCK_BYTES, Buffer, Device
from spdk_bindings.spdk.build import Spdk, build, output
from spdk_bindings.spdk.controller import DriveSettings
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.environment import EnvironmentSettings, SpdkEnvironment
from spdk_bindings.spdk.errors import BuildError, NotBuiltError
from spdk_bindings.spdk.native import load

STUB: Final = Path(__file__).parents[1] / "spdk_driver" / "stub"
FAKE_ADDRESS: Final = "trtype:TCP"
FAKE_BLOCKS: Final = 1024
OWN_CORE: Final = "0x2"
"""Not the target's: both poll."""
SETTINGS: Final = EnvironmentSettings(core_mask=OWN_CORE, memory_mib=64, buffers_mib=4, no_huge=True, no_pci=True)
QUICK: Final = DriveSettings(io_timeout_s=5.0, admin_timeout_s=5.0, drain_timeout_s=0.2, bounce_mib=4)


class Fake:
    """The levers of the fake SPDK; their names are those in tests/spdk_driver/stub/fake_spdk.h."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def begin(self) -> None:
        """Everything as after power-on."""
        self._library.fake_begin()

    def set(self, **levers: int) -> None:
        """Move levers."""
        for name, value in levers.items():
            self._library.fake_set(name.encode(), value)

    def __getattr__(self, name: str) -> int:
        return int(self._library.fake_get(name.encode()))


@functools.cache
def fake_shim() -> Path:
    """The shim, compiled over the fake; skips without a compiler or Python's headers."""
    require("gcc")
    scratch = tempfile.TemporaryDirectory(prefix="palisade-fake-")
    _keep.append(scratch)
    into = Path(scratch.name) / "_native.so"
    try:
        return build(into, Spdk([f"-I{STUB}"], [str(STUB / "fake_spdk.c"), "-lpthread"]))
    except BuildError as error:
        pytest.skip(str(error))


_keep: list[tempfile.TemporaryDirectory[str]] = []


def fake() -> tuple[SpdkEnvironment, Fake]:
    """The fake SPDK, started, and its levers; skips without a compiler or Python's headers."""
    shim = fake_shim()
    environment = SpdkEnvironment.start(EnvironmentSettings(core_mask="0x1", memory_mib=64, buffers_mib=4), shim)
    levers = Fake(ctypes.CDLL(str(shim)))
    levers.begin()
    return environment, levers


def built() -> None:
    """Skips where the shim over SPDK is not built."""
    try:
        load(output())
    except NotBuiltError as error:
        pytest.skip(str(error))


def shim() -> None:
    """Skips where the shim over SPDK is not built, or one core is all."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("SPDK's target and its initiator poll, and there is one core for both")
    built()


def real() -> SpdkEnvironment:
    """SPDK in this process, without hugepages and PCI; skips as `shim`."""
    shim()
    return SpdkEnvironment.start(SETTINGS)


def address(port: int, nqn: str) -> str:
    """Of a subsystem on loopback, as SPDK writes it."""
    return f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}"


@asynccontextmanager
async def attached(target: Target, settings: DriveSettings = QUICK) -> AsyncIterator[SpdkDevice]:
    """The target's namespace as a drive; skips like `real`."""
    device = await SpdkDevice.open(real(), address(target.port, target.nqn), settings)
    try:
        yield device
    finally:
        device.close()


def play(scenario: Callable[[], Awaitable[None]], seconds_max: float = 60.0) -> None:
    """Run a scenario in a loop of its own."""

    async def whole() -> None:
        async with asyncio.timeout(seconds_max):
            await scenario()

    run(whole())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the reactor brings about."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def write(device: Device, lba: int, data: Buffer, *, fua: bool = False) -> int:
    """Write to the end; the status."""
    return await status_of(lambda done: device.write(lba, data, fua, done))


async def read(device: Device, lba: int, count: int = 1) -> bytes:
    """Read blocks; the status must be success."""
    into = bytearray(count * BLOCK_BYTES)
    assert await status_of(lambda done: device.read(lba, into, done)) == 0
    return bytes(into)
