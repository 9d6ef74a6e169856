"""NBD and peer ports of real heads among clients that break every rule, while a verified writer goes on."""

import asyncio
import errno
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from kit.pressure import eventually
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.rack import Rack

Tell = Callable[[Coroutine[Any, Any, None]], None]
REQUEST = struct.Struct(">IHHQQI")
OPTION = struct.Struct(">8sII")
SIZE = 64 << 20
READ, WRITE, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 3, 4, 6, 7


class Client:
    """A transmission with simple replies."""

    def __init__(self, port: int, export: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        assert self.exactly(18).startswith(b"NBDMAGICIHAVEOPT")
        name = export.encode()
        option = OPTION.pack(b"IHAVEOPT", 7, 4 + len(name) + 2) + struct.pack(">I", len(name)) + name + bytes(2)
        self.socket.sendall(struct.pack(">I", 3) + option)
        kind = 0
        while kind != 1:
            _, _, kind, length = struct.unpack(">QIII", self.exactly(20))
            self.exactly(length)

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    def ask(self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> int:
        self.socket.sendall(REQUEST.pack(0x25609513, flags, command, 7, offset, length) + data)
        magic, error, cookie = struct.unpack(">IIQ", self.exactly(16))
        assert (magic, cookie) == (0x67446698, 7)
        return int(error)


REFUSED = {
    "a write off the blocks": ((WRITE, 1, 4096, b"x" * 4096), errno.EINVAL),
    "a write of a byte": ((WRITE, 0, 1, b"x"), errno.EINVAL),
    "a write over the end": ((WRITE, SIZE - 4096, 8192, b"x" * 8192), errno.ENOSPC),
    "a write at 2^64": ((WRITE, 2**64 - 4096, 4096, b"x" * 4096), errno.ENOSPC),
    "a read over the end": ((READ, SIZE, 4096), errno.EINVAL),
    "a read of 4 GiB": ((READ, 0, 2**32 - 4096), errno.EOVERFLOW),
    "a trim over the end": ((TRIM, SIZE - 4096, 1 << 30), errno.EINVAL),
    "zeroes over the end": ((ZEROES, 0, 2**32 - 4096), errno.ENOSPC),
    "an unknown command": ((99, 0, 0), errno.EINVAL),
    "a block status nobody negotiated": ((STATUS, 0, 4096), errno.EINVAL),
    "unknown flags": ((READ, 0, 4096, b"", 0xFFFF), errno.EINVAL),
}


def port_of(rack: Rack, head: str, service: str = "nbd") -> int:
    return rack.node(head).ports[service]


@pytest.mark.parametrize("relayed", [False, True])
def test_a_request_that_cannot_be_is_refused_and_the_connection_goes_on(volume: Volume, relayed: bool) -> None:
    client = Client(port_of(volume.rack, volume.secondary if relayed else volume.primary), volume.name)
    for what, (request, error) in REFUSED.items():
        assert client.ask(*request) == error, what
        assert client.ask(FLUSH, 0, 0) == 0, what
    assert client.ask(READ, SIZE - 4096, 4096) == 0
    assert client.exactly(4096) == bytes(4096)


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("goodbye", [False, True])
def test_a_client_that_closes_its_side_gets_its_answers_and_an_orderly_end(
    volume: Volume, relayed: bool, goodbye: bool
) -> None:
    client = Client(port_of(volume.rack, volume.secondary if relayed else volume.primary), volume.name)
    writes = b"".join(
        REQUEST.pack(0x25609513, 0, WRITE, at, at * 4096, 4096) + bytes([at + 1]) * 4096 for at in range(60)
    )
    client.socket.sendall(writes + (REQUEST.pack(0x25609513, 0, 2, 99, 0, 0) if goodbye else b""))
    client.socket.shutdown(socket.SHUT_WR)
    answers = client.exactly(60 * 16)
    assert {struct.unpack_from(">IIQ", answers, at)[:2] for at in range(0, len(answers), 16)} == {(0x67446698, 0)}
    assert client.socket.recv(1) == b"", "an orderly end"
    again = Client(port_of(volume.rack, volume.primary), volume.name)
    assert again.ask(READ, 0, 60 * 4096) == 0
    assert again.exactly(60 * 4096) == b"".join(bytes([at + 1]) * 4096 for at in range(60))
    assert again.ask(TRIM, 512, 3 * 4096) == 0, "a hint of any alignment succeeds"
    assert again.ask(READ, 0, 5 * 4096) == 0
    assert again.exactly(5 * 4096) == b"\1" * 4096 + bytes(2 * 4096) + b"\4" * 4096 + b"\5" * 4096


@pytest.mark.parametrize("relayed", [False, True])
def test_what_was_sent_before_a_disconnect_is_done_though_the_client_closes_at_once(
    volume: Volume, relayed: bool
) -> None:
    client = Client(port_of(volume.rack, volume.secondary if relayed else volume.primary), volume.name)
    writes = b"".join(REQUEST.pack(0x25609513, 0, WRITE, at, at * 4096, 4096) + b"w" * 4096 for at in range(40))
    client.socket.sendall(writes + REQUEST.pack(0x25609513, 0, 2, 99, 0, 0))
    client.socket.close()
    again = Client(port_of(volume.rack, volume.primary), volume.name)

    def all_there() -> bool:
        assert again.ask(READ, 0, 40 * 4096) == 0
        return again.exactly(40 * 4096) == b"w" * 40 * 4096

    eventually(all_there, lambda: "not all was written")


def poke(port: int, data: bytes) -> None:
    """Send, close the write side, and wait until the head ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        try:
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(65536):
                pass
        except OSError:
            pass


def garbage_everywhere(rack: Rack, volume: Volume) -> None:
    chance = random.Random(3)
    for head in ("head-0", "head-1"):
        for service in ("nbd", "peer", "api"):
            for data in (
                b"",
                b"\0",
                bytes(65536),
                b"\xff" * 4096,
                b"GET / HTTP/1.1\r\n\r\n",
                chance.randbytes(1 << 18),
            ):
                poke(port_of(rack, head, service), data)
        for broken in (chance.randbytes(5000), REQUEST.pack(0x12345678, 0, 0, 1, 0, 4096)):
            client = Client(port_of(rack, head), volume.name)
            client.socket.sendall(broken)
            with pytest.raises(ConnectionError):
                client.exactly(1)
        for part in (
            REQUEST.pack(0x25609513, 0, WRITE, 1, 0, 8192)[:13],
            REQUEST.pack(0x25609513, 0, WRITE, 1, 0, 8192) + b"q" * 5000,
        ):
            client = Client(port_of(rack, head), volume.name)
            client.socket.sendall(part)
            client.socket.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionError):
                client.exactly(1)


def flood_of_reads(rack: Rack, volume: Volume) -> None:
    """Megabytes of scattered blocks from several clients at once, answers to some of them never read."""
    clients = [Client(port_of(rack, volume.primary), volume.name) for _ in range(4)]
    for number, client in enumerate(clients):
        client.socket.sendall(b"".join(REQUEST.pack(0x25609513, 0, READ, at, at << 20, 1 << 20) for at in range(12)))
        if number % 2:
            for _ in range(12):
                magic, error, _ = struct.unpack(">IIQ", client.exactly(16))
                assert (magic, error) == (0x67446698, 0)
                client.exactly(1 << 20)
    for client in clients:
        client.socket.close()


@pytest.mark.parametrize("attack", [garbage_everywhere, flood_of_reads])
def test_strangers_cost_nobody_else_anything(
    volume: Volume, tell: Tell, attack: Callable[[Rack, Volume], None]
) -> None:
    async def story() -> None:
        rack = volume.rack
        async with writing(volume) as writer:
            await writer.wait_acknowledged(4000)
            await asyncio.to_thread(attack, rack, volume)
            await writer.wait_acknowledged(500)
            roles = await asyncio.to_thread(rack.roles, volume.name)
            assert (roles.epoch, len(roles.secondaries)) == (volume.roles.epoch, 1), "no failover, no member lost"
            await assert_nothing_lost(writer)
        for head in ("head-0", "head-1"):
            log = rack.layout.log(rack.node(head)).read_text(encoding="utf-8", errors="replace")
            assert "Traceback" not in log
            assert "never retrieved" not in log
            assert "internal_error" not in log

    tell(story())
