"""Every port of a rack among clients that flood, dawdle, half-close and never read, while a verified writer goes on.

The bounds are those of docs/threat-model.md, "What one connection may cost".
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from kit.bounds import documented
from kit.nvme_host import standard
from kit.pressure import Crowd, Footprint, crowd, eventually
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.rack import Rack
from rackctl.verified_writer import VerifiedWriter

from head_node.api.wrapping import BODY_BYTES_MAX
from head_node.export.nvme.commands import LIMITS as NVME
from head_node.volume.interface import BLOCK_BYTES
from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.standard_controller import LOG_BYTES_MAX
from spdk_bindings.nvme import (
    CC_ENABLE,
    CONTROLLER_ID_DYNAMIC,
    AdminOpcode,
    FabricsType,
    IoOpcode,
    LogPage,
    Property,
)

Tell = Callable[[Coroutine[Any, Any, None]], None]
REQUEST = struct.Struct(">IHHQQI")
READ, WRITE, LARGE = 0, 1, 32 << 20
SLACK_BYTES = 48 << 20
"""For what the process does besides: the writer's log and overlay grow, the allocator keeps some of what was freed."""
ATTACK_SECONDS = 5.0
PAYLOADS = 20
"""Unbounded, so many payloads of nearly 32 MiB would take more than the bound and the slack."""


def nbd(gathered: Crowd, volume: Volume) -> None:
    """Readers that never read, payloads that never come, negotiations that go nowhere, and ends by halves."""
    name = volume.name.encode()
    go = struct.pack(">I8sIII", 3, b"IHAVEOPT", 7, 6 + len(name), len(name)) + name + bytes(2)
    request = REQUEST.pack
    for number in range(20):
        reads = b"".join(request(0x25609513, 0, READ, at, 0, LARGE) for at in range(4))
        small = b"".join(request(0x25609513, 0, READ, at, 0, 4096) for at in range(4000))
        gathered.join(go, (reads, small, request(0x25609513, 0, WRITE, 1, 32 << 20, 65536) + bytes(9))[number % 3])
    for _ in range(PAYLOADS):
        gathered.press(gathered.join(go, request(0x25609513, 0, WRITE, 1, 32 << 20, LARGE)), bytes(LARGE - 4096))
    for _ in range(100):
        gathered.join(go[:9])
    for _ in range(20):
        gathered.half_close(go)


def status(gathered: Crowd, volume: Volume) -> None:
    for number in range(200):
        gathered.join((b"G", b"GET /metrics HTTP/1.1\r\n", b"GET /status HTTP/1.1\r\n\r\n" * 300)[number % 3])
    for _ in range(50):
        gathered.half_close(b"GET /health")


def peer(gathered: Crowd, volume: Volume) -> None:
    for number in range(200):
        gathered.join((b"P", bytes(1 << 18), b"\xff" * 4096)[number % 3])
    for _ in range(50):
        gathered.half_close(b"PALISADE")


def api(gathered: Crowd, volume: Volume) -> None:
    """Among others: replies that are never read, and bodies whose JSON takes far more than its text."""
    post = b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    maps = b"[" + b"{}," * 20_000 + b"{}]"
    for _ in range(100):
        gathered.join(b"G")
        gathered.join(post % BODY_BYTES_MAX, b"[" + b"{}," * 340_000)
        gathered.join(post % len(maps), maps)
        gathered.half_close(b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\n")
    for _ in range(30):
        gathered.join(b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)


def volumes(gathered: Crowd, volume: Volume) -> None:
    """Hosts of a volume that admits any: they ask for data and do not take it, offer some and do not send it."""
    nqn = volume.rack.paths(volume.name).nqn
    blocks = NVME.transfer_bytes_max // BLOCK_BYTES
    reads = [command(standard(IoOpcode.READ, 1, cdw12=blocks - 1), cid, NVME.transfer_bytes_max) for cid in range(100)]
    writes = [command(standard(IoOpcode.WRITE, 1, cdw12=blocks - 1), cid, NVME.transfer_bytes_max) for cid in range(99)]
    enable = command(vendor.property_set(Property.CC, CC_ENABLE), 0)
    for _ in range(40):
        admin = gathered.join(hello(nqn))
        greeting = taken(admin, pdu.IC_BYTES + pdu.CAPSULE_RESP_BYTES)
        controller = pdu.CQE.unpack(greeting[-pdu.CQE.size :])[0] & 0xFFFF
        gathered.push(admin, enable)
        taken(admin, pdu.CAPSULE_RESP_BYTES)
        for queue in range(1, 5):
            gathered.join(hello(nqn, controller, queue), *(reads, writes)[queue % 2])
    for number in range(60):
        gathered.join((hello(nqn), b"\0", bytes(pdu.ic_req(0)))[number % 3])
    for _ in range(50):
        gathered.half_close(hello(nqn))


def taken(stranger: socket.socket, count: int) -> bytes:
    """So many bytes of what it is sent, or less when that is the end."""
    stranger.settimeout(10)
    data = stranger.recv(count, socket.MSG_WAITALL)
    stranger.setblocking(False)
    return data


def hello(nqn: str, controller: int = CONTROLLER_ID_DYNAMIC, queue: int = 0) -> bytes:
    """ICReq and Connect, as anybody can send them."""
    data = pdu.CONNECT_DATA.pack(bytes(16), controller, nqn.encode(), b"nqn.2014-08.org.nvmexpress:any")
    connect = pdu.CONNECT_SQE.pack(
        AdminOpcode.FABRICS, pdu.PSDT_SGL, 0, FabricsType.CONNECT, 0, len(data), pdu.SGL_IN_CAPSULE,
        0, queue, 127, 0, 0 if queue else 60_000,
    )  # fmt: skip
    return bytes(pdu.ic_req(0)) + b"".join(map(bytes, pdu.capsule_cmd(bytearray(connect), (data,))))


def command(sqe: bytearray, cid: int, length: int = 0) -> bytes:
    """One that asks for `length` bytes, or offers them."""
    sqe[2:4] = cid.to_bytes(2, "little")
    if length:
        sqe[24:40] = pdu.SGL.pack(0, length, pdu.SGL_TRANSPORT)
    return b"".join(map(bytes, pdu.capsule_cmd(sqe)))


def sled(gathered: Crowd, volume: Volume) -> None:
    """Among others: hosts that connect as anybody can, ask for the longest log pages, and do not read them."""
    nqn = sled_nqn(volume.rack)
    asked = b"".join(
        command(vendor.get_log_page(LogPage.SLED_STATUS, LOG_BYTES_MAX), 0, LOG_BYTES_MAX) for _ in range(500)
    )
    for number in range(150):
        gathered.join((hello(nqn) + asked, hello(nqn), b"\0", bytes(pdu.ic_req(0)))[number % 4])
    for _ in range(50):
        gathered.half_close(hello(nqn))


def sled_nqn(rack: Rack) -> str:
    (sled,) = [each for each in rack.api.nodes()["sleds"] if each["name"] == "sled-0"]
    return str(sled["nqn"])


Attack = Callable[[Crowd, Volume], None]
ATTACKS: dict[str, tuple[str, str, str, Attack]] = {
    "nbd": ("NBD", "primary", "nbd", nbd),
    "relay": ("NBD", "secondary", "nbd", nbd),
    "status": ("status pages of a head", "primary", "api", status),
    "peer": ("links between heads", "primary", "peer", peer),
    "api": ("REST of the authority", "authority", "api", api),
    "sled": ("NVMe/TCP of a sled", "sled-0", "nvme", sled),
    "volumes": ("NVMe/TCP of a head's volumes", "primary", "nvme", volumes),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_a_port_costs_no_more_than_is_said_and_nobody_else_anything(
    volume: Volume, tell: Tell, name: str
) -> None:
    port, who, service, attack = ATTACKS[name]
    rack, bound = volume.rack, documented()[port]

    async def story() -> None:
        attacked = rack.node({"primary": volume.primary, "secondary": volume.secondary}.get(who, who))
        nodes = {node.name: node for node in (attacked, rack.node("head-0"), rack.node("head-1"))}
        footprints = [Footprint(node.process.pid) for node in nodes.values() if node.process is not None]
        async with writing(volume) as writer:
            await until_acknowledged(writer, 0.0)
            descriptors = footprints[0].descriptors()
            before = await peaks(footprints, until_acknowledged(writer, 0.0))
            with crowd(attacked.ports[service]) as gathered:
                attacking = asyncio.to_thread(attack, gathered, volume)
                during = await peaks(footprints, asyncio.gather(attacking, until_acknowledged(writer, ATTACK_SECONDS)))
            grown = [most - usual for most, usual in zip(during, before, strict=True)]
            assert max(grown) < bound.whole_bytes + SLACK_BYTES, dict(zip(nodes, grown, strict=True))
            await asyncio.to_thread(
                eventually, lambda: footprints[0].descriptors() <= descriptors + 2, footprints[0].descriptors
            )
            roles = await asyncio.to_thread(rack.roles, volume.name)
            assert (roles.epoch, len(roles.secondaries)) == (volume.roles.epoch, 1), "no failover, no member lost"
            await assert_nothing_lost(writer)
        for node in nodes.values():
            log = rack.layout.log(node).read_text(encoding="utf-8", errors="replace")
            assert "Traceback" not in log
            assert "internal_error" not in log

    tell(story())


KEEPALIVE = "02"
"""The timer of an idle socket that will be asked for a sign of life (/proc/net/tcp, proc(5))."""


def timer_of_accepted(client: socket.socket) -> str:
    """Which timer runs for the other end of a connection on this machine."""
    here, there = (f"0100007F:{end[1]:04X}" for end in (client.getsockname(), client.getpeername()))
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file]
    return next((row[5].partition(":")[0] for row in rows if row[1:4] == [there, here, "01"]), "")


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "status"])
def test_every_port_with_few_places_asks_an_idle_peer_for_a_sign_of_life(rack: Rack, name: str) -> None:
    """But the status pages, where a connection lasts five seconds whatever its peer does."""
    _, who, service, _ = ATTACKS[name]
    node = rack.node({"primary": "head-0", "secondary": "head-1"}.get(who, who))
    with socket.create_connection(("127.0.0.1", node.ports[service]), timeout=10) as peer:
        eventually(lambda: timer_of_accepted(peer) == KEEPALIVE, lambda: timer_of_accepted(peer))


async def until_acknowledged(writer: VerifiedWriter, seconds: float) -> None:
    """Writes go on being acknowledged for so long, and a thousand of them."""
    end_s = asyncio.get_running_loop().time() + seconds
    await writer.wait_acknowledged(1000)
    while asyncio.get_running_loop().time() < end_s:
        await writer.wait_acknowledged(50)


async def peaks(footprints: list[Footprint], meanwhile: Awaitable[object]) -> list[int]:
    """The most that each process held while something went on."""
    for footprint in footprints:
        footprint.forget_peak()
    await meanwhile
    return [footprint.peak_bytes() for footprint in footprints]
