"""SPDK's NVMe/TCP target over memory or a file, where SPDK is installed; without hugepages and PCI devices."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from kit.peers import require
from rackctl.ports import PortReservations
from spdk.rpc.client import JSONRPCClient, JSONRPCException

NSID: Final = 1
BLOCK_BYTES: Final = 4096
TRANSFER_BYTES_MAX: Final = 1 << 20  # like a sled's; without it 128 KiB
READY_SECONDS_MAX: Final = 60.0
ANSWER_SECONDS_MAX: Final = 60.0
MEMORY: Final = ("--no-huge", "-s", "512")
SHARED_CORE: Final = ("-m", "0x1", "--disable-cpumask-locks")  # there may be another one
PROGRAM_SECONDS_MAX: Final = 120.0
POLLS: Final = ("nice", "-n", "10")
"""SPDK's programs never sleep: others come first."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running `nvmf_tgt` with one subsystem."""

    nqn: str
    port: int
    process: asyncio.subprocess.Process
    rpc: "Rpc"
    transfer_blocks_max: int = TRANSFER_BYTES_MAX // BLOCK_BYTES

    async def end(self) -> None:
        """Kill it: connections end at once."""
        self.process.kill()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It stands still in the block; connections stay open."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    async def sha256(self, blocks: int) -> str | None:
        """Its drive can't be looked at but over the wire."""
        return None


async def start(program: str, *arguments: str | Path) -> asyncio.subprocess.Process:
    """One of SPDK's programs, for `finish`; skips where it is not installed."""
    return await asyncio.create_subprocess_exec(
        *POLLS, require(program), *map(str, arguments), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def finish(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Its end: the status, and what it has said that was not read yet."""
    try:
        async with asyncio.timeout(PROGRAM_SECONDS_MAX):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
    return process.returncode, said.decode(errors="replace")


async def run(program: str, *arguments: str | Path) -> tuple[int | None, str]:
    """Both."""
    return await finish(await start(program, *arguments))


@asynccontextmanager
async def running() -> AsyncIterator[tuple["Rpc", asyncio.subprocess.Process]]:
    """SPDK's target without anything in it, and its control socket; skips where SPDK is not installed."""
    program = require("nvmf_tgt")
    with TemporaryDirectory(prefix="spdk-") as scratch:
        control, log = Path(scratch) / "rpc.sock", Path(scratch) / "log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                program, *MEMORY, "--no-pci", *SHARED_CORE, "-r", str(control), stdin=asyncio.subprocess.DEVNULL,
                stdout=out, stderr=out,
            )  # fmt: skip
        try:
            try:
                rpc = await _connected(control, process)
            except (TimeoutError, ChildProcessError) as error:
                raise AssertionError(log.read_text(errors="replace")) from error
            yield rpc, process
            rpc.close()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def exported(
    nqn: str,
    *,
    size_mib: int = 64,
    hosts: Sequence[str] = (),
    file: Path | None = None,
    port: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> AsyncIterator[Target]:
    """A subsystem with one namespace, for `hosts` only or for anybody, at a free port or this one; skips without SPDK.

    The namespace is memory, or all of `file` by asynchronous I/O.
    """
    ports = PortReservations()
    try:
        async with running() as (rpc, process):
            port = port or ports.take()
            await rpc.call("nvmf_create_transport", trtype="TCP", max_io_size=TRANSFER_BYTES_MAX)
            if file is None:
                blocks = (size_mib << 20) // block_bytes
                await rpc.call("bdev_malloc_create", name="drive", num_blocks=blocks, block_size=block_bytes)
            else:
                await rpc.call("bdev_aio_create", name="drive", filename=str(file), block_size=block_bytes)
            await rpc.call("nvmf_create_subsystem", nqn=nqn, allow_any_host=not hosts)
            for host in hosts:
                await rpc.call("nvmf_subsystem_add_host", nqn=nqn, host=host)
            await rpc.call("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": "drive", "nsid": NSID})
            address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
            await rpc.call("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)
            yield Target(nqn, port, process, rpc)
    finally:
        ports.release()


class Rpc:
    """Its control socket, by SPDK's own client: JSON-RPC, one request at a time."""

    def __init__(self, client: JSONRPCClient) -> None:
        self._client = client

    async def call(self, method: str, **parameters: Any) -> Any:
        """The result; fails with what SPDK objects to. In a thread: SPDK may need this loop before it answers."""
        try:
            return await asyncio.to_thread(self._client.call, method, parameters)
        except JSONRPCException as error:
            raise AssertionError(error.message) from error

    def close(self) -> None:
        """Hang up."""
        self._client.close()


async def _connected(control: Path, process: asyncio.subprocess.Process) -> Rpc:
    """Its control socket once it listens there; it says so nowhere, so it is tried again and again."""
    async with asyncio.timeout(READY_SECONDS_MAX):
        while True:
            if process.returncode is not None:
                raise ChildProcessError(f"nvmf_tgt has ended with status {process.returncode}")
            try:
                return Rpc(JSONRPCClient(str(control), timeout=ANSWER_SECONDS_MAX))
            except JSONRPCException:
                await asyncio.sleep(0.05)
