"""What an enrolled head without a part in a volume, or a revoked one, gets of it: nothing, from that moment on."""

import asyncio
import json
import sysconfig
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.relay_link import RelayLink
from rackctl.rack import Rack

from head_node.cluster.errors import LinkClosed
from head_node.cluster.frames import Purpose

pytestmark = pytest.mark.rack(sleds=6, heads=3)
RACKCTL = str(Path(sysconfig.get_path("scripts")) / "rackctl")
Tell = Callable[[Coroutine[Any, Any, None]], None]


def key_of(rack: Rack, name: str) -> Ed25519PrivateKey:
    """As a thief of its state directory has it."""
    text = (rack.directory / "nodes" / name / "head.key").read_text("ascii")
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))


async def revoke(rack: Rack, head: str) -> bytes:
    """What `rackctl node revoke --json` says."""
    command = (RACKCTL, "node", "revoke", head, "--yes", "--json", "--dir", str(rack.directory))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said


def test_only_heads_of_a_volume_relay_to_it_and_only_until_they_are_revoked(rack: Rack, tell: Tell) -> None:
    rack.create_volume("data", 16 << 20)
    roles = rack.wait_members("data", 2)
    record = rack.api.volume("data")
    heads = {head["name"]: head for head in rack.api.nodes()["heads"]}
    (secondary,) = roles.secondaries
    (stranger,) = heads.keys() - {roles.primary, secondary}
    primary, volume = heads[roles.primary], UUID(record["volume"])

    async def link(name: str, purpose: Purpose) -> RelayLink:
        host, port = primary["addresses"]["peer"]
        acceptor = UUID(primary["id"]), bytes.fromhex(primary["public_key"])
        return await RelayLink.open((host, port), acceptor, key_of(rack, name), purpose, volume)

    async def story() -> None:
        for purpose in Purpose:
            refused = await link(stranger, purpose)
            assert "is not assigned to volume" in await refused.ends()
        relay = await link(secondary, Purpose.RELAY)
        relay.begin()
        for lba in range(8):
            relay.write(lba)
        await relay.acknowledges(8)
        assert relay.acknowledged == 8
        done.update(json.loads(await revoke(rack, secondary)))
        for lba in range(8):
            relay.write(lba)
        await relay.ends()
        assert relay.acknowledged == 8
        with pytest.raises(LinkClosed):
            await link(secondary, Purpose.RELAY)

    done: dict[str, Any] = {}
    tell(story())
    assert done["fences"] == {}, "a secondary that never was primary holds no credential"
    assert heads[stranger]["id"] in rack.api.volume("data")["heads"], "the third head takes its place"
    rack.wait_members("data", 2)
