"""Connections of the REST interface whose clients do not read what they asked for."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from head_node.api import connections
from head_node.api.connections import BoundedConnection
from head_node.authority.main import Server, listen
from sled_controller import turns
from sled_controller.environment import SystemClock
from sled_controller.turns import Turns

LONG = 64 << 20
"""More than a kernel buffers for a client that reads nothing."""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in one piece: /long, or a word; who says so is authenticated."""
    if scope["path"] == "/authenticated":
        scope["state"]["authenticated"] = True
    body = bytes(LONG) if scope["path"] == "/long" else b"short"
    headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"keep-alive")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    """A server with bounded connections; its address."""
    listener = listen("127.0.0.1", 0)
    bounded = cast(type[BoundedConnection], partial(BoundedConnection, turns=Turns(SystemClock())))
    config = uvicorn.Config(
        application, loop="none", http=bounded, ws="none", lifespan="off", log_config=None,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[:2]
    finally:
        server.should_exit = True
        await task


async def ask(address: tuple[str, int], path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address, limit=1024)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return reader, writer


async def read_to_end(reader: asyncio.StreamReader) -> int:
    count = 0
    try:
        while piece := await reader.read(1 << 20):
            count += len(piece)
    except ConnectionError:
        pass
    return count


def test_a_client_that_leaves_its_reply_unread_has_to_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(connections, "REPLY_SECONDS_MAX", 0.05)
    before = BoundedConnection.timed_out_total

    async def scenario() -> None:
        async with serving() as address:
            reader, writer = await ask(address, "/long")
            while BoundedConnection.timed_out_total == before:  # noqa: ASYNC110 - bounded by the test's time-out
                await asyncio.sleep(0)
            assert await read_to_end(reader) < LONG
            writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert "event=reply_timeout" in caplog.text


def test_clients_that_read_nothing_make_room_for_one_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 3)

    async def scenario() -> None:
        async with serving() as address:
            silent = [await ask(address, "/long") for _ in range(3)]
            for reader, _ in silent:
                await reader.readexactly(100)
            reader, writer = await ask(address, "/short")
            assert (await reader.readuntil(b"short")).startswith(b"HTTP/1.1 200")
            assert await read_to_end(silent[0][0]) < LONG - 100
            for _, other in (*silent, (reader, writer)):
                other.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_client_that_reads_slowly_gets_all_of_its_reply() -> None:
    async def scenario() -> None:
        async with serving() as address:
            reader, writer = await ask(address, "/long")
            await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(LONG)) == LONG
            writer.write(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"short")
            writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


async def words(reader: asyncio.StreamReader, count: int) -> None:
    for _ in range(count):
        await reader.readuntil(b"short")


def test_requests_of_strangers_are_taken_in_a_share_of_the_time_and_others_are_not() -> None:
    """A connection is a stranger's until one of its requests was authenticated."""

    async def work() -> None:
        async with serving() as address:
            loop = asyncio.get_running_loop()
            known, writer = await ask(address, "/authenticated")
            await words(known, 1)
            strangers = [await ask(address, "/") for _ in range(20)]
            for _, other in strangers:
                other.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            begun = loop.time()
            taken = [asyncio.create_task(words(reader, 51)) for reader, _ in strangers]
            for _ in range(50):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await words(known, 1)
            assert not all(task.done() for task in taken), "they are still waited for"
            await asyncio.gather(*taken)
            least = (20 * 51 * connections.REQUEST_NS - turns.BURST_NS) * 100 / turns.STRANGER_PERCENT
            assert loop.time() - begun >= least / 1e9 / 2
            for _, other in (*strangers, (known, writer)):
                other.close()

    asyncio.run(asyncio.wait_for(work(), 30))
