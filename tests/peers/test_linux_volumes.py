"""Debian's kernel mounts volumes over NVMe/TCP: one multipath namespace, and no error when its primary goes."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import pytest
from kit.volumes import Failover, Volume
from peers.guest import GATEWAY, Guest
from peers.guest.multipath import EXT4, FIO, HOST_ID, HOST_NQN, LOAD_SECONDS, WHO, XFS, FileSystem, connected

MIB = 1 << 20
FILE_SYSTEMS = pytest.mark.parametrize("file_system", [EXT4, XFS], ids=["ext4", "xfs"])


def play(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_linux_finds_the_heads_of_a_volume_by_discovery(guest: Guest, new_volume: Callable[[int], Volume]) -> None:
    volume = new_volume(16 * MIB)

    async def scenario() -> None:
        port = volume.rack.paths(volume.name).nvme[0][1]
        await guest.check("modprobe nvme-tcp")
        found = await guest.check(f"nvme discover -t tcp -a {GATEWAY} -s {port} {WHO}")
        assert found.count(volume.rack.paths(volume.name).nqn) == 2
        assert found.count(f"traddr:  {GATEWAY}") >= 2, found
        async with connected(guest, volume) as host:
            assert await host.states() == ["inaccessible", "optimized"]
            assert re.fullmatch(r"/dev/nvme\d+n\d+", host.device)  # one device of both paths

    play(scenario())


@FILE_SYSTEMS
def test_linux_uses_a_file_system_on_a_volume(
    guest: Guest, new_volume: Callable[[int], Volume], file_system: FileSystem
) -> None:
    volume = new_volume(file_system.size_mib * MIB)

    async def scenario() -> None:
        async with connected(guest, volume) as host:
            await host.mount(file_system)
            await host.run(f"{FIO} --name=random --size=4m --bs=4k --rw=randwrite --iodepth=64")
            await host.run(f"{FIO} --name=sequential --size=32m --bs=1m --rw=write --iodepth=64")
            storm = f"{FIO} --name=storm --numjobs=4 --size=256k --bs=4k --rw=randwrite --iodepth=4 --fsync=1"
            await host.run(storm)
            await host.run(f"rm /mnt/sequential*; sync; fstrim /mnt; umount /mnt; {file_system.check}")
            assert await host.complaints() == ""

    play(scenario())


@pytest.mark.parametrize(
    ("file_system", "options"), [(EXT4, "--hdr-digest --data-digest"), (XFS, "")], ids=["ext4-digests", "xfs"]
)
def test_linux_loses_its_primary_under_load_and_no_error_reaches_the_file_system(
    guest: Guest, new_volume: Callable[[int], Volume], failover: Failover, file_system: FileSystem, options: str
) -> None:
    volume = new_volume(file_system.size_mib * MIB)

    async def scenario() -> None:
        async with connected(guest, volume, options) as host:
            await host.mount(file_system)
            await host.run(
                "dd if=/dev/urandom of=/mnt/before bs=1M count=4 2>/dev/null; sync; sha256sum /mnt/before >/sum"
            )
            load = f"{FIO} --name=load --size=4m --bs=4k --rw=randwrite --iodepth=32 --loops=4 --fsync=64"
            loading = asyncio.create_task(host.run(load))
            await host.until(f"[ $(awk '{{print $5}}' /sys/block/{host.device[5:]}/stat) -gt 1500 ]")
            assert not loading.done()
            await asyncio.to_thread(failover.kill_primary, volume)
            await loading
            await host.run(f"umount /mnt; {file_system.check} && {file_system.mount} && sha256sum -c /sum")
            assert await host.complaints() == ""

            await asyncio.to_thread(failover.repair)  # the path that was lost comes back by itself
            await host.until("[ $(cat /sys/class/nvme/nvme*/state | grep -c live) = 2 ]")
            assert await host.states() == ["inaccessible", "optimized"]

    play(scenario())


def test_linux_goes_on_while_its_heads_are_restarted_one_after_the_other(
    guest: Guest, new_volume: Callable[[int], Volume]
) -> None:
    volume = new_volume(128 * MIB)

    async def scenario() -> None:
        async with connected(guest, volume) as host:
            await host.mount(EXT4)
            load = f"{FIO} --name=load --size=2m --bs=4k --rw=randwrite --iodepth=16 --time_based --runtime=3600"
            loading = asyncio.create_task(guest.run(f"cd /; echo $$ >/loading; exec {load}", timeout_s=LOAD_SECONDS))
            for head in (volume.primary, volume.secondary):
                await host.until(f"[ $(awk '{{print $9}}' /sys/block/{host.device[5:]}/stat) != 0 ]")
                await asyncio.to_thread(volume.rack.restart, head)
                await asyncio.to_thread(volume.rack.wait_members, volume.name, 2)
                await host.until("[ $(cat /sys/class/nvme/nvme*/state | grep -c live) = 2 ]")
            # The parent alone: in its job the handler can find a lock taken, and fio waits five minutes for such a job.
            await host.run("kill -INT $(cat /loading)")
            result = await loading
            assert "error" not in result.stdout + result.stderr
            await host.run(f"umount /mnt; {EXT4.check}")
            assert await host.complaints() == ""

    play(scenario())


def test_linux_is_refused_unless_the_volume_lists_it(guest: Guest, new_volume: Callable[[int], Volume]) -> None:
    volume = new_volume(16 * MIB)
    volume.rack.api.expel_host(volume.name, "*")
    volume.rack.api.admit_host(volume.name, HOST_NQN)
    other_id = HOST_ID.int + 1
    other = f"-q nqn.2014-08.org.nvmexpress:uuid:{UUID(int=other_id)} -I {UUID(int=other_id)}"

    async def scenario() -> None:
        paths = volume.rack.paths(volume.name)
        connect = f"nvme connect -t tcp -a {GATEWAY} -s {paths.nvme[0][1]} -n {paths.nqn} "
        await guest.check("modprobe nvme-tcp")
        # The list reaches the heads with their next view, within moments.
        await guest.check(f"until ! {connect} {other}; do nvme disconnect-all; usleep 50000; done")
        assert "nvme0" not in await guest.check("ls /sys/class/nvme")
        async with connected(guest, volume) as host:
            assert await host.states() == ["inaccessible", "optimized"]

    play(scenario())
