"""SPDK against a sled, where SPDK is installed: it attaches, sees the namespaces, is denied all I/O, and leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from kit import host
from kit.peers import require
from kit.sled import Sled, running_sled
from peers import spdk

SCENARIO_SECONDS_MAX = 300
BLOCKS = 1024
OTHER_CORE = "0x2"  # a sled's own is busy enough


@asynccontextmanager
async def sled_with_a_namespace() -> AsyncIterator[Sled]:
    async with running_sled() as sled:
        head = sled.client()
        await head.open()
        volume = await head.attach(host.signed(), 1)
        await volume.create_namespace(0, BLOCKS)
        yield sled
        await head.close()


def play(scenario: Callable[[Sled], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(SCENARIO_SECONDS_MAX), sled_with_a_namespace() as sled:
            await scenario(sled)
            assert sled.subsystem.counters.protocol_errors == 0
            await sled.has_hosts(1)

    asyncio.run(whole())


async def run(program: str, *arguments: str, sled: Sled) -> str:
    """Run one of SPDK's programs on the sled to its end; what it said."""
    where = f"trtype:TCP adrfam:IPv4 traddr:{sled.host} trsvcid:{sled.port} subnqn:{host.NQN}"
    _, said = await spdk.run(program, *spdk.MEMORY, *arguments, "-r", where)
    return said


def test_bdev_nvme_attaches_sees_the_namespace_and_detaches() -> None:
    require("nvmf_tgt")

    async def scenario(sled: Sled) -> None:
        async with spdk.running() as (rpc, _):
            where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": sled.host, "trsvcid": str(sled.port)}
            names = await rpc.call("bdev_nvme_attach_controller", name="sled", subnqn=host.NQN, **where)
            assert names == ["sledn1"]
            (seen,) = await rpc.call("bdev_get_bdevs", name="sledn1")
            (namespace,) = sled.subsystem.storage.namespaces.values()
            assert (seen["num_blocks"], seen["block_size"]) == (BLOCKS, 4096)
            assert str(namespace.uuid) in (seen["uuid"], *seen["aliases"])
            await rpc.call("bdev_nvme_detach_controller", name="sled")

    play(scenario)


@pytest.mark.parametrize(("work", "size"), [("randwrite", 4096), ("randwrite", 131072), ("randread", 131072)])
def test_perf_is_denied_every_read_and_write(work: str, size: int) -> None:
    require("spdk_nvme_perf")

    async def scenario(sled: Sled) -> None:
        said = await run(
            "spdk_nvme_perf", "-c", OTHER_CORE, "-q", "4", "-o", str(size), "-w", work, "-t", "1", sled=sled
        )
        assert "completed with error (sct=2, sc=134)" in said  # Access Denied
        assert sled.subsystem.counters.denied > 0
        assert sled.subsystem.counters.admitted == 0

    play(scenario)


def test_identify_reads_all_that_there_is() -> None:
    require("spdk_nvme_identify")

    async def scenario(sled: Sled) -> None:
        said = await run("spdk_nvme_identify", sled=sled)
        if "unrecognized option" in said or "invalid option" in said:
            pytest.skip("this spdk_nvme_identify can't do without hugepages")
        assert host.NQN in said
        assert "Palisade sled" in said

    play(scenario)
