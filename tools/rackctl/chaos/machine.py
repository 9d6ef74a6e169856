"""What this machine permits to be done to nodes that processes alone cannot suffer: links, clocks and disks."""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

from sled_board.durable import put_file

from rackctl import state
from rackctl.chaos.flood import Flood
from rackctl.chaos.plan import AUTHORITY, Fault, Kind, Nodes
from rackctl.chaos.seclusion import Network, SmallDisk
from rackctl.chaos.strangers import targets
from rackctl.chaos.switchboard import Switchboard
from rackctl.processes import ProcessIdentity
from rackctl.programs import Layout
from rackctl.sites import Site
from rackctl.state import Node, NodeKind
from sled_controller.environment import CLOCK_FAULTS
from spdk_bindings.nvme import uuid_nqn

DISK_BYTES: Final = 384 << 20
"""Of a node whose disk is to be full at times: a head's log at its limit (256 MiB), spares and a checkpoint."""
RATE_PPM_MAX: Final = 10_000
"""How much too fast or slow boot clocks are: an eighth of what the guard of a lease covers."""
FLOOD_CONNECTIONS: Final = 4
"""To each port."""
_PREFIXES: Final = {
    NodeKind.AUTHORITY: "RACK_AUTHORITY_",
    NodeKind.SLED: "SLED_CONTROLLER_",
    NodeKind.HEAD: "HEAD_NODE_",
}


class Machine:
    """Where the nodes of one run are, and what happens to them there."""

    def __init__(
        self, directory: Path, rack_directory: Path, nodes: Nodes, seed: int, denied: str | None, *, filled: set[str]
    ) -> None:
        """`denied` says why there are no namespaces, None: there are. `filled` are those whose disks the plan fills."""
        self.denied = denied
        self._nodes = nodes
        self._directory = directory
        self._network = Network(nodes.all) if denied is None else None
        self._switchboard: Switchboard | None = None
        self._listening: set[str] = set()
        self._disks: Mapping[str, SmallDisk] = {}
        self._rack_directory = rack_directory
        self._floods: dict[str, Flood] = {}
        if denied is None:
            below = Layout(rack_directory)
            self._disks = {
                name: SmallDisk(below.state_dir(Node(name, NodeKind.HEAD)), DISK_BYTES) for name in sorted(filled)
            }
        else:
            numbers = {name: number for number, name in enumerate(nodes.all, 1)}
            self._switchboard = Switchboard(numbers, lambda: _processes(rack_directory))
        random = Random(f"{seed}/clocks")
        self._rates_ppm = {name: random.randrange(-RATE_PPM_MAX, RATE_PPM_MAX + 1) for name in nodes.all}
        for name in nodes.all:
            self._clock_file(name).parent.mkdir(parents=True, exist_ok=True)
            put_file(self._clock_file(name), CLOCK_FAULTS.pack(0, self._rates_ppm[name]), 0o600)

    def site(self, node: Node) -> Site:
        """Where a node runs; its clock is ours to set."""
        environ = {_PREFIXES[node.kind] + "CLOCK_FAULTS": str(self._clock_file(node.name))}
        if node.name == AUTHORITY:
            environ["RACK_AUTHORITY_HEADS_PER_VOLUME"] = str(len(self._nodes.heads))
        if self._network is not None:
            return Site(self._network.address(node.name), prefix=self._network.prefix(node.name), environ=environ)
        shown = self._switch.address(node.name)
        if node.name in self._nodes.heads:
            environ["HEAD_NODE_ADVERTISE_HOST"] = shown
        if node.ports and node.name not in self._listening:
            self._listening.add(node.name)
            for port in node.ports.values():
                self._switch.listen(node.name, port)
        return Site(shown=shown, environ=environ)

    def impossible(self, fault: Fault) -> str | None:
        """Why this machine does not permit it, None: it does."""
        needs = fault.kind in (Kind.SLOW_LINK, Kind.DISK_FULL)
        return f"not possible here: {self.denied}" if self.denied is not None and needs else None

    def begin(self, fault: Fault) -> None:
        """Break a link, a clock or a disk."""
        if fault.kind is Kind.DISK_FULL:
            self._disks[fault.targets[0]].fill()
        elif fault.kind is Kind.FLOOD:
            self._flood(fault.targets[0])
        elif fault.kind is Kind.WALL_JUMP:
            self._set_clock(fault.targets[0], fault.amount)
        elif fault.kind is Kind.SLOW_LINK:
            self._routed.slow(fault.targets[0], fault.amount)
        else:
            for source, target in self._cuts(fault):
                self._links.cut(source, target, silently=fault.kind is not Kind.REFUSE)

    def end(self, fault: Fault) -> None:
        """Mend it."""
        if fault.kind is Kind.DISK_FULL:
            self._disks[fault.targets[0]].clear()
        elif fault.kind is Kind.FLOOD:
            self._floods.pop(fault.targets[0]).stop()
        elif fault.kind is Kind.WALL_JUMP:
            self._set_clock(fault.targets[0], 0)
        elif fault.kind is Kind.SLOW_LINK:
            self._routed.quicken(fault.targets[0])
        else:
            for source, target in self._cuts(fault):
                self._links.heal(source, target)

    def close(self, *, keep: bool) -> None:
        """Take disks and links away, once nothing uses them; `keep`: files stay. Raises RackError."""
        for flood in self._floods.values():
            flood.stop()
        self._floods = {}
        for disk in self._disks.values():
            disk.close(keep=keep)
        self._disks = {}
        if self._switchboard is not None:
            self._switchboard.close()

    @property
    def _links(self) -> Network | Switchboard:
        return self._network or self._switch

    @property
    def _routed(self) -> Network:
        assert self._network is not None, "asked whether it is possible"
        return self._network

    @property
    def _switch(self) -> Switchboard:
        assert self._switchboard is not None, "there are no namespaces"
        return self._switchboard

    def _cuts(self, fault: Fault) -> list[tuple[str, str]]:
        one, *rest = fault.targets
        others = rest or [name for name in self._nodes.all if name != one]
        there = [(one, other) for other in others]
        return there if fault.kind is Kind.CUT else there + [(other, one) for one, other in there]

    def _clock_file(self, name: str) -> Path:
        return self._directory / "clocks" / name

    def _flood(self, name: str) -> None:
        node = next(node for node in state.load(self._rack_directory).nodes if node.name == name)
        nqn = uuid_nqn(UUID(node.id)) if node.kind is NodeKind.SLED else ""
        self._floods[name] = Flood(targets(node, nqn), FLOOD_CONNECTIONS)

    def _set_clock(self, name: str, ahead_ms: int) -> None:
        with self._clock_file(name).open("r+b") as file:
            file.write(CLOCK_FAULTS.pack(ahead_ms, self._rates_ppm[name]))


def _processes(rack_directory: Path) -> dict[str, ProcessIdentity]:
    """Which process runs for which node, or did last."""
    return {node.name: node.process for node in state.load(rack_directory).nodes if node.process}
