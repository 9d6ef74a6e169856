"""A volume as the guest sees it: paths to all of its heads, and one block device of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from kit.volumes import Volume
from peers.guest.machine import GATEWAY, Guest
from rackctl.connect_info import Paths

HOST_ID: Final = UUID("11111111-1111-4111-8111-111111111111")
HOST_NQN: Final = f"nqn.2014-08.org.nvmexpress:uuid:{HOST_ID}"
WHO: Final = f"-q {HOST_NQN} -I {HOST_ID}"
LOAD_SECONDS: Final = 120


@dataclass(frozen=True)
class FileSystem:
    """How one is made on $DEV, and checked by its own program, which repairs nothing; `size_mib` is enough."""

    make: str
    mount: str
    check: str
    size_mib: int


EXT4: Final = FileSystem("mkfs.ext4 -q -F $DEV", "mount -t ext4 $DEV /mnt", "e2fsck -f -n $DEV", 128)
XFS: Final = FileSystem("mkfs.xfs -q -f $DEV", "modprobe xfs && mount -t xfs $DEV /mnt", "xfs_repair -n $DEV", 320)
FIO: Final = "fio --directory=/mnt --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --minimal"
"""Writes files there and reads them back."""


@dataclass
class Connected:
    """A host with a path to every head of a volume, as one block device."""

    guest: Guest
    volume: Volume
    paths: Paths
    device: str

    async def run(self, script: str, timeout_s: float = LOAD_SECONDS) -> str:
        return await self.guest.check(f"DEV={self.device}; cd /; {script}", timeout_s=timeout_s)

    async def mount(self, file_system: FileSystem) -> None:
        """A new file system at /mnt."""
        await self.run(f"[ -b $DEV ] && {file_system.make} && {file_system.mount}")

    async def states(self) -> list[str]:
        """The ANA state of each path, sorted."""
        return sorted((await self.run("cat /sys/block/nvme*c*n*/ana_state")).split())

    async def until(self, condition: str) -> None:
        """Wait until a condition of the guest's shell holds."""
        await self.run(f"until {condition}; do usleep 50000; done")

    async def complaints(self) -> str:
        """What the kernel said of errors that reached somebody who asked."""
        return await self.run("dmesg | grep -iE 'I/O error|buffer i/o|EXT4-fs error|XFS.*(error|shutdown)' || true")


@asynccontextmanager
async def connected(guest: Guest, volume: Volume, options: str = "") -> AsyncIterator[Connected]:
    """Connect to every head of the volume, and disconnect at the end."""
    paths = volume.rack.paths(volume.name)
    await guest.check("modprobe nvme-tcp; dmesg -c >/dev/null")
    try:
        for _, port in paths.nvme:
            connect = f"nvme connect -t tcp -a {GATEWAY} -s {port} -n {paths.nqn} {WHO} --disable-sqflow"
            await guest.check(f"{connect} --reconnect-delay=1 {options}")
        find = (
            "until for n in /sys/block/nvme*n*; do "
            f'[ "$(cat $n/wwid 2>/dev/null)" = uuid.{paths.nqn.rpartition(":")[2]} ] && [ -b /dev/${{n##*/}} ] && '
            "echo /dev/${n##*/} && break; done | grep /dev; do usleep 50000; done"
        )
        device = (await guest.check(find)).strip()
        yield Connected(guest, volume, paths, device)
    finally:
        await guest.run("umount /mnt; nvme disconnect-all")
