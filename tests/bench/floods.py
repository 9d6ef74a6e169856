"""What floods of strangers cost the others, as ratios to the calm run: time at a sled, acknowledged writes, a takeover.

The flood takes processor time of the same machine, so part of each ratio is its own.
"""

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Final
from uuid import UUID

from bench.jobs import RUN_S
from bench.nbd import FILE_BYTES
from bench.report import Table
from rackctl.chaos.flood import Flood, Target
from rackctl.chaos.strangers import targets
from rackctl.ports import HOST
from rackctl.rack import Rack
from rackctl.state import NodeKind
from rackctl.verified_writer import VerifiedWriter

from sled_controller.fabric import pdu
from spdk_bindings.nvme import uuid_nqn

CONNECTIONS: Final = 4
"""To each port that is flooded."""
CALM: Final = "nothing"
GREETINGS: Final = 20


def ratios(rack: Rack, volume: str, rounds: int) -> list[Table]:
    """A row for each flood."""
    floods = of_rack(rack)
    rows = asyncio.run(_writes(rack, volume, floods, rounds))
    stalls = {name: asyncio.run(_takeovers(rack, volume, floods[name], rounds)) for name in (CALM, "every port")}
    waits = [
        (name, f"{stall_s:.2f} s", f"{stall_s / stalls[CALM]:.1f}")
        for name, stall_s in stalls.items()
    ]  # fmt: skip
    head = ("flooded", "acknowledged writes/s", "of calm", "greeting of a sled (median)", "times calm")
    return [
        Table("Writes and sleds under floods of strangers", head, rows),
        Table("Stall on `kill -9` of the primary under a flood", ("flooded", "longest wait", "times calm"), waits),
    ]


def of_rack(rack: Rack) -> dict[str, list[Target]]:
    """What is flooded, by the name of the flood."""
    found: dict[str, list[Target]] = {CALM: []}
    for kind, name in ((NodeKind.SLED, "sleds"), (NodeKind.HEAD, "heads"), (NodeKind.AUTHORITY, "authority")):
        found[name] = [
            target
            for node in rack.state.of_kind(kind)
            for target in targets(node, uuid_nqn(UUID(node.id)) if kind is NodeKind.SLED else "")
        ]
    found["every port"] = [target for some in found.values() for target in some]
    return found


@contextlib.contextmanager
def flooded(some: list[Target]) -> Iterator[None]:
    """A flood for the length of a `with` block."""
    flood = Flood(some, CONNECTIONS)
    try:
        yield
    finally:
        flood.stop()


def _writer(rack: Rack, volume: str, seed: int) -> VerifiedWriter:
    addresses = [(HOST, head.ports["nbd"]) for head in rack.state.of_kind(NodeKind.HEAD)]
    return VerifiedWriter(addresses, volume, FILE_BYTES // 4096, seed=seed)


async def _writes(rack: Rack, volume: str, floods: dict[str, list[Target]], rounds: int) -> list[tuple[str, ...]]:
    sled = rack.state.of_kind(NodeKind.SLED)[0]
    writer = _writer(rack, volume, seed=100)
    await writer.start()
    try:
        await writer.wait_acknowledged(500)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in floods}
        for _ in range(rounds):
            for name, some in floods.items():
                with flooded(some):
                    measured[name].append(await _measure(writer, (sled.host, sled.ports["nvme"])))
        await writer.stop()
    finally:
        await writer.close()
    rows: list[tuple[str, ...]] = []
    calm_rate, calm_s = (statistics.median(column) for column in zip(*measured[CALM], strict=True))
    for name, results in measured.items():
        rate, greeting_s = (statistics.median(column) for column in zip(*results, strict=True))
        rows.append(
            (name, f"{rate:.0f}", f"{rate / calm_rate:.2f}", f"{greeting_s * 1e3:.1f} ms", f"{greeting_s / calm_s:.1f}")
        )
    return rows


async def _measure(writer: VerifiedWriter, sled: tuple[str, int]) -> tuple[float, float]:
    """(acknowledged writes a second, seconds of a greeting at a sled)."""
    begun_s, before = time.monotonic(), writer.acknowledged
    greetings = [await asyncio.to_thread(_greet, sled) for _ in range(GREETINGS)]
    await asyncio.sleep(max(0.0, RUN_S - (time.monotonic() - begun_s)))
    return (writer.acknowledged - before) / (time.monotonic() - begun_s), statistics.median(greetings)


def _greet(address: tuple[str, int]) -> float:
    """Seconds from a connection to the answer to its ICReq."""
    begun_s = time.monotonic()
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(bytes(pdu.ic_req(0)))
        client.recv(128)
    return time.monotonic() - begun_s


async def _takeovers(rack: Rack, volume: str, some: list[Target], rounds: int) -> float:
    stalls_s = []
    for number in range(rounds):
        roles = await asyncio.to_thread(rack.wait_members, volume, len(rack.state.of_kind(NodeKind.HEAD)))
        assert roles.primary is not None
        writer = _writer(rack, volume, seed=200 + number)
        await writer.start()
        try:
            await writer.wait_acknowledged(500)
            with flooded(some):
                await writer.wait_acknowledged(100)
                writer.forget_stalls()
                await asyncio.to_thread(rack.kill, roles.primary)
                await writer.wait_acknowledged(200)
                stalls_s.append(writer.longest_stall_s)
            await writer.stop()
        finally:
            await writer.close()
        await asyncio.to_thread(rack.restart, roles.primary)
    return statistics.median(stalls_s)
