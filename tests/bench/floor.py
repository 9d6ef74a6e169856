"""Two processes that only pass a block on and sync it: the floor below depth 1.

A client writes 4 KiB to one process, which sends it to a second; both write a batch of 8 KiB, as a log does, to a file
that was written before, with RWF_DSYNC, and the client is answered when both are done. No protocol, no checksum, no
MAC, no log: the event loop, the hops and the drive alone. A volume cannot be faster than this on the same machine.
"""

import asyncio
import multiprocessing
import os
import queue
import socket
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, cast

import uvloop
from bench.report import Table
from rackctl.ports import HOST

BLOCK_BYTES: Final = 4096
BATCH: Final = bytes(2 * BLOCK_BYTES)
"""MARK, record header and block, padded to whole blocks: what a single write is in the log."""
FILE_BYTES: Final = 64 << 20
ANSWER: Final = b"done"
WRITES: Final = 3000
START_SECONDS_MAX: Final = 30.0

Sync = Callable[[Callable[[], None]], None]
"""Writes a batch durably, then calls back on the loop."""


class _Peer(asyncio.BufferedProtocol):
    """Calls `heard` for each message of a fixed length."""

    def __init__(self, length: int, heard: Callable[[], None]) -> None:
        self.room = memoryview(bytearray(length))
        self.transport: asyncio.Transport
        self._heard = heard
        self._filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.room[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self.room):
            self._filled = 0
            self._heard()

    def eof_received(self) -> bool:
        return False


class _File:
    """The file of one process; `on_loop` syncs on the event loop, `in_thread` as a head does."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        for offset in range(0, FILE_BYTES, 1 << 20):
            os.pwrite(self._descriptor, bytes(1 << 20), offset)
        os.fsync(self._descriptor)
        self._offset = 0
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def _write(self) -> None:
        os.pwritev(self._descriptor, [BATCH], self._offset, os.RWF_DSYNC)
        self._offset = (self._offset + len(BATCH)) % FILE_BYTES

    def on_loop(self, done: Callable[[], None]) -> None:
        self._write()
        done()

    def in_thread(self, done: Callable[[], None]) -> None:
        self._jobs.put(done)

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """What the thread does."""
        while True:
            done = self._jobs.get()
            self._write()
            loop.call_soon_threadsafe(done)


def _serve(path: Path, threaded: bool, started: Connection, secondary_port: int) -> None:
    """A process: the primary of the one at `secondary_port`, the secondary itself where that is 0."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        file = _File(path)
        if threaded:
            threading.Thread(target=file.serve, args=(loop,), daemon=True).start()
        sync = file.in_thread if threaded else file.on_loop
        accept = await _primary(sync, secondary_port) if secondary_port else _secondary(sync)
        server = await loop.create_server(accept, HOST, 0)
        started.send(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()

    uvloop.run(run())


def _secondary(sync: Sync) -> Callable[[], _Peer]:
    def accept() -> _Peer:
        peer = _Peer(BLOCK_BYTES, lambda: sync(lambda: peer.transport.write(ANSWER)))
        return peer

    return accept


async def _primary(sync: Sync, secondary_port: int) -> Callable[[], _Peer]:
    loop = asyncio.get_running_loop()
    waiting: list[_Peer] = []
    halves = 0

    def half() -> None:
        nonlocal halves
        halves += 1
        if halves % 2 == 0:
            waiting.pop().transport.write(ANSWER)

    _, upstream = await loop.create_connection(lambda: _Peer(len(ANSWER), half), HOST, secondary_port)

    def accept() -> _Peer:
        def heard() -> None:
            waiting.append(client)
            upstream.transport.write(bytes(client.room))
            # The block is on its way before this process gives its time to the drive.
            loop.call_soon(sync, half)

        client = _Peer(BLOCK_BYTES, heard)
        return client

    return accept


def measure(folder: Path, threaded: bool, writes: int = WRITES) -> float:
    """Writes a second of a client that waits for each answer; files of 64 MiB go to `folder` and are removed."""
    context = multiprocessing.get_context("spawn")
    processes = []
    paths = [folder / name for name in ("floor-secondary", "floor-primary")]
    try:
        port = 0
        for path in paths:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(path, threaded, there, port), daemon=True)
            process.start()
            processes.append(process)
            if not here.poll(START_SECONDS_MAX):
                raise TimeoutError(f"the process behind {path.name} did not start")
            port = here.recv()
        return _timed_writes(port, writes)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for path in paths:
            path.unlink(missing_ok=True)


def _timed_writes(port: int, writes: int) -> float:
    block = bytes(BLOCK_BYTES)
    with socket.create_connection((HOST, port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        for _ in range(writes):
            client.sendall(block)
            if client.recv(len(ANSWER), socket.MSG_WAITALL) != ANSWER:
                raise ConnectionError("the primary of the floor closed the connection")
        return writes / (time.perf_counter() - begun)


def table(rounds: int, scratch: Path) -> Table:
    """What is left of a single write when the heads do nothing but pass it on and sync it."""
    rows = []
    for name, threaded in (("syncing in a thread, as heads do", True), ("syncing on the event loop", False)):
        figure = statistics.median(measure(scratch, threaded) for _ in range(rounds))
        rows.append((name, f"{figure:,.0f} IOPS"))
    return Table("The floor below single writes: two bare processes, both syncing", ("way", "median"), rows)
