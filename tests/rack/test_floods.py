"""Floods attack time, not only memory: what strangers send as fast as they can keeps nobody else waiting.

No benchmark: the bounds are far above what is measured (docs/testing.md), and far below what a loop that strangers own
comes to.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kit.flooder import flooding
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.rack import Rack
from rackctl.state import NodeKind

from head_node.export import nbd_protocol as nbd
from sled_controller.fabric import pdu, vendor
from spdk_bindings.nvme import CONTROLLER_ID_DYNAMIC, DISCOVERY_NQN, AdminOpcode, FabricsType

Tell = Callable[[Coroutine[Any, Any, None]], None]
STALL_S_MAX = 30.0
"""Of a writer whose primary is killed: some 2 s on a machine that has nothing else to do, and 40 s without turns."""
LOG_BYTES_MAX = 512 << 10
"""What a flood may write into a sled's log: without a budget it was 2.5 MB a second from one connection."""
CONNECTIONS = 5


def hello(nqn: str) -> bytes:
    """ICReq and Connect, as anybody can send them."""
    data = pdu.CONNECT_DATA.pack(bytes(16), CONTROLLER_ID_DYNAMIC, nqn.encode(), b"nqn.2014-08.org.nvmexpress:any")
    connect = pdu.CONNECT_SQE.pack(
        AdminOpcode.FABRICS,
        pdu.PSDT_SGL,
        0,
        FabricsType.CONNECT,
        0,
        len(data),
        pdu.SGL_IN_CAPSULE,
        0,
        0,
        127,
        0,
        60_000,
    )
    return bytes(pdu.ic_req(0)) + b"".join(map(bytes, pdu.capsule_cmd(bytearray(connect), (data,))))


def many(sqe: bytearray, length: int = 0, data: bytes = b"") -> bytes:
    """A read's worth of one command."""
    if length:
        sqe[24:40] = pdu.SGL.pack(0, length, pdu.SGL_TRANSPORT)
    if data:
        sqe[24:40] = pdu.SGL.pack(0, len(data), pdu.SGL_IN_CAPSULE)
    made = []
    for number in range(600):
        sqe[2:4] = (1 + number % 60).to_bytes(2, "little")
        made.append(b"".join(map(bytes, pdu.capsule_cmd(bytearray(sqe), (data,) if data else ()))))
    return b"".join(made)


def floods(rack: Rack) -> list[tuple[int, bytes, bytes]]:
    """Every port of the rack, and what is cheap to send there."""
    keep_alive = bytearray(64)
    keep_alive[:2] = AdminOpcode.KEEP_ALIVE, pdu.PSDT_SGL
    handshake = many(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), 160)
    bad_reply = many(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), data=bytes(144))
    options = nbd.option_request(nbd.Option.STRUCTURED_REPLY) * 500
    asked = b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n" * 50
    found = [(rack.node("authority").ports["api"], asked, asked)]
    for sled, node in zip(rack.api.nodes()["sleds"], rack.state.of_kind(NodeKind.SLED), strict=True):
        commands = (many(keep_alive), handshake, handshake + bad_reply)[len(found) % 3]
        found.append((node.ports["nvme"], hello(sled["nqn"]), commands))
    for node in rack.state.of_kind(NodeKind.HEAD):
        found.append((node.ports["nvme"], hello(DISCOVERY_NQN), many(keep_alive)))
        found.append((node.ports["nbd"], nbd.CLIENT_HELLO.pack(3), options))
        found.append((node.ports["peer"], b"P", bytes(4096)))
        found.append((node.ports["api"], b"GET ", b"/metrics HTTP/1.1\r\n\r\nGET "))
    return found


def test_a_takeover_among_floods_of_every_port_takes_no_longer_than_one_without(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        logs = [rack.layout.log(node) for node in rack.state.nodes]
        sizes = [log.stat().st_size for log in logs]
        async with writing(volume) as writer:
            targets = await asyncio.to_thread(floods, rack)
            with flooding(*targets, connections=CONNECTIONS):
                writer.forget_stalls()
                await writer.wait_acknowledged(300)
                await asyncio.to_thread(rack.kill, before.primary)
                after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
                assert after.primary == before.secondaries[0]
                await writer.wait_acknowledged(300)
                assert writer.longest_stall_s < STALL_S_MAX
            await assert_nothing_lost(writer)
        grown = [log.stat().st_size - size for log, size in zip(logs, sizes, strict=True)]
        assert max(grown) < LOG_BYTES_MAX, grown

    tell(story())
