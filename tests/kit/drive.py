"""Devices and storages for tests, among them a drive whose power fails at a chosen write."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from sled_controller.environment import Environment
from sled_controller.storage import SledStorage, StoredFence
from sled_controller.storage.completion import completed
from spdk_bindings.device import BLOCK_BYTES, Buffer, Device, Done
from spdk_bindings.emulator import MemoryDevice

T = TypeVar("T")

SLED = UUID("5a1ed000-0000-4000-8000-000000000001")
DEVICE_BLOCKS = 1024
TABLE_RECORDS = 64


class NoTime:
    """A clock that stands still; the storage measures nothing."""

    def boottime_ns(self) -> int:
        return 0

    def wall_ms(self) -> int:
        return 0


class Seeded:
    """Entropy from a seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class PowerCut(Exception):
    """The power failed in the middle of a write."""


class CuttingDevice(MemoryDevice):
    """A memory drive that keeps an arbitrary part of its n-th write from now and raises PowerCut there."""

    writes_left: int | None = None
    random = Random(0)

    def cut_after(self, writes: int, random: Random) -> None:
        """Let `writes` writes through, then cut."""
        self.writes_left = writes
        self.random = random

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        if self.writes_left is None:
            return super().write(lba, data, fua, done)
        if self.writes_left == 0:
            view = memoryview(data)
            for offset in range(len(data) // BLOCK_BYTES):
                if self.random.random() < 0.5:
                    part = view[offset * BLOCK_BYTES : (offset + 1) * BLOCK_BYTES]
                    super().write(lba + offset, part, fua, done)
            raise PowerCut
        self.writes_left -= 1
        return super().write(lba, data, fua, done)

    def clone(self) -> "CuttingDevice":
        other = CuttingDevice(self.block_count, self.serial, self.model)
        other.blocks = dict(self.blocks)
        return other


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` by a shorter name."""
    return asyncio.run(coroutine)


def environment(seed: int = 1) -> Environment:
    """Fixed time and seeded entropy."""
    return Environment(NoTime(), Seeded(seed))


async def open_storage(devices: Sequence[Device], *, seed: int = 1, format: bool = False) -> SledStorage:  # noqa: A002
    """A storage of the test sled with small tables."""
    return await SledStorage.open(
        devices, sled_id=SLED, env=environment(seed), format=format, table_records=TABLE_RECORDS
    )


def memory_devices(count: int) -> list[MemoryDevice]:
    """Blank drives of 4 MiB."""
    return [MemoryDevice(DEVICE_BLOCKS, f"MEM{number}") for number in range(count)]


def fence(epoch: int, holder: int = 1) -> StoredFence:
    """A fence whose credential tells its epoch."""
    return StoredFence(epoch, bytes([holder]) * 32, b"credential %d" % epoch)


def volume(number: int) -> UUID:
    """Volume ids that read well in failures."""
    return UUID(int=0xF0 << 120 | number)


async def status_of(start: Callable[[Done], int]) -> int:
    """The status of a command, whether it was pending or not."""
    return await completed(start)


def block(byte: int, count: int = 1) -> bytes:
    """`count` blocks full of one byte."""
    return bytes([byte]) * (BLOCK_BYTES * count)


def read(device: Device, lba: int, count: int = 1) -> bytes:
    """Read inline; the status must be success."""
    into = bytearray(count * BLOCK_BYTES)
    status = device.read(lba, into, unexpected)
    assert status == 0, f"read of block {lba}: {status:#x}"
    return bytes(into)


def unexpected(status: int) -> None:
    """For commands that complete inline."""
    raise AssertionError(f"completed later with {status:#x}")
