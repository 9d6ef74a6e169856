"""The head's health and status pages."""

import asyncio
import json

import pytest
from kit.cluster import run

from head_node.cluster.status_server import REQUEST_BYTES_MAX, StatusServer, answer

STATUS = {
    "volumes": {"v1": {"epoch": 3, "serving": True, "name": "vol", "members_lag": {"h1": 2}}},
    "sleds": {"s1": {"reachable": False}}, "ready": True, "fences": [],
}  # fmt: skip


def page(path: str, ready: bool = True, method: str = "GET") -> tuple[int, str]:
    reply = answer(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), lambda: STATUS, lambda: ready)
    head, _, body = reply.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def test_alive_is_not_ready() -> None:
    assert page("/health", ready=False)[0] == 200
    assert page("/ready", ready=False)[0] == 503
    assert page("/ready")[0] == 200


def test_status_is_json() -> None:
    assert json.loads(page("/status?x=1")[1]) == STATUS


def test_metrics_name_volume_sled_and_head() -> None:
    lines = page("/metrics")[1].splitlines()
    assert 'palisade_head_volume_epoch{volume="v1"} 3' in lines
    assert 'palisade_head_volume_head{volume="v1",head="h1"} 2' in lines
    assert 'palisade_head_sled_reachable{sled="s1"} 0' in lines
    assert "palisade_head_ready 1" in lines


@pytest.mark.parametrize(("path", "method", "code"), [("/nothing", "GET", 404), ("/status", "POST", 405)])
def test_what_is_not_there_is_said(path: str, method: str, code: int) -> None:
    assert page(path, method=method)[0] == code


def test_garbage_is_no_request() -> None:
    assert answer(b"\x16\x03\x01 garbage\r\n\r\n", lambda: STATUS, lambda: True).startswith(b"HTTP/1.1 400")


def test_it_serves_over_a_socket_and_bounds_a_request() -> None:
    async def work() -> None:
        server = StatusServer(lambda: STATUS, lambda: True)
        address = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /health HTTP/1.1\r\n")
        writer.write(b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x" * (REQUEST_BYTES_MAX + 1))
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()
        await server.close()

    run(work())
