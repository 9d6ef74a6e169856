"""Real NBD clients against the NBD server over a volume in memory: served directly, and through the relay."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kit.export import VOLUME_ID, MemoryDirectory, MemoryVolume, link_pair, one_volume
from rackctl import peer_programs

from head_node.export.interface import LocalExport, RelayTransport, RemoteExport
from head_node.export.server import NbdServer
from sled_controller.environment import Environment

SIZE = 64 << 20


class Peers:
    """A server and a way to run programs against it."""

    def __init__(self, volume: MemoryVolume, server: NbdServer, address: tuple[str, int]) -> None:
        self.volume = volume
        self.server = server
        self.uri = f"nbd://{address[0]}:{address[1]}/vol"

    async def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program to its end; its output when it succeeds."""
        process = await asyncio.create_subprocess_exec(
            peer_programs.find(program) or program,
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode(errors="replace")
        assert process.returncode == 0, f"{program} {arguments}: {output}"
        return output


@asynccontextmanager
async def directly() -> AsyncIterator[Peers]:
    volume = MemoryVolume(SIZE)
    server = NbdServer(one_volume(volume), Environment())
    try:
        yield Peers(volume, server, await server.start("127.0.0.1", 0))
    finally:
        await server.close()


@asynccontextmanager
async def relayed() -> AsyncIterator[Peers]:
    volume = MemoryVolume(SIZE)
    primary = NbdServer(one_volume(volume), Environment())

    async def dial() -> RelayTransport:
        near, far = link_pair()
        primary.accept_relay(far, LocalExport(VOLUME_ID, volume))
        return near

    head = NbdServer(MemoryDirectory({"vol": RemoteExport(VOLUME_ID, SIZE, dial)}), Environment())
    try:
        yield Peers(volume, head, await head.start("127.0.0.1", 0))
        assert head.counters.relays_dialled
    finally:
        await head.close()
        await primary.close()


Way = Callable[[], Any]
both_ways = pytest.mark.parametrize("way", [directly, relayed])


def play(way: Way, scenario: Callable[[Peers], Coroutine[Any, Any, None]], *programs: str) -> None:
    """Run a scenario within a minute, or skip it, naming the package that holds what is missing."""
    for program in programs:
        if peer_programs.find(program) is None:
            pytest.skip(peer_programs.missing(program))

    async def whole() -> None:
        async with way() as peers:
            await scenario(peers)
            assert peers.server.counters.internal_errors == 0
            assert peers.server.counters.garbage == 0

    asyncio.run(asyncio.wait_for(whole(), 60))


def pattern(size_bytes: int) -> bytes:
    """Data with holes, so that hole chunks and block status take part."""
    piece = 128 * 1024
    return b"".join(bytes((n % 255 + 1,)) * piece if n % 3 else bytes(piece) for n in range(size_bytes // piece))


@both_ways
def test_nbdinfo_shows_the_export(way: Way) -> None:
    async def scenario(peers: Peers) -> None:
        said = await peers.run("nbdinfo", peers.uri)
        for line in (
            f"export-size: {SIZE}",
            "base:allocation",
            "can_df: true",
            "can_fast_zero: true",
            "can_flush: true",
            "can_fua: true",
            "can_multi_conn: true",
            "can_trim: true",
            "can_zero: true",
            "is_read_only: false",
            "block_size_minimum: 4096",
            "block_size_maximum: 33554432",
        ):
            assert line in said
        assert 'export="vol"' in await peers.run("nbdinfo", "--list", peers.uri.removesuffix("vol"))
        assert "hole,zero" in await peers.run("nbdinfo", "--map", peers.uri)

    play(way, scenario, "nbdinfo")


@both_ways
def test_nbdcopy_in_and_out_compares(way: Way, tmp_path: Path) -> None:
    async def scenario(peers: Peers) -> None:
        source, result = tmp_path / "in.img", tmp_path / "out.img"
        source.write_bytes(pattern(SIZE))
        await peers.run("nbdcopy", source, peers.uri)
        assert peers.volume.data == source.read_bytes()
        await peers.run("nbdcopy", peers.uri, result)
        assert result.read_bytes() == source.read_bytes()
        assert sum(peers.volume.allocated) < SIZE // 4096

    play(way, scenario, "nbdcopy")


@both_ways
def test_qemu_img_converts_and_compares(way: Way, tmp_path: Path) -> None:
    async def scenario(peers: Peers) -> None:
        source, result = tmp_path / "in.img", tmp_path / "out.qcow2"
        source.write_bytes(pattern(SIZE))
        await peers.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, peers.uri)
        assert "identical" in await peers.run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, peers.uri)
        await peers.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", peers.uri, result)
        assert "identical" in await peers.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", result, peers.uri)
        assert '"zero": true' in await peers.run("qemu-img", "map", "--output=json", "-f", "raw", peers.uri)

    play(way, scenario, "qemu-img")


@both_ways
def test_qemu_io_patterns(way: Way) -> None:
    async def scenario(peers: Peers) -> None:
        commands = (
            "write -P 0xaa 64k 256k",
            "discard 128k 32k",
            "write -z 96k 8k",
            "write -z -u 104k 8k",
            "write -f -P 0xbb 1M 2M",
            "write -P 0xcc 5000 1000",  # qemu reads, changes and writes whole blocks: it was told their size
            "flush",
            "read -P 0xaa 64k 32k",
            "read -P 0 96k 16k",
            "read -P 0 128k 32k",
            "read -P 0xbb 1M 2M",
            "read -P 0xcc 5000 1000",
            "read -P 0 4096 904",
        )
        said = await peers.run("qemu-io", "-f", "raw", *(part for c in commands for part in ("-c", c)), peers.uri)
        assert "verification failed" not in said.lower()
        assert said.count("read ") == 6
        assert peers.server.counters.requests_rejected == 0

    play(way, scenario, "qemu-io")


@both_ways
@pytest.mark.parametrize(
    ("block", "size"), [("4k", "8M"), ("1M", "32M"), ("4k-1M", "32M")], ids=["4 KiB", "1 MiB", "mixed"]
)
def test_fio_verifies(way: Way, block: str, size: str, tmp_path: Path) -> None:
    async def scenario(peers: Peers) -> None:
        sizes = f"--bsrange={block}" if "-" in block else f"--bs={block}"
        said = await peers.run(
            "fio",
            "--name=verify",
            "--ioengine=nbd",
            f"--uri={peers.uri}",
            "--rw=randwrite",
            sizes,
            "--blockalign=4k",
            "--iodepth=32",
            f"--size={size}",
            "--verify=crc32c",
            "--verify_fatal=1",
            f"--aux-path={tmp_path}",
        )
        assert "err= 0" in said

    play(way, scenario, "fio")


@both_ways
def test_a_file_system_survives_the_way_in(way: Way, tmp_path: Path) -> None:
    async def scenario(peers: Peers) -> None:
        image, copy = tmp_path / "fs.img", tmp_path / "copy.img"
        image.write_bytes(b"")
        with image.open("r+b") as file:
            file.truncate(SIZE)
        await peers.run("mkfs.ext4", "-q", "-F", image)
        await peers.run("nbdcopy", image, peers.uri)
        await peers.run("nbdcopy", peers.uri, copy)
        await peers.run("e2fsck", "-f", "-n", copy)

    play(way, scenario, "mkfs.ext4", "e2fsck", "nbdcopy")
