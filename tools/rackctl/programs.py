"""How each program of a rack is started: the settings that the emulated rack gives it, and nothing else.

Secrets go through the environment, never through the argument vector, which every user of the machine can read.
"""

import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sled_board.durable import put_file

from rackctl import staged_sleds
from rackctl.launch import Command
from rackctl.state import Node, NodeKind
from sled_controller.settings import prefix_of

# The services of each program, in the order in which their ports are taken.
SERVICES: Final = {
    NodeKind.AUTHORITY: ("api",),
    NodeKind.SLED: ("nvme",),
    NodeKind.HEAD: ("peer", "nbd", "nvme", "api"),
}
PREFIXES: Final = {
    NodeKind.AUTHORITY: prefix_of("rack-authority"),
    NodeKind.SLED: prefix_of("sled-controller"),
    NodeKind.HEAD: prefix_of("head-node"),
}
"""Of the environment variables of each program. Firmware in slots may be older than a flag, and knows no variable."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a rack keeps what: everything below its directory."""

    directory: Path

    def state_dir(self, node: Node) -> Path:
        """The node's own directory."""
        return self.directory / "nodes" / node.name

    def log(self, node: Node) -> Path:
        """What the node's program prints."""
        return self.directory / "logs" / f"{node.name}.log"


def make_root_key(state_dir: Path) -> str:
    """Give a new authority its root key beforehand, as sleds have it flashed; its public half in hex."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    put_file(state_dir / "root.key", pem, 0o600)
    return key.public_key().public_bytes_raw().hex()


def _script(name: str) -> str:
    """The console script of that name beside this interpreter."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def command_of(node: Node, layout: Layout, *, argv: list[str], environ: dict[str, str] | None = None) -> Command:
    """Put a node's command together. It rotates the file that it is started with as its standard error."""
    log = layout.log(node)
    logs = {f"{PREFIXES[node.kind]}LOG_FILE": str(log.absolute())}
    return Command(node.name, argv, {**logs, **(environ or {})}, layout.state_dir(node), log)


def authority(node: Node, layout: Layout) -> Command:
    """The authority; it makes the operator's token itself."""
    argv = [
        *(_script("rack-authority"), "--state-dir", str(layout.state_dir(node))),
        *("--host", node.host, "--port", str(node.ports["api"])),
    ]
    return command_of(node, layout, argv=argv)


def sled(node: Node, layout: Layout, *, root_public_key: str, device_bytes: int) -> Command:
    """A sled with one file-backed device, made and formatted on its first start; from its firmware slots if it has
    some."""
    state_dir = layout.state_dir(node)
    options = [
        *("--state-dir", str(state_dir), "--name", node.name),
        *("--listen-host", node.host, "--listen-port", str(node.ports["nvme"])),
        *("--devices", json.dumps([str(state_dir / "device-0")]), "--device-bytes", str(device_bytes)),
        *("--root-public-key", root_public_key),
    ]
    environ = {"SLED_CONTROLLER_CONSOLE": "pty"}  # no flag: firmware in slots may be older than it
    store = staged_sleds.store_of(state_dir)
    if not store.exists():
        return command_of(node, layout, argv=[_script("sled-controller"), *options], environ=environ)
    managers = staged_sleds.managers_file(layout.directory)
    slots = ["--firmware-store", str(store), "--management-hosts", str(managers)]
    argv = [sys.executable, "-m", *staged_sleds.stage_arguments(state_dir), *options, *slots]
    return command_of(node, layout, argv=argv, environ=environ)


def head(node: Node, layout: Layout, *, authority_url: str, join_token: str | None) -> Command:
    """A head; it needs a join token on its first start only."""
    argv = [
        *(_script("head-node"), "--state-dir", str(layout.state_dir(node)), "--name", node.name),
        *("--authority-url", authority_url, "--host", node.host),
        *("--peer-port", str(node.ports["peer"]), "--nbd-port", str(node.ports["nbd"])),
        *("--nvme-port", str(node.ports["nvme"])),
        *("--status-host", node.host, "--status-port", str(node.ports["api"])),
    ]
    environ = {"HEAD_NODE_JOIN_TOKEN": join_token} if join_token else {}
    return command_of(node, layout, argv=argv, environ=environ)
