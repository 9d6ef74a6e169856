"""Linux's own NVMe/TCP target in the guest, over a drive or a file in the guest's memory."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from peers.guest.machine import Guest

NSID: Final = 1
BLOCK_BYTES: Final = 4096
PORT: Final = 4420
"""In the guest."""
_SUBSYSTEMS: Final = "/sys/kernel/config/nvmet/subsystems"
_PORTS: Final = "/sys/kernel/config/nvmet/ports"
_DRIVE: Final = "/sys/kernel/config/nullb/palisade"
_FILE: Final = "/dev/shm/palisade"
_MAKE_DRIVE: Final = f"""
    lsmod | grep -q null_blk || modprobe null_blk nr_devices=0
    mkdir {_DRIVE}
    cd {_DRIVE}
    echo $SIZE_MIB >size; echo {BLOCK_BYTES} >blocksize; echo 1 >memory_backed; echo 1 >power
"""
_MAKE_FILE: Final = f"dd if=/dev/zero of={_FILE} bs=1M count=$SIZE_MIB"


@dataclass(frozen=True, slots=True)
class Target:
    """A subsystem that is served; `port` is on our loopback, `drive` the guest's device or file behind namespace 1."""

    guest: Guest
    nqn: str
    port: int
    drive: str
    transfer_blocks_max: int = 1024

    async def end(self) -> None:
        """Take the port away: connections end at once."""
        await self.guest.check(f"rm {_PORTS}/1/subsystems/*")

    def frozen(self) -> AbstractContextManager[None]:
        """The whole machine stands still in the block; connections stay open."""
        return self.guest.frozen()

    async def sha256(self, blocks: int) -> str:
        """Of the drive's first blocks, as Linux reads them there."""
        command = f"dd if={self.drive} bs={BLOCK_BYTES} count={blocks} iflag=direct | sha256sum"
        return (await self.guest.check(command)).split()[0]


@asynccontextmanager
async def exported(
    guest: Guest, nqn: str, *, size_mib: int = 64, hosts: tuple[str, ...] = (), file: bool = False
) -> AsyncIterator[Target]:
    """A subsystem with one namespace of 4096-byte blocks, for `hosts` only or for anybody; a drive or a `file`."""
    subsystem = f"{_SUBSYSTEMS}/{nqn}"
    known = f"{_SUBSYSTEMS}/../hosts"
    allow = "\n".join(f"mkdir -p {known}/{each}; ln -s {known}/{each} {subsystem}/allowed_hosts/" for each in hosts)
    drive = _FILE if file else "/dev/palisade"
    await guest.check(f"""
        set -e
        SIZE_MIB={size_mib}
        {_MAKE_FILE if file else _MAKE_DRIVE}
        modprobe nvmet-tcp
        mkdir {subsystem}
        cd {subsystem}
        echo {int(not hosts)} >attr_allow_any_host
        {allow}
        mkdir namespaces/{NSID}
        cd namespaces/{NSID}
        printf {drive} >device_path
        echo {int(file)} >buffered_io
        echo 1 >enable
        mkdir {_PORTS}/1
        cd {_PORTS}/1
        echo tcp >addr_trtype; echo ipv4 >addr_adrfam; echo 0.0.0.0 >addr_traddr; echo {PORT} >addr_trsvcid
        ln -s {subsystem} subsystems/{nqn}
    """)
    try:
        yield Target(guest, nqn, await guest.forward(PORT), drive)
    finally:
        await guest.check(f"""
            rm -f {_PORTS}/1/subsystems/*
            rmdir {_PORTS}/1
            rm -f {subsystem}/allowed_hosts/*
            echo 0 >{subsystem}/namespaces/{NSID}/enable
            rmdir {subsystem}/namespaces/{NSID} {subsystem}
            {f"rm {_FILE}" if file else f"rmdir {_DRIVE}"}
        """)
