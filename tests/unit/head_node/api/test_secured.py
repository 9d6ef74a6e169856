"""TLS in front of the REST interface among strangers who never finish a handshake."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from head_node.api import secured
from head_node.api.connections import BoundedConnection
from head_node.api.secured import SecuredListener
from head_node.authority import tls
from head_node.authority.certificates import ServerCertificate
from head_node.authority.main import Server, listen
from sled_controller.environment import Environment, SystemClock
from sled_controller.turns import Turns


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    body = str(scope["scheme"]).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[int]:
    """An authority's listener over a small application; its port."""
    certificate = ServerCertificate(folder, Environment(), ["127.0.0.1"], None)
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        application, loop="none", http=BoundedConnection, ws="none", lifespan="off", log_config=None,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    config.load()
    server = Server(config)

    turns = Turns(SystemClock())

    def connection() -> BoundedConnection:
        return BoundedConnection(config=config, server_state=server.server_state, app_state={}, turns=turns)

    accepting = asyncio.create_task(SecuredListener(listener, certificate.context, connection).run())
    task = asyncio.create_task(server.serve([]))
    try:
        yield listener.getsockname()[1]
    finally:
        accepting.cancel()
        server.should_exit = True
        await asyncio.gather(accepting, task, return_exceptions=True)
        listener.close()


async def ask(folder: Path, port: int) -> str:
    async with httpx.AsyncClient(verify=tls.operator_context(folder / tls.CA_FILE), trust_env=False) as http:
        return (await http.get(f"https://127.0.0.1:{port}/")).text


async def closed(reader: asyncio.StreamReader) -> None:
    """Until the other side has ended it."""
    try:
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass


def test_handshakes_that_never_end_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(secured, "HANDSHAKES_MAX", 3)

    async def scenario() -> None:
        async with serving(tmp_path) as port:
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
            for reader, _ in silent[:4]:
                await closed(reader)  # the oldest are the first to go
            assert await ask(tmp_path, port) == "https"
            for _, writer in silent:
                writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert "event=connection_refused" in caplog.text


def test_a_handshake_has_an_end_and_what_is_no_tls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secured, "HANDSHAKE_SECONDS_MAX", 0.2)

    async def scenario() -> None:
        async with serving(tmp_path) as port:
            for sent in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(2000)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                await closed(reader)
                writer.close()
            assert await ask(tmp_path, port) == "https"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_handshakes_of_one_source_cost_no_other_source_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secured, "HANDSHAKES_MAX", 3)

    async def work() -> None:
        async with serving(tmp_path) as port:
            slow, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
            await asyncio.gather(*(closed(reader) for reader, _ in strangers[:6]))
            assert not slow.at_eof()
            await writer.start_tls(tls.operator_context(tmp_path / tls.CA_FILE), server_hostname="127.0.0.1")
            for _, other in (*strangers, (slow, writer)):
                other.close()

    asyncio.run(asyncio.wait_for(work(), 20))
