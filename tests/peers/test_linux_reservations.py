"""Debian's kernel and nvme-cli reserve volumes: other hosts and NBD clients are kept out, over a takeover too."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from kit.volumes import Failover, Volume
from peers.guest import GATEWAY, Guest, packages
from peers.guest.multipath import HOST_ID, connected
from peers.test_linux_volumes import MIB, play

from head_node.export.errors import NbdCommandFailed
from head_node.export.nbd_client import NbdClient

EPERM = 1
FIRST, SECOND = UUID(int=0x11), UUID(int=0x22)


def who(host: UUID) -> str:
    return f"hostnqn=nqn.2014-08.org.nvmexpress:uuid:{host},hostid={host}"


async def reported(guest: Guest, device: str) -> tuple[int, dict[UUID, tuple[int, bool]]]:
    """(type, key and whether it holds, by host) as Reservation Report says."""
    result = await guest.run(f"nvme resv-report {device} -n 1 -e -o binary")
    assert result.status == 0, result.stderr
    page = result.output
    count = int.from_bytes(page[5:7], "little")
    rows = [page[at : at + 64] for at in range(64, 64 + 64 * count, 64)]
    hosts = {UUID(bytes=row[16:32]): (int.from_bytes(row[8:16], "little"), bool(row[2] & 1)) for row in rows}
    return page[4], hosts


async def written_over_nbd(volume: Volume, head: str) -> bool:
    """Whether an NBD client may write."""
    node = volume.rack.node(head)
    client = await NbdClient.connect([(node.host, node.ports["nbd"])], volume.name)
    try:
        await client.write(0, bytes(4096))
    except NbdCommandFailed as refused:
        if refused.error != EPERM:
            raise
        return False
    finally:
        await client.close()
    return True


def test_a_reservation_keeps_nbd_clients_out_before_and_after_a_takeover(
    guest: Guest, new_volume: Callable[[int], Volume], failover: Failover
) -> None:
    volume = new_volume(16 * MIB)

    async def scenario() -> None:
        async with connected(guest, volume) as host:
            await host.run("[ -b $DEV ] && nvme resv-register $DEV -n 1 --nrkey=0x51 --rrega=0 --cptpl=3")
            assert await written_over_nbd(volume, volume.primary)
            await host.run("nvme resv-acquire $DEV -n 1 --crkey=0x51 --rtype=1 --racqa=0")
            assert await reported(guest, host.device) == (1, {HOST_ID: (0x51, True)})
            assert not await written_over_nbd(volume, volume.primary)
            assert not await written_over_nbd(volume, volume.secondary)
            await host.run("dd if=/dev/urandom of=$DEV bs=4096 count=4 conv=fsync")

            survivor = volume.secondary
            await asyncio.to_thread(failover.kill_primary, volume)
            await host.run("dd if=/dev/urandom of=$DEV bs=4096 count=4 conv=fsync")
            assert await reported(guest, host.device) == (1, {HOST_ID: (0x51, True)})
            assert not await written_over_nbd(volume, survivor)
            await host.run("nvme resv-release $DEV -n 1 --crkey=0x51 --rtype=1 --rrela=0")
            assert await written_over_nbd(volume, survivor)

    play(scenario())


def test_a_second_host_is_kept_out_until_it_preempts_the_first(
    tmp_path: Path, new_volume: Callable[[int], Volume]
) -> None:
    """Two hosts in one guest, which must not make one device of their paths."""
    volume = new_volume(16 * MIB)

    async def scenario() -> None:
        paths = volume.rack.paths(volume.name)
        async with Guest.booted(tmp_path, kernel_arguments=["nvme_core.multipath=N"]) as guest:
            await guest.check("modprobe nvme-tcp")
            for number, host in enumerate([FIRST, SECOND]):
                port = paths.nvme[0][1]  # the primary's
                options = f"transport=tcp,traddr={GATEWAY},trsvcid={port},nqn={paths.nqn},{who(host)}"
                await guest.check(f"echo -n '{options}' >/dev/nvme-fabrics")
                await guest.check(f"until [ -b /dev/nvme{number}n1 ]; do usleep 50000; done", timeout_s=60)
            first, second = "/dev/nvme0n1", "/dev/nvme1n1"

            async def may(device: str, verb: str) -> bool:
                command = {
                    "write": f"dd if=/dev/zero of={device} bs=4096 count=1 conv=fsync",
                    "read": f"echo 3 >/proc/sys/vm/drop_caches; dd if={device} of=/dev/null bs=4096 count=1",
                }[verb]
                return (await guest.run(command, timeout_s=60)).status == 0

            await guest.check(f"nvme resv-register {first} -n 1 --nrkey=0x11 --rrega=0")
            await guest.check(f"nvme resv-register {second} -n 1 --nrkey=0x22 --rrega=0")
            assert [await may(device, "write") for device in (first, second)] == [True, True]
            await guest.check(f"nvme resv-acquire {first} -n 1 --crkey=0x11 --rtype=2 --racqa=0")
            assert [await may(device, verb) for device in (first, second) for verb in ("write", "read")] == [
                True, True, False, False,
            ]  # fmt: skip
            assert (await guest.run(f"nvme resv-acquire {second} -n 1 --crkey=0x22 --rtype=2 --racqa=0")).status != 0
            assert await reported(guest, second) == (2, {FIRST: (0x11, True), SECOND: (0x22, False)})

            await guest.check(f"nvme resv-acquire {second} -n 1 --crkey=0x22 --prkey=0x11 --rtype=2 --racqa=2")
            assert [await may(device, verb) for device in (first, second) for verb in ("write", "read")] == [
                False, False, True, True,
            ]  # fmt: skip
            assert await reported(guest, first) == (2, {SECOND: (0x22, True)})
            notice = (await guest.run("nvme resv-notif-log /dev/nvme0 -o binary")).output
            assert notice[8] == 1, "registration preempted"

            await guest.check(f"nvme resv-release {second} -n 1 --crkey=0x22 --rrela=1")
            assert await reported(guest, first) == (0, {})
            assert await may(first, "write")

    try:
        play(scenario())
    except packages.Missing as missing:
        pytest.skip(str(missing))
