"""What a rack remembers between commands: `rack.json` in its directory, readable by its owner only.

Every change happens under a lock file, so that a command inside `rackctl run` and the run itself can both act.
"""

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sled_board.durable import ForeignPath, check_own_directory, open_own, put_file

from head_node.authority.tls import is_loopback
from rackctl.errors import NodeUnknown, RackError, RackNotFound
from rackctl.ports import HOST
from rackctl.processes import ProcessIdentity, ProcessState, state_of

FORMAT: Final = 2
_FILE: Final = "rack.json"
_LOCK: Final = "rack.lock"


class NodeKind(enum.StrEnum):
    """Which program a node runs."""

    AUTHORITY = "authority"
    SLED = "sled"
    HEAD = "head"


@dataclass(slots=True)
class Node:
    """One node: its name, program, id (empty until it has one), where it listens and, while it runs, its process."""

    name: str
    kind: NodeKind
    id: str = ""
    host: str = HOST
    ports: dict[str, int] = field(default_factory=dict)
    process: ProcessIdentity | None = None

    @property
    def state(self) -> ProcessState:
        """Whether its process runs."""
        return state_of(self.process) if self.process else ProcessState.GONE


@dataclass(slots=True)
class RackState:
    """The whole of `rack.json`. `temporary`: the directory goes with the rack; `token` is the operator's.

    `device_bytes` is the size of each sled's (sparse) device, `root_public_key` the rack's root key in hex;
    `enrolled` once every node has been made known to the authority.
    """

    nodes: list[Node]
    temporary: bool
    token: str
    device_bytes: int
    root_public_key: str = ""
    enrolled: bool = False

    def node(self, name: str) -> Node:
        """The node of that name; raises NodeUnknown."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise NodeUnknown(f"node {name!r} is not in the rack: it has {', '.join(node.name for node in self.nodes)}")

    def of_kind(self, kind: NodeKind) -> list[Node]:
        """All nodes that run that program."""
        return [node for node in self.nodes if node.kind is kind]

    @property
    def api_url(self) -> str:
        """Where the authority's REST interface is."""
        authority = self.node("authority")
        return url_of(authority.host, authority.ports["api"])


def url_of(host: str, port: int) -> str:
    """The authority's address: TLS but on loopback, as it decides itself."""
    return f"{'http' if is_loopback(host) else 'https'}://{host}:{port}"


def load(directory: Path) -> RackState:
    """Read a rack's state; raises RackNotFound, or RackError when the file is not a rack's."""
    path = directory / _FILE
    try:
        check_own(directory)
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise RackError(
                f"{path}: format {data['format']} is not {FORMAT}: take that rack down with its own rackctl"
            )
        return RackState(
            nodes=[_node_from_json(node) for node in data["nodes"]],
            temporary=bool(data["temporary"]),
            token=str(data["token"]),
            device_bytes=int(data["device_bytes"]),
            root_public_key=str(data["root_public_key"]),
            enrolled=bool(data["enrolled"]),
        )
    except FileNotFoundError:
        raise RackNotFound(f"{directory}: holds no rack: start one with `rackctl up --dir {directory}`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RackError(f"{path}: cannot be read as a rack's state ({error}): remove the directory") from None


def save(directory: Path, state: RackState) -> None:
    """Replace `rack.json` in one step; call it under `locked`."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "temporary": state.temporary,
        "token": state.token,
        "device_bytes": state.device_bytes,
        "root_public_key": state.root_public_key,
        "enrolled": state.enrolled,
        "nodes": [dataclasses.asdict(node) for node in state.nodes],
    }
    put_file(directory / _FILE, json.dumps(data, indent=1).encode(), 0o600)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other commands away from this rack's state; raises RackNotFound when the directory is gone."""
    try:
        check_own(directory)
        file = os.fdopen(open_own(directory / _LOCK, os.O_RDWR | os.O_CREAT), "w", encoding="ascii")
    except OSError as error:
        raise RackNotFound(f"{directory}: {error.strerror}: name a rack's directory with --dir") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_own(directory: Path) -> None:
    """Make a rack's directory, unless it is there; raises RackError when another user decides what it has, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_own(directory)


def check_own(directory: Path) -> None:
    """Raises RackError when another user decides what a rack's directory has, OSError when it is not there."""
    try:
        check_own_directory(directory)
    except ForeignPath as error:
        raise RackError(f"{directory}: {error.strerror}") from None


def exists(directory: Path) -> bool:
    """Whether the directory holds a rack, running or not."""
    return (directory / _FILE).exists()


def temporary_prefix() -> str:
    """How the directories begin that racks without `--dir` make for themselves."""
    return f"palisade-rack-{os.getuid()}-"


def find_running() -> list[Path]:
    """The directories of this user's racks in the temporary folder, those without a living node left out."""
    found = []
    for path in sorted(Path(tempfile.gettempdir()).glob(temporary_prefix() + "*")):
        with contextlib.suppress(RackError, OSError):
            if path.stat().st_uid == os.getuid() and any(
                node.state is not ProcessState.GONE for node in load(path).nodes
            ):
                found.append(path)
    return found


def only_running() -> Path:
    """The directory of this user's only running temporary rack. Raises RackNotFound when there is none, or several."""
    found = find_running()
    if len(found) != 1:
        listed = "".join(f"\n    {path}" for path in found)
        raise RackNotFound(
            f"several racks run, choose one with --dir:{listed}"
            if found
            else "no rack runs: start one with `rackctl up`, or name a rack's directory with --dir"
        )
    return found[0]


def _node_from_json(data: dict[str, Any]) -> Node:
    process = data["process"]
    return Node(
        name=str(data["name"]),
        kind=NodeKind(data["kind"]),
        id=str(data["id"]),
        host=str(data["host"]),
        ports={str(service): int(port) for service, port in data["ports"].items()},
        process=ProcessIdentity(int(process["pid"]), int(process["started_ticks"])) if process else None,
    )
