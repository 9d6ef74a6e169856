"""A guest that stands for a sled's board: PCIe NVMe drives behind an IOMMU, hugepages, and the sled controller inside.

The board's file system is `root_image`, on an NVMe drive that stays with the kernel. The other drives are in slots that
may be pulled, and belong to the kernel until `give_to_vfio`.
"""

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from kit import host, real_sled
from kit.real_sled import ReachableSled
from peers.guest.machine import Guest, Result
from peers.guest.root_image import PACKAGES, PYTHON, root_image

ROOT: Final = "/board"
"""Where the guest mounts the board's file system."""
ROOT_SERIAL: Final = "ROOT"
HUGEPAGES: Final = 128  # of 2 MiB
MEMORY_MIB: Final = 1536
SPDK_MEMORY_MIB: Final = 160
PORT: Final = 4420
"""In the guest."""
PROGRAM_SECONDS_MAX: Final = 30.0  # of a real machine
SLED_SECONDS_MAX: Final = 60.0
"""In one test."""
SLED_CONTROLLER: Final = "from sled_controller.server import main; main()"
KERNEL_ARGUMENTS: Final = ("intel_iommu=on", "iommu=pt", f"hugepages={HUGEPAGES}")
# 48 bits: SPDK gives a drive virtual addresses only where the IOMMU can translate them all.
IOMMU: Final = ("-device", "intel-iommu,intremap=off,aw-bits=48")
_MOUNT: Final = f"""
    set -e
    for found in /sys/class/nvme/*; do
        case $(cat $found/serial) in {ROOT_SERIAL}*) drive=/dev/$(basename $found)n1 ;; esac
    done
    mkdir -p {ROOT}
    mount -t ext4 $drive {ROOT}
    mount -t proc proc {ROOT}/proc
    mount -t sysfs sys {ROOT}/sys
    mount -t devtmpfs dev {ROOT}/dev
    mkdir -p {ROOT}/dev/hugepages
    mount -t hugetlbfs huge {ROOT}/dev/hugepages
"""


@dataclass(frozen=True, slots=True)
class Drive:
    """An NVMe drive in a slot; `serial` names it for QEMU too."""

    serial: str
    image: Path
    size_mib: int = 64
    block_bytes: int = 4096

    def arguments(self, slot: int) -> tuple[str, ...]:
        """Of QEMU."""
        with self.image.open("ab") as file:
            file.truncate(self.size_mib << 20)
        return _nvme(self.serial, self.image, self.block_bytes, slot)


def _nvme(serial: str, image: Path, block_bytes: int, slot: int) -> tuple[str, ...]:
    blocks = f"logical_block_size={block_bytes},physical_block_size={block_bytes}"
    return (
        *("-blockdev", f"driver=file,node-name={serial},filename={image}"),
        *("-device", f"pcie-root-port,id=slot{slot},chassis={slot},slot={slot}"),
        *("-device", f"nvme,id={serial},drive={serial},serial={serial},bus=slot{slot},{blocks}"),
    )


@dataclass(kw_only=True)
class BoardSled(ReachableSled):
    """A sled controller that runs on the board, with its state in the folder `state` of the guest."""

    guest: Guest
    state: str
    ended: "asyncio.Task[Result]"
    killed: bool = False

    async def log(self) -> str:
        """What it has said, at earlier starts too."""
        return (await self.guest.get(f"{self.state}/log")).decode(errors="replace")

    async def kill(self) -> None:
        """End it without its doing anything more."""
        self.killed = True
        await self.guest.check(f"kill -KILL $(cat {self.state}/pid)")
        await self.ended


@dataclass(slots=True)
class Board:
    """A booted one; `addresses` are the drives' on the PCI bus, by their serial numbers."""

    guest: Guest
    addresses: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def boot(cls, directory: Path, drives: Sequence[Drive]) -> Self:
        """Boot one, which `guest.stop` ends. Raises packages.Missing, GuestError."""
        root = await asyncio.to_thread(root_image, directory / "root.img")
        arguments = [*IOMMU, *_nvme(ROOT_SERIAL, root, 512, 1)]
        for slot, drive in enumerate(drives, start=2):
            arguments += drive.arguments(slot)
        guest = await Guest.boot(
            directory, memory_mib=MEMORY_MIB, kernel_arguments=KERNEL_ARGUMENTS, devices=arguments
        )  # fmt: skip
        try:
            await guest.check(_MOUNT)
            said = await guest.check("for one in /sys/class/nvme/*; do echo $(cat $one/serial $one/address); done")
        except BaseException:
            guest.stop()
            raise
        return cls(guest, dict(line.split() for line in said.splitlines()))

    async def missing(self) -> str:
        """What keeps drives from a process here, or nothing."""
        # The drives' interrupts are not remapped, which is no danger to a machine whose processes are all trusted.
        result = await self.guest.run("modprobe vfio_iommu_type1 allow_unsafe_interrupts=1 && modprobe vfio-pci")
        if result.status:
            return f"the kernel has no vfio-pci: {result.stderr.strip()}"
        groups = await self.guest.run("ls /sys/kernel/iommu_groups")
        return "" if groups.stdout else "the kernel found no IOMMU"

    async def give_to_vfio(self, serial: str) -> str:
        """Take a drive from the kernel's driver; its address."""
        address = self.addresses[serial]
        device = f"/sys/bus/pci/devices/{address}"
        await self.guest.check(f"""
            set -e
            echo vfio-pci >{device}/driver_override
            echo {address} >{device}/driver/unbind
            echo {address} >/sys/bus/pci/drivers_probe
            [ "$(basename "$(readlink {device}/driver)")" = vfio-pci ]
        """)
        return address

    async def pull(self, serial: str) -> None:
        """Take a drive out of its slot, as soon as whoever uses it has let go of it."""
        await self.guest.unplug(serial)
        device = f"/sys/bus/pci/devices/{self.addresses[serial]}"
        await self.guest.check(f"while [ -e {device} ]; do usleep 50000; done")

    async def python(self, *arguments: str) -> Result:
        """Run the board's Python to its end."""
        return await self.guest.run(_python(arguments), timeout_s=PROGRAM_SECONDS_MAX)

    async def sled_controller(self, *arguments: str) -> Result:
        """Run the program to its end."""
        return await self.python("-c", SLED_CONTROLLER, *arguments)

    @asynccontextmanager
    async def sled(self, name: str, *serials: str) -> AsyncIterator[BoardSled]:
        """A sled controller over drives, with the tests' identity, that formats blank ones at its first start.

        `name` is that of its state, which is kept. It must end in good order, unless it was killed.
        """
        state = f"{ROOT}/state/{name}"
        await self.guest.check(f"mkdir -p {state}; rm -f {state}/endpoints.json")
        await self.guest.put(f"{state}/identity.key", real_sled.identity().encode())
        program = _python((
            *("-c", SLED_CONTROLLER, "--state-dir", f"/state/{name}", "--format-blank"),
            *("--listen-host", "0.0.0.0", "--listen-port", str(PORT)),
            *("--devices", json.dumps([self.addresses[serial] for serial in serials])),
            *("--root-public-key", host.public_key(host.ROOT).hex(), "--spdk-memory-mib", str(SPDK_MEMORY_MIB)),
        ))  # fmt: skip
        script = f"echo $$ >{state}/pid; exec {program} 2>>{state}/log"
        ended = asyncio.create_task(self.guest.run(script, timeout_s=SLED_SECONDS_MAX))
        ready = f"until [ -e {state}/endpoints.json ]; do usleep 100000; done"
        serving = asyncio.create_task(self.guest.check(ready, timeout_s=PROGRAM_SECONDS_MAX))
        try:
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            sled = BoardSled(port=await self.guest.forward(PORT), guest=self.guest, state=state, ended=ended)
            assert not ended.done(), await sled.log()
            await serving
            yield sled
            sled.close_heads()
            if not sled.killed:
                assert not ended.done(), await sled.log()
                await self.guest.check(f"kill $(cat {state}/pid)")
                assert (await ended).status == 0, await sled.log()
            assert "Traceback" not in await sled.log(), await sled.log()
        finally:
            serving.cancel()
            ended.cancel()


def _python(arguments: Sequence[Any]) -> str:
    return f"env PYTHONPATH=/{PACKAGES} chroot {ROOT} {shlex.join((str(PYTHON), *arguments))}"
