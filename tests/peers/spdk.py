"""SPDK's NVMe/TCP target over memory or a file, where SPDK is installed; without hugepages and PCI devices."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from kit.peers import require
from rackctl.ports import PortReservations

NSID: Final = 1
BLOCK_BYTES: Final = 4096
TRANSFER_BYTES_MAX: Final = 1 << 20  # like a sled's; without it 128 KiB
READY_SECONDS_MAX: Final = 60.0
MEMORY: Final = ("--no-huge", "-s", "512")


@dataclass(frozen=True, slots=True)
class Target:
    """A running `nvmf_tgt` with one subsystem."""

    nqn: str
    port: int
    process: asyncio.subprocess.Process
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


@asynccontextmanager
async def running() -> AsyncIterator[tuple["Rpc", asyncio.subprocess.Process]]:
    """SPDK's target without anything in it, and its control socket; skips where SPDK is not installed."""
    program = require("nvmf_tgt")
    with TemporaryDirectory(prefix="spdk-") as scratch:
        control, log = Path(scratch) / "rpc.sock", Path(scratch) / "log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                program, *MEMORY, "--no-pci", "-m", "0x1", "--disable-cpumask-locks", "-r", str(control),
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
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
    nqn: str, *, size_mib: int = 64, hosts: Sequence[str] = (), file: Path | None = None
) -> AsyncIterator[Target]:
    """A subsystem with one namespace of 4096-byte blocks, for `hosts` only or for anybody; skips without SPDK.

    The namespace is memory, or all of `file` by asynchronous I/O.
    """
    ports = PortReservations()
    try:
        async with running() as (rpc, process):
            port = ports.take()
            await rpc.call("nvmf_create_transport", trtype="TCP", max_io_size=TRANSFER_BYTES_MAX)
            if file is None:
                blocks = (size_mib << 20) // BLOCK_BYTES
                await rpc.call("bdev_malloc_create", name="drive", num_blocks=blocks, block_size=BLOCK_BYTES)
            else:
                await rpc.call("bdev_aio_create", name="drive", filename=str(file), block_size=BLOCK_BYTES)
            await rpc.call("nvmf_create_subsystem", nqn=nqn, allow_any_host=not hosts)
            for host in hosts:
                await rpc.call("nvmf_subsystem_add_host", nqn=nqn, host=host)
            await rpc.call("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": "drive", "nsid": NSID})
            address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
            await rpc.call("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)
            yield Target(nqn, port, process)
    finally:
        ports.release()


class Rpc:
    """Its control socket: JSON-RPC, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def call(self, method: str, **parameters: Any) -> Any:
        """The result; fails with what SPDK objects to."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        self._writer.write(json.dumps(request).encode())
        received = b""
        while True:
            part = await self._reader.read(65536)
            assert part, f"{method}: nvmf_tgt has ended"
            received += part
            try:
                answer = json.loads(received)
            except ValueError:
                continue  # not whole yet
            assert "error" not in answer, (method, answer["error"])
            return answer["result"]

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def _connected(control: Path, process: asyncio.subprocess.Process) -> Rpc:
    """Its control socket once it listens there; it says so nowhere, so it is tried again and again."""
    async with asyncio.timeout(READY_SECONDS_MAX):
        while True:
            if process.returncode is not None:
                raise ChildProcessError(f"nvmf_tgt has ended with status {process.returncode}")
            try:
                return Rpc(*await asyncio.open_unix_connection(control))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.05)
