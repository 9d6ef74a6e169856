"""A whole rack: how fast it is there, what memory it takes, and how long a client waits when a primary is killed."""

import asyncio
import time

from bench.nbd import FILE_BYTES
from bench.report import Table, median_and_worst
from rackctl.ports import HOST
from rackctl.processes import proportional_bytes, resident_bytes
from rackctl.rack import Rack
from rackctl.state import NodeKind
from rackctl.verified_writer import VerifiedWriter

VOLUME = "bench"


def starts(rounds: int) -> Table:
    """From nothing to a served volume."""
    seconds = []
    for _ in range(rounds):
        begun = time.monotonic()
        with Rack.running() as rack:
            rack.create_volume(VOLUME, FILE_BYTES)
            seconds.append(time.monotonic() - begun)
    return median_and_worst("From nothing to a served volume (`rackctl up`, 9 processes)", seconds)


def memory(rack: Rack) -> Table:
    """Resident memory of each process of an idle rack with one volume."""
    rows, total, total_proportional = [], 0, 0
    for node in rack.state.nodes:
        if node.process:
            resident, proportional = resident_bytes(node.process), proportional_bytes(node.process)
            total, total_proportional = total + resident, total_proportional + proportional
            rows.append((node.name, _mib(resident), _mib(proportional)))
    rows.append(("all", _mib(total), _mib(total_proportional)))
    return Table("Memory of an idle rack", ("process", "resident", "proportional share"), rows)


def failovers(rack: Rack, rounds: int) -> Table:
    """How long a writing NBD client waits when its primary is killed."""
    return median_and_worst(
        "Stall of an NBD client on `kill -9` of the primary", asyncio.run(_failover_stalls(rack, rounds))
    )


async def _failover_stalls(rack: Rack, rounds: int) -> list[float]:
    heads = rack.state.of_kind(NodeKind.HEAD)
    addresses = [(HOST, head.ports["nbd"]) for head in heads]
    stalls_s = []
    for number in range(rounds):
        roles = await asyncio.to_thread(rack.wait_members, VOLUME, len(heads))
        assert roles.primary is not None
        writer = VerifiedWriter(addresses, VOLUME, FILE_BYTES // 4096, seed=number)
        await writer.start()
        try:
            await writer.wait_acknowledged(500)
            writer.forget_stalls()
            await asyncio.to_thread(rack.kill, roles.primary)
            await writer.wait_acknowledged(500)
            stalls_s.append(writer.longest_stall_s)
            await writer.stop()
        finally:
            await writer.close()
        await asyncio.to_thread(rack.restart, roles.primary)
    return stalls_s


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
