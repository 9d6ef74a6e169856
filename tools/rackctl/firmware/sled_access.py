"""A rollout's hands: one sled's slots read, an image sent and committed, each over a connection of its own."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sled_board.slots import Slot, Slots

from rackctl.errors import RackError
from sled_controller.environment import Environment
from sled_controller.errors import CommandFailed, SledError
from sled_controller.firmware.host import ManagementHost, managed
from sled_controller.firmware.update import SLOT_NUMBERS, CommitAction

T = TypeVar("T")

_NUMBERS: Final = {slot: number for number, slot in SLOT_NUMBERS.items()}


class SledRefused(RackError):
    """A sled is not there, does not know us, or has refused a command; the text says which."""


@dataclass(frozen=True, slots=True)
class SledAddress:
    """A sled as the authority knows it."""

    name: str
    host: str
    port: int
    nqn: str


class SledAccess(Protocol):
    """Every method raises SledRefused."""

    def slots(self, sled: SledAddress) -> Slots:
        """What is in its slots."""

    def update(self, sled: SledAddress, image: bytes, progress: Callable[[int], None]) -> None:
        """Send an image and have it started; `progress` is told how many bytes are there."""

    def activate(self, sled: SledAddress, slot: Slot) -> None:
        """Have what is in a slot started."""


@dataclass(frozen=True, slots=True)
class NvmeAccess:
    """By NVMe/TCP, as a management host."""

    manager: ManagementHost
    env: Environment

    def slots(self, sled: SledAddress) -> Slots:
        """A `SledAccess`'s."""

        async def ask() -> Slots:
            async with managed((sled.host, sled.port), sled.nqn, self.manager, self.env) as connection:
                return await connection.slots()

        return _run(sled, ask)

    def update(self, sled: SledAddress, image: bytes, progress: Callable[[int], None]) -> None:
        """A `SledAccess`'s."""

        async def send() -> None:
            async with managed((sled.host, sled.port), sled.nqn, self.manager, self.env) as connection:
                async for written in connection.download(image):
                    progress(written)
                await connection.commit(0, CommitAction.ACTIVATE_NOW)

        _run(sled, send)

    def activate(self, sled: SledAddress, slot: Slot) -> None:
        """A `SledAccess`'s."""

        async def commit() -> None:
            async with managed((sled.host, sled.port), sled.nqn, self.manager, self.env) as connection:
                await connection.commit(_NUMBERS[slot], CommitAction.ACTIVATE_NOW)

        _run(sled, commit)


def _run(sled: SledAddress, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(work())
    except CommandFailed as error:
        raise SledRefused(f"{sled.name}: {error}; its log says why: `rackctl console {sled.name} log`") from None
    except SledError as error:
        raise SledRefused(f"{sled.name}: {error}") from None
