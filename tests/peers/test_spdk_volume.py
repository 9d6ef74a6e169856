"""SPDK on volumes, where SPDK is installed: its initiator and bdev_nvme, over two paths and with authentication."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.peers import require
from kit.volumes import Failover, Volume
from peers import spdk

from head_node.export.nvme.controller import MODEL
from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.algorithms import HashId
from sled_controller.fabric.dhchap.secret import Secret

MIB = 1 << 20
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:0d9f8a4c-5d1b-4c1e-9d0e-3f1f5a6b7c8e"
LOAD_SECONDS = 5
KILLED_AFTER_SECONDS = 1.0


async def until_said(process: asyncio.subprocess.Process, text: str) -> None:
    """Read what it says until the text is in a line of it."""
    assert process.stdout is not None
    async with asyncio.timeout(spdk.PROGRAM_SECONDS_MAX):
        while text not in (line := (await process.stdout.readline()).decode(errors="replace")):
            assert line, "it has ended"


def to_primary(volume: Volume) -> str:
    """The volume at its primary, as SPDK's programs are told."""
    port = volume.rack.node(volume.primary).ports["nvme"]
    nqn = volume.rack.paths(volume.name).nqn
    return f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}"


def attachments(volume: Volume, **more: str) -> list[dict[str, Any]]:
    """What makes one block device of the paths to all heads: parameters of bdev_nvme_attach_controller."""
    paths = volume.rack.paths(volume.name)
    common = {
        "name": "volume", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "subnqn": paths.nqn,
        "hostnqn": HOST_NQN, "multipath": "multipath", "reconnect_delay_sec": 1, "ctrlr_loss_timeout_sec": -1,
    }  # fmt: skip
    return [{**common, "trsvcid": str(port), **more} for _, port in paths.nvme]


def configuration(path: Path, *calls: tuple[str, list[dict[str, Any]]]) -> Path:
    """A file of methods that an application of SPDK calls when it starts, by subsystem."""
    subsystems: dict[str, list[dict[str, Any]]] = {}
    for method, each in calls:
        subsystem = "keyring" if method.startswith("keyring") else "bdev"
        subsystems.setdefault(subsystem, []).extend({"method": method, "params": parameters} for parameters in each)
    document = [{"subsystem": name, "config": config} for name, config in subsystems.items()]
    path.write_text(json.dumps({"subsystems": document}))
    return path


def bdevperf(config: Path, seconds: int) -> tuple[str | Path, ...]:
    """Arguments: blocks are written, read again and compared."""
    return (
        *spdk.MEMORY, "-m", "0x2", "--disable-cpumask-locks", "--no-pci", "--no-rpc-server", "-c", config,
        *("-q", "16", "-o", "4096", "-w", "verify", "-t", str(seconds)),
    )  # fmt: skip


def test_identify_reads_all_that_there_is(new_volume: Callable[[int], Volume]) -> None:
    require("spdk_nvme_identify")
    volume = new_volume(16 * MIB)
    _, said = asyncio.run(spdk.run("spdk_nvme_identify", *spdk.MEMORY, "-r", to_primary(volume)))
    if "unrecognized option" in said or "invalid option" in said:
        pytest.skip("this spdk_nvme_identify can't do without hugepages")
    assert volume.rack.paths(volume.name).nqn in said
    assert MODEL in said


@pytest.mark.parametrize("digests", [(), ("-H", "-I")], ids=["plain", "digests"])
@pytest.mark.parametrize(("work", "size"), [("randrw", 4096), ("rw", 131072)])
def test_perf_reads_and_writes(
    new_volume: Callable[[int], Volume], work: str, size: int, digests: tuple[str, ...]
) -> None:
    require("spdk_nvme_perf")
    volume = new_volume(64 * MIB)
    status, said = asyncio.run(
        spdk.run(
            "spdk_nvme_perf", *spdk.MEMORY, "-c", "0x2", "-q", "32", "-o", str(size), "-w", work, "-M", "50", "-t", "1",
            *digests, "-r", to_primary(volume),
        )
    )  # fmt: skip
    assert status == 0, said
    assert "completed with error" not in said


def test_bdev_nvme_goes_on_when_the_primary_is_killed(
    tmp_path: Path, new_volume: Callable[[int], Volume], failover: Failover
) -> None:
    require("bdevperf")
    volume = new_volume(64 * MIB)
    config = configuration(
        tmp_path / "config.json",
        ("bdev_nvme_set_options", [{"bdev_retry_count": -1}]),
        ("bdev_nvme_attach_controller", attachments(volume)),
    )

    async def scenario() -> None:
        loading = await spdk.start("bdevperf", *bdevperf(config, LOAD_SECONDS))
        await until_said(loading, "Running I/O")
        await asyncio.sleep(KILLED_AFTER_SECONDS)
        await asyncio.to_thread(failover.kill_primary, volume)
        status, said = await spdk.finish(loading)
        assert status == 0, said
        assert "miscompare" not in said.lower()

    asyncio.run(scenario())


def test_bdev_nvme_and_the_heads_prove_themselves_to_each_other(
    tmp_path: Path, new_volume: Callable[[int], Volume]
) -> None:
    require("bdevperf")
    volume = new_volume(64 * MIB)
    api = volume.rack.api
    secrets = {name: Secret.generate(SystemEntropy(), HashId.SHA256).text() for name in ("host", "controller", "wrong")}
    api.set_policy(volume.name, {"nbd": "off"})
    api.expel_host(volume.name, "*")
    api.set_host_secret(
        volume.name, HOST_NQN, secrets["host"], secrets["controller"], hash_floor="sha256", group_floor="ffdhe2048"
    )
    keys = []
    for name, secret in secrets.items():
        (file := tmp_path / name).touch(mode=0o600)
        file.write_text(secret)
        keys.append({"name": name, "path": str(file)})

    def config(host_key: str) -> Path:
        known = attachments(volume, dhchap_key=host_key, dhchap_ctrlr_key="controller")
        return configuration(
            tmp_path / f"{host_key}.json", ("keyring_file_add_key", keys), ("bdev_nvme_attach_controller", known)
        )

    async def scenario() -> None:
        # The list reaches the heads with their next view, within moments.
        async with asyncio.timeout(spdk.PROGRAM_SECONDS_MAX):
            while (found := await spdk.run("bdevperf", *bdevperf(config("host"), 1)))[0]:
                assert "unrecognized" not in found[1], found
        status, said = await spdk.run("bdevperf", *bdevperf(config("wrong"), 1))
        assert status != 0, said

    asyncio.run(scenario())
