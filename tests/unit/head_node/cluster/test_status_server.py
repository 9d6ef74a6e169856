"""The head's health and status pages."""

import asyncio
import json
import logging
from typing import Any

import pytest
from kit.cluster import run, until
from kit.turns import PerTurn

from head_node.cluster.status_server import CONNECTIONS_MAX, REQUEST_BYTES_MAX, StatusServer, answer

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


GARBAGE = (b"\x16\x03\x01\r\n\r\n", b"GET /nothing HTTP/1.1\r\n\r\n", b"x" * (REQUEST_BYTES_MAX + 1), b"half a requ")


def test_garbage_is_counted_and_told_of_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("head_node.bursts.BURST_SECONDS", 3600.0)

    async def work() -> None:
        server = StatusServer(lambda: STATUS, lambda: True)
        address = await server.start("127.0.0.1", 0)
        for data in GARBAGE * 5:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(data)
            writer.write_eof()
            await reader.read()
            writer.close()
        counted = server.status()["status_port"]
        assert (counted["malformed"], counted["timed_out"], counted["refused"]) == (20, 0, 0)
        await server.close()

    run(work())
    assert [record.getMessage() for record in caplog.records if "status_" in record.getMessage()] == [
        "event=status_requests_refused count=20 reason=malformed"
    ]


def test_whoever_asks_nothing_makes_room_and_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = StatusServer(lambda: STATUS, lambda: True)
        address = await server.start("127.0.0.1", 0)
        silent = [await asyncio.open_connection(*address) for _ in range(CONNECTIONS_MAX + 10)]
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /health HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert await silent[0][0].read() == b""
        assert server.status()["status_port"]["refused"] == 11
        for _, other in (*silent, (reader, writer)):
            other.close()
        await server.close()
        monkeypatch.setattr("head_node.cluster.status_server.REQUEST_SECONDS_MAX", 0.01)
        server = StatusServer(lambda: STATUS, lambda: True)
        reader, writer = await asyncio.open_connection(*await server.start("127.0.0.1", 0))
        assert await reader.read() == b""
        assert server.status()["status_port"]["timed_out"] == 1
        writer.close()
        await server.close()

    run(work())


class SlowPages:
    """A head whose status takes a tenth of a second, by a clock that stands still otherwise."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.made = 0

    def boottime_ns(self) -> int:
        return self.now_ns

    def wall_ms(self) -> int:
        return 0

    def status(self) -> dict[str, Any]:
        self.made += 1
        self.now_ns += 100_000_000
        return STATUS


@pytest.mark.parametrize("path", ["/status", "/metrics"])
def test_a_page_that_took_long_is_given_out_again_so_that_asking_costs_no_time(path: str) -> None:
    """Of a piece of a stranger 5 ms count: pages of a tenth of a second, made for each request, took most of a loop."""

    async def work() -> None:
        head = SlowPages()
        server = StatusServer(head.status, lambda: True, clock=head)
        assert server.answer(f"GET {path} HTCPCP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
        for number in range(100):
            assert server.answer(f"GET {path}?{number} HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 200")
        assert head.made == 1
        assert server.answer(f"GET {path} FTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
        assert server.answer(f"POST {path} HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 405")
        head.now_ns += 1_000_000_000
        server.answer(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        assert head.made == 2

    run(work())


def test_pages_wait_when_the_strangers_share_of_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a head with many volumes takes a while, and anybody may ask."""

    async def work() -> None:
        server = StatusServer(lambda: STATUS, lambda: True)
        address = await server.start("127.0.0.1", 0)
        turn = PerTurn()
        monkeypatch.setattr(
            "head_node.cluster.status_server.answer", turn.counted(lambda *_: b"HTTP/1.1 200 OK\r\n\r\n")
        )
        server.turns._strangers.percent = 1
        server.turns._strangers.spend(1_000_000_000)
        writers = []
        for _ in range(CONNECTIONS_MAX):
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /status HTTP/1.1\r\n\r\n")
            writers.append(writer)
        await until(lambda: server.turns.waits_total >= CONNECTIONS_MAX)
        assert turn.total == 0
        turn.close()
        for writer in writers:
            writer.close()
        await server.close()

    run(work())
