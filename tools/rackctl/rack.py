"""The emulated rack: an authority, sleds and heads as processes of this machine on loopback ports."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from head_node.authority.tls import CA_FILE
from rackctl import programs, state
from rackctl.api import OperatorApi
from rackctl.connect_info import Paths, paths_of
from rackctl.errors import ApiUnreachable, NodeNotRunning, RackError, RackExists, WaitedTooLong
from rackctl.interrupts import raise_if_interrupted
from rackctl.launch import Command, Started, await_ready, start
from rackctl.ports import PortReservations
from rackctl.processes import ProcessIdentity, ProcessState, send, session_of, wait_gone
from rackctl.programs import SERVICES, Layout, make_root_key
from rackctl.sites import Sites, on_loopback
from rackctl.sizes import BLOCK_BYTES
from rackctl.staged_sleds import SledFirmware, equip, make_manager
from rackctl.state import Node, NodeKind, RackState

Value = TypeVar("Value")

SLEDS_DEFAULT: Final = 6
HEADS_DEFAULT: Final = 2
# Sparse, so that only what is written takes room on the machine.
DEVICE_BYTES_DEFAULT: Final = 16 << 30
SLEDS_MAX: Final = 64
HEADS_MAX: Final = 8
ANY_HOST: Final = "*"

_STOP_TIMEOUT_S: Final = 4.0
_KILL_TIMEOUT_S: Final = 10.0
_WAIT_TIMEOUT_S: Final = 30.0
_RECOVER_POLL_S: Final = 5.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class RackSize:
    """How many nodes, and the bytes of each sled's device."""

    sleds: int = SLEDS_DEFAULT
    heads: int = HEADS_DEFAULT
    device_bytes: int = DEVICE_BYTES_DEFAULT

    def check(self) -> None:
        """Raises RackError when no rack can be that."""
        for name, value, most in (("sleds", self.sleds, SLEDS_MAX), ("heads", self.heads, HEADS_MAX)):
            if not 1 <= value <= most:
                raise RackError(f"{value} {name}: a rack has from 1 to {most}")
        if self.device_bytes < 1 << 20 or self.device_bytes % BLOCK_BYTES:
            raise RackError(f"{self.device_bytes} device bytes: need a multiple of {BLOCK_BYTES}, at least 1 MiB")


@dataclass(frozen=True, slots=True)
class Roles:
    """Who does what for a volume, by node name; `secondaries` are the other members that hold everything."""

    primary: str | None
    secondaries: tuple[str, ...]
    epoch: int
    state: str


class Rack:
    """A rack in a directory. Make one with `Rack.create`, find one with `Rack.open`."""

    def __init__(self, directory: Path, *, owner: bool, sites: Sites = on_loopback) -> None:
        self.directory = directory
        self.layout = Layout(directory)
        self._owner = owner
        self._sites = sites
        self._ports = PortReservations()
        self._children: list[subprocess.Popen[bytes]] = []
        self._api: OperatorApi | None = None

    @classmethod
    def create(
        cls,
        directory: Path | None,
        size: RackSize,
        *,
        owner: bool = True,
        sites: Sites = on_loopback,
        firmware: SledFirmware | None = None,
    ) -> "Rack":
        """Start a new rack, or one that was stopped in `directory` again (its size is what it was).

        With `firmware` the sleds of a new rack run from firmware slots, through the stage of a board.

        `owner`: its processes end with this one, whatever happens. Without a directory a temporary one is made, which
        goes with the rack. Raises RackExists, NodeFailed and the API's errors; nothing is left running then.
        """
        made = cls.lay_out(directory, size, firmware)
        rack = cls(made, owner=owner, sites=sites)
        if any(node.state is not ProcessState.GONE for node in rack.state.nodes):
            raise RackExists(f"{made}: a rack runs there: use it, or stop it with `rackctl down --dir {made}`")
        try:
            rack._start_all()
        except BaseException:
            rack.stop()
            raise
        return rack

    @staticmethod
    def lay_out(directory: Path | None, size: RackSize, firmware: SledFirmware | None = None) -> Path:
        """Make the directory of a rack that is not started yet, unless it is there; returns its path. Raises RackExists
        when something else is there."""
        size.check()
        if firmware is not None:
            firmware.check()
        made = Path(tempfile.mkdtemp(prefix=state.temporary_prefix())) if directory is None else directory.absolute()
        state.make_own(made)
        if not state.exists(made):
            if any(made.iterdir()):
                raise RackExists(f"{made}: is not empty and holds no rack: choose another directory")
            with state.locked(made):
                fresh = _new_state(size, temporary=directory is None)
                if firmware is not None:
                    make_manager(made)
                    for node in fresh.of_kind(NodeKind.SLED):
                        equip(Layout(made).state_dir(node), firmware)
                state.save(made, fresh)
        elif firmware is not None:
            raise RackExists(f"{made}: that rack's sleds have what they run: update it, or choose another directory")
        return made

    @classmethod
    def open(cls, directory: Path) -> "Rack":
        """The rack that another command started there; raises RackNotFound."""
        rack = cls(directory.absolute(), owner=False)
        _ = rack.state
        return rack

    @classmethod
    def find(cls, directory: Path | None) -> "Rack":
        """The rack in that directory, or the only running one in the temporary folder; raises RackNotFound."""
        if directory is not None:
            return cls.open(directory)
        return cls.open(state.only_running())

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, directory: Path | None = None, size: RackSize | None = None, firmware: SledFirmware | None = None
    ) -> "Iterator[Rack]":
        """A rack for the length of a `with` block."""
        rack = cls.create(directory, size or RackSize(), firmware=firmware)
        try:
            yield rack
        finally:
            rack.stop()

    @property
    def state(self) -> RackState:
        """The state as it is on disk now."""
        return state.load(self.directory)

    @property
    def api(self) -> OperatorApi:
        """The authority's REST interface."""
        if self._api is None:
            self._api = self.connect()
        return self._api

    def connect(self) -> OperatorApi:
        """Another connection to it, with the authority's own CA pinned where it speaks TLS."""
        now = self.state
        return OperatorApi(now.api_url, now.token, ca=self.authority_ca)

    @property
    def authority_ca(self) -> Path | None:
        """What the authority is verified by, None where it speaks clear text."""
        now = self.state
        if not now.api_url.startswith("https:"):
            return None
        return self.layout.state_dir(now.node("authority")) / CA_FILE

    def stop(self) -> None:
        """End every process and, when the directory is a temporary one, remove it. Safe to call again."""
        if self._api is not None:
            self._api.close()
            self._api = None
        with contextlib.suppress(RackError):
            with state.locked(self.directory):
                self._end(self.state.nodes, gently=not self.state.temporary)
                temporary = self.state.temporary
            if temporary:
                shutil.rmtree(self.directory, ignore_errors=True)
        self._ports.release()
        self._reap()

    # Nodes

    def node(self, name: str) -> Node:
        """The node of that name as it is now; raises NodeUnknown."""
        return self.state.node(name)

    def kill(self, name: str) -> None:
        """SIGKILL: power is cut. Returns when the process is gone."""
        signalled = self._signal(name, signal.SIGKILL)
        left = wait_gone(signalled, _KILL_TIMEOUT_S)
        if left:
            raise WaitedTooLong(f"{name}: pid {left[0].pid} is still there {_KILL_TIMEOUT_S:g} s after SIGKILL")
        self._reap()

    def pause(self, name: str) -> None:
        """SIGSTOP: the machine hangs, its connections stay open."""
        self._signal(name, signal.SIGSTOP)
        wait_until(lambda: self.node(name).state is ProcessState.PAUSED, f"{name} to stop", _KILL_TIMEOUT_S)

    def resume(self, name: str) -> None:
        """SIGCONT: it goes on where it was, unaware of the time in between."""
        self._signal(name, signal.SIGCONT)

    def terminate(self, name: str) -> None:
        """SIGTERM: it is to end in good order. Returns at once."""
        self._signal(name, signal.SIGTERM, alone=True)

    def restart(self, name: str) -> None:
        """Start it again with the same state and ports; one that runs is ended first."""
        await_ready([self.begin(name)])

    def begin(self, name: str) -> Started:
        """The same, without waiting until it is ready."""
        with state.locked(self.directory):
            now = self.state
            node = now.node(name)
            self._end([node], gently=True)
            return self._spawn(now, [self._command(now, node)])[0]

    # Volumes

    def create_volume(
        self,
        name: str,
        size_bytes: int,
        timeout_s: float = _WAIT_TIMEOUT_S,
        *,
        hosts: Sequence[str] = (ANY_HOST,),
        min_members: int = 1,
        policy: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Create a volume and wait until its primary serves it. On an emulated rack, which only this machine reaches,
        any host may connect to it by NVMe/TCP unless `hosts` says which."""
        self.api.create_volume(name, size_bytes, hosts, min_members, policy)
        self.wait_served(name, timeout_s)
        return self.api.volume(name)

    def delete_volume(self, name: str, timeout_s: float = _WAIT_TIMEOUT_S) -> None:
        """Delete a volume and wait until its namespaces are gone."""
        identity = self.api.volume(name)["volume"]
        self.api.delete_volume(name)
        wait_until(
            lambda: all(volume["volume"] != identity for volume in self.api.volumes()),
            f"volume {name} to be deleted",
            timeout_s,
        )

    def wait_recoverable(self, name: str) -> None:
        """Wait until no head can serve a frozen volume with a credential that it still holds (F7)."""
        while (left_ms := self.api.volume(name)["recover_wait_ms"] or 0) > 0:
            time.sleep(min(left_ms / 1000, _RECOVER_POLL_S))

    def roles(self, volume: str) -> Roles:
        """Who serves and who follows, by the record."""
        return self._roles(self.api.volume(volume))

    def _roles(self, record: Mapping[str, Any]) -> Roles:
        names = {node.id: node.name for node in self.state.of_kind(NodeKind.HEAD)}
        primary = names.get(record["primary"] or "")
        members = [names.get(member["head"], member["head"]) for member in record["current"]]
        return Roles(
            primary, tuple(name for name in members if name != primary), int(record["epoch"]), str(record["state"])
        )

    def nbd_uri(self, volume: str, head: str) -> str:
        """Where `head` exports the volume; a head that is not its primary relays."""
        node = self.node(head)
        return f"nbd://{node.host}:{node.ports['nbd']}/{volume}"

    def paths(self, volume: str) -> Paths:
        """How clients connect to the volume."""
        return paths_of(self.api.volume(volume), self.api.nodes()["heads"], self.api.proofs(volume))

    def wait_served(self, volume: str, timeout_s: float = _WAIT_TIMEOUT_S) -> Roles:
        """Wait until the volume is active and its primary serves it: to NBD clients, where any may come."""
        from rackctl.nbd_probe import is_served

        def served() -> Roles | None:
            record = self.api.volume(volume)
            roles = self._roles(record)
            if roles.state != "active" or roles.primary is None:
                return None
            primary = self.node(roles.primary)
            if is_served(primary.host, primary.ports["nbd"], volume):
                return roles
            if record["nbd"] == "on" and self._serves_plain_nbd(primary.id):
                return None
            # A stranger is not answered: what the primary reports of this epoch counts.
            report = record["health"]["reports"].get(primary.id, {})
            return roles if report.get("serving") and report.get("epoch") == roles.epoch else None

        return wait_until(served, f"volume {volume} to be served", timeout_s)

    def _serves_plain_nbd(self, head: str) -> bool:
        return any(known["id"] == head and "nbd" in known["addresses"] for known in self.api.nodes()["heads"])

    def wait_members(self, volume: str, count: int, timeout_s: float = _WAIT_TIMEOUT_S) -> Roles:
        """Wait until `count` heads hold everything, so that one fewer may be lost; and until it is said so."""

        def enough() -> Roles | None:
            record = self.api.volume(volume)
            roles = self._roles(record)
            if not roles.primary or 1 + len(roles.secondaries) < count:
                return None
            # The primary's report, which is up to a second older than the record, may say otherwise. What stripes lack
            # is another matter: no member brings it.
            report = record["health"].get("reports", {}).get(record["primary"], {})
            stripes = report.get("engine", {}).get("stripes_without_spare", 0)
            return None if count > 1 and record["health"]["exposed"] and not stripes else roles

        return wait_until(enough, f"volume {volume} to have {count} members", timeout_s)

    def wait_epoch_above(self, volume: str, epoch: int, timeout_s: float = _WAIT_TIMEOUT_S) -> Roles:
        """Wait for a takeover: until the record's epoch is higher than `epoch`."""

        def taken() -> Roles | None:
            roles = self.roles(volume)
            return roles if roles.epoch > epoch else None

        return wait_until(taken, f"volume {volume} to be taken over from epoch {epoch}", timeout_s)

    # How it is done

    def _start_all(self) -> None:
        with state.locked(self.directory):
            now = self.state
            for node in now.nodes:
                node.host = self._sites(node).host
                self._give_ports(node)
            authority, sleds = now.node("authority"), now.of_kind(NodeKind.SLED)
            heads = now.of_kind(NodeKind.HEAD)
            if not now.root_public_key:
                now.root_public_key = make_root_key(self.layout.state_dir(authority))
            # Heads need the authority for their join token; sleds need nobody, so some fill the cores meanwhile.
            spare = max(1, (os.cpu_count() or 1) - 1)
            first, *others = self._spawn(now, [self._command(now, node) for node in (authority, *sleds[:spare])])
            found = await_ready([first])["authority"]
            now.token = Path(found["operator_token_file"]).read_text(encoding="ascii").strip()
            state.save(self.directory, now)
            with self.connect() as api:
                join_token = None if now.enrolled else api.join_token(len(heads))
                rest = [*_not_revoked(heads, api.nodes()["heads"]), *sleds[spare:]]
                others += self._spawn(now, [self._command(now, node, join_token) for node in rest])
                await_ready(others)
                if not now.enrolled:
                    self._enrol_sleds(now, api)
                self._learn_head_ids(now, api)
            now.enrolled = True
            state.save(self.directory, now)

    def _enrol_sleds(self, now: RackState, api: OperatorApi) -> None:
        for node in now.of_kind(NodeKind.SLED):
            identity = json.loads((self.layout.state_dir(node) / "identity.json").read_text(encoding="utf-8"))
            node.id = str(identity["id"])
            api.enrol_sled(identity, self._sites(node).known_as, node.ports["nvme"], now.device_bytes // BLOCK_BYTES)

    def _learn_head_ids(self, now: RackState, api: OperatorApi) -> None:
        """Wait until every head is enrolled."""
        heads = now.of_kind(NodeKind.HEAD)

        def enrolled() -> bool:
            known = {head["name"]: head["id"] for head in api.nodes()["heads"]}
            for node in heads:
                node.id = str(known.get(node.name, ""))
            return all(node.id for node in heads)

        wait_until(enrolled, "the heads to enrol", _WAIT_TIMEOUT_S)

    def _give_ports(self, node: Node) -> None:
        for service in SERVICES[node.kind]:
            if service in node.ports:
                self._ports.hold(node.ports[service])
            else:
                node.ports[service] = self._ports.take()

    def _command(self, now: RackState, node: Node, join_token: str | None = None) -> Command:
        if node.kind is NodeKind.AUTHORITY:
            return programs.authority(node, self.layout)
        if node.kind is NodeKind.SLED:
            return programs.sled(node, self.layout, root_public_key=now.root_public_key, device_bytes=now.device_bytes)
        authority = now.node("authority")
        url = state.url_of(self._sites(authority).known_as, authority.ports["api"])
        return programs.head(node, self.layout, authority_url=url, join_token=join_token)

    def _spawn(self, now: RackState, commands: Sequence[Command]) -> list[Started]:
        """Start nodes side by side; each is on record at once, so that it is never forgotten."""
        started = []
        for command in commands:
            node = now.node(command.name)
            one = start(self._sites(node).place(command), leashed=self._owner)
            node.process = one.process
            state.save(self.directory, now)
            self._children.append(one.child)
            started.append(one)
        return started

    def _end(self, nodes: Sequence[Node], *, gently: bool) -> None:
        """End processes: those that run by SIGTERM if `gently`, with SIGKILL for whoever is left."""
        everything = [one for process in _processes(nodes) for one in session_of(process)]
        if gently:
            # Heads first: they hand over and write out while the others are still there.
            for kinds in ({NodeKind.HEAD}, {NodeKind.SLED, NodeKind.AUTHORITY}):
                ending = _processes(node for node in nodes if node.kind in kinds)
                for process in ending:
                    send(process, signal.SIGTERM)
                    for one in session_of(process):
                        send(one, signal.SIGCONT)
                wait_gone(ending, _STOP_TIMEOUT_S)
        for process in everything:
            send(process, signal.SIGKILL)
        left = wait_gone(everything, _KILL_TIMEOUT_S)
        self._reap()
        if left:
            raise WaitedTooLong(f"pids {[process.pid for process in left]} are still there after SIGKILL")

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    def _signal(self, name: str, number: signal.Signals, *, alone: bool = False) -> list[ProcessIdentity]:
        """Signal a node's program and, unless `alone`, what it has started; returns whom."""
        process = self.node(name).process
        if process is None or not send(process, number):
            raise NodeNotRunning(f"{name}: its process is gone: `rackctl node restart {name}` starts it again")
        others = [] if alone else [one for one in session_of(process) if one != process]
        for one in others:
            send(one, number)
        return [process, *others]


def wait_until(poll: Callable[[], Value | None], what: str, timeout_s: float) -> Value:
    """Ask until there is an answer; an authority that is away gives none. Raises WaitedTooLong."""
    deadline = time.monotonic() + timeout_s
    while True:
        raise_if_interrupted()
        with contextlib.suppress(ApiUnreachable):
            answer = poll()
            if answer:
                return answer
        if time.monotonic() > deadline:
            raise WaitedTooLong(f"waited {timeout_s:g} s for {what}: the logs of the nodes may say why")
        time.sleep(_POLL_S)


def _not_revoked(heads: Sequence[Node], known: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Those that the authority has not put out of the rack: a revoked one would end as soon as it is started."""
    revoked = {head["id"] for head in known if head["revoked"]}
    return [node for node in heads if node.id not in revoked]


def _processes(nodes: Iterable[Node]) -> list[ProcessIdentity]:
    """The living ones."""
    return [node.process for node in nodes if node.process and node.state is not ProcessState.GONE]


def _new_state(size: RackSize, *, temporary: bool) -> RackState:
    nodes = [Node("authority", NodeKind.AUTHORITY)]
    nodes += [Node(f"sled-{number}", NodeKind.SLED) for number in range(size.sleds)]
    nodes += [Node(f"head-{number}", NodeKind.HEAD) for number in range(size.heads)]
    return RackState(nodes=nodes, temporary=temporary, token="", device_bytes=size.device_bytes)
