"""The life of a volume as an operator sees it."""

import asyncio
from typing import Any

import pytest
from kit.volumes import Failover, Volume
from rackctl.errors import ApiRefused, VolumeUnknown
from rackctl.nbd_probe import is_served
from rackctl.ports import HOST
from rackctl.rack import Rack, wait_until
from rackctl.status import status_of

from head_node.export.errors import ExportError
from head_node.export.nbd_client import NbdClient

MIB = 1 << 20


def write_and_read_first_block(rack: Rack, name: str, content: bytes | None) -> bytes:
    """Write the first block when there is something to write; what it holds then."""
    primary = rack.roles(name).primary
    address = (HOST, rack.node(str(primary)).ports["nbd"])

    async def exchange() -> bytes:
        client = await NbdClient.connect([address], name)
        try:
            if content is not None:
                await client.write(0, content)
            return bytes(await client.read(0, 4096))
        finally:
            await client.close()

    return asyncio.run(exchange())


def test_a_deleted_volume_is_gone_and_its_name_free(rack: Rack) -> None:
    rack.create_volume("again", 32 * MIB)
    first = rack.api.volume("again")["volume"]
    assert write_and_read_first_block(rack, "again", b"\x77" * 4096) == b"\x77" * 4096
    rack.delete_volume("again")
    with pytest.raises(VolumeUnknown):
        rack.api.volume("again")
    assert not is_served(HOST, rack.node("head-0").ports["nbd"], "again")

    rack.create_volume("again", 64 * MIB)
    assert rack.api.volume("again")["volume"] != first
    assert write_and_read_first_block(rack, "again", None) == bytes(4096)
    rack.delete_volume("again")


def test_every_head_serves_every_volume(rack: Rack, volume: Volume) -> None:
    for head in ("head-0", "head-1"):
        assert is_served(HOST, rack.node(head).ports["nbd"], volume.name)


def test_an_unknown_export_is_refused(rack: Rack, volume: Volume) -> None:
    address = (HOST, rack.node("head-0").ports["nbd"])

    async def connect() -> None:
        await NbdClient.connect([address], "no-such-volume")

    with pytest.raises(ExportError):
        asyncio.run(connect())


@pytest.mark.parametrize("size_bytes", [0, -1, -4096, 4095, 1 << 70, "1GiB", None, 4096.5])
def test_a_size_that_no_volume_has_is_refused(rack: Rack, size_bytes: object) -> None:
    with pytest.raises(ApiRefused) as refused:
        rack.api.call("POST", "/v1/volumes", {"name": "impossible", "size_bytes": size_bytes})
    assert refused.value.status == 422
    assert "impossible" not in [volume["name"] for volume in rack.api.volumes()]


def test_a_name_that_is_taken_is_refused(rack: Rack, volume: Volume) -> None:
    with pytest.raises(ApiRefused) as refused:
        rack.api.create_volume(volume.name, 32 * MIB)
    assert refused.value.status == 409


def test_more_than_the_sleds_hold_is_refused(rack: Rack) -> None:
    with pytest.raises(ApiRefused) as refused:
        rack.api.create_volume("too-large", 1 << 50)
    assert refused.value.status == 409


def test_a_stranger_is_refused(rack: Rack) -> None:
    from rackctl.api import OperatorApi

    with OperatorApi(rack.state.api_url, "guessed") as api, pytest.raises(ApiRefused) as refused:
        api.volumes()
    assert refused.value.status == 401


def test_a_volume_with_two_members_at_least_stops_and_goes_on_by_itself(rack: Rack) -> None:
    rack.create_volume("pair", 16 * MIB, min_members=2)
    try:
        (secondary,) = rack.wait_members("pair", 2).secondaries
        rack.kill(secondary)
        wait_until(lambda: shown(rack, "pair")["stopped"] or None, "the volume to stop", 30)
        assert not shown(rack, "pair")["exposed"]
        assert "stopped: 1 of at least 2 members answer" in status_of(rack).as_text()
        rack.restart(secondary)
        assert write_and_read_first_block(rack, "pair", b"\x11" * 4096) == b"\x11" * 4096
        assert rack.roles("pair").epoch == 1
        wait_until(lambda: not shown(rack, "pair")["stopped"] or None, "the volume to go on", 30)
    finally:
        Failover(rack).repair()
        rack.delete_volume("pair")


def shown(rack: Rack, name: str) -> dict[str, Any]:
    """What `rackctl status` knows of a volume."""
    return next(volume for volume in status_of(rack).as_json()["volumes"] if volume["name"] == name)
