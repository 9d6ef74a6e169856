"""Links between nodes where the machine permits no namespaces: every connection to a node goes through a proxy of ours.

Nodes listen on loopback as always, and are made known to each other at an address of the proxy. Which node has made a
connection the kernel tells: the socket's inode among those that the node's process holds (proc(5)). Bytes that are not
to arrive stay where they are, as they would in a sender's retransmission queue, and arrive when the link is mended.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rackctl.ports import HOST
from rackctl.processes import ProcessIdentity

T = TypeVar("T")

CHUNK_BYTES: Final = 256 << 10
START_SECONDS_MAX: Final = 10.0
NETWORK: Final = "004D7F"
"""How 127.77.0.x ends in /proc/net/tcp on a little-endian machine."""
NOBODY: Final = ""
"""Who connects when it is no node: clients, whose links are never cut."""


@dataclass(slots=True)
class _Cut:
    """One direction that is cut; `mended` is set when it is not any more."""

    mended: asyncio.Event
    silently: bool


class Switchboard:
    """The proxies of all nodes, on a loop in a thread of their own."""

    def __init__(self, names: Mapping[str, int], processes: Callable[[], Mapping[str, ProcessIdentity]]) -> None:
        """`names` gives each node a number from 1 to 250; `processes` says which runs for which node now."""
        self._numbers = dict(names)
        self._processes = processes
        self._cuts: dict[tuple[str, str], _Cut] = {}
        self._pipes: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="switchboard", daemon=True)
        self._thread.start()

    def address(self, name: str) -> str:
        """Where other nodes find `name`."""
        return f"127.77.0.{self._numbers[name]}"

    def listen(self, name: str, port: int) -> None:
        """Pass what comes to a port of a node on to the node. Raises OSError."""
        self._await(self._listen(name, port))

    def cut(self, source: str, target: str, *, silently: bool = True) -> None:
        """Let nothing that `source` sends reach `target`; if not silently, new connections are refused."""
        self._loop.call_soon_threadsafe(
            self._cuts.__setitem__, (source, target), _Cut(asyncio.Event(), silently)
        )  # fmt: skip

    def heal(self, source: str, target: str) -> None:
        """Undo one `cut`."""
        self._loop.call_soon_threadsafe(self._mend, source, target)

    def close(self) -> None:
        """End every connection and the thread. Safe to call again."""
        if not self._loop.is_closed():
            self._await(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_SECONDS_MAX)
            self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS_MAX)

    def _mend(self, source: str, target: str) -> None:
        self._cuts.pop((source, target)).mended.set()

    async def _listen(self, name: str, port: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)
            try:
                await self._join(name, port, reader, writer)
            except (OSError, EOFError, asyncio.CancelledError):
                pass  # cancelled by `_end` only, and asyncio's streams complain of what is cancelled
            finally:
                writer.transport.abort()

        self._servers.append(await asyncio.start_server(connected, self.address(name), port, limit=CHUNK_BYTES))

    async def _join(
        self, target: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        source = owner(writer.get_extra_info("peername")[1], self._processes())
        for ways in ((source, target), (target, source)):
            # A handshake needs both ways.
            if (cut := self._cuts.get(ways)) is not None:
                if not cut.silently:
                    return
                await cut.mended.wait()
        there_reader, there_writer = await asyncio.open_connection(HOST, port, limit=CHUNK_BYTES)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(source, target, reader, there_writer))
                group.create_task(self._pass(target, source, there_reader, writer))
        except* (OSError, EOFError):
            pass
        finally:
            there_writer.transport.abort()

    async def _pass(
        self, source: str, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        while True:
            data = await reader.read(CHUNK_BYTES)
            while (cut := self._cuts.get((source, target))) is not None:
                await cut.mended.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)


def owner(port: int, processes: Mapping[str, ProcessIdentity]) -> str:
    """The node whose process holds the socket that has connected from this port of loopback, NOBODY if none does."""
    inode = _inode(port)
    if inode is None:
        return NOBODY
    wanted = f"socket:[{inode}]"
    for name, process in processes.items():
        folder = Path(f"/proc/{process.pid}/fd")
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(folder):
                with contextlib.suppress(OSError):
                    if os.readlink(folder / descriptor) == wanted:
                        return name
    return NOBODY


def _inode(port: int) -> str | None:
    """Of the socket whose own address is that port of loopback and which is connected to an address of ours."""
    own = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1] == own and fields[2][2:8] == NETWORK:
            return fields[9]
    return None
