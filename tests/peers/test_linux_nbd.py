"""Debian's kernel mounts volumes over NBD by its own client, at the primary and through a secondary."""

import asyncio
from collections.abc import Callable

import pytest
from kit.volumes import Volume
from peers.guest import Guest, nbd
from peers.guest.multipath import EXT4, FIO

MIB = 1 << 20
SECONDS_MAX = 60


@pytest.mark.parametrize("at", ["primary", "secondary"])
def test_linux_uses_a_file_system_over_nbd(guest: Guest, new_volume: Callable[[int], Volume], at: str) -> None:
    volume = new_volume(EXT4.size_mib * MIB)

    async def scenario() -> None:
        port = volume.rack.node(getattr(volume, at)).ports["nbd"]
        async with nbd.connected(guest, volume.name, port) as device:
            script = f"""
                set -e
                DEV={device}
                [ -b $DEV ] && {EXT4.make} && {EXT4.mount}
                {FIO} --name=random --size=2m --bs=4k --rw=randwrite --iodepth=16 --fsync=16
                rm /mnt/random*; sync; fstrim /mnt; umount /mnt; {EXT4.check}
            """
            try:
                await guest.check(script, timeout_s=SECONDS_MAX)
            finally:
                await guest.run("umount /mnt")

    asyncio.run(scenario())
