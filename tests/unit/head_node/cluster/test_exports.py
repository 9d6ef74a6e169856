"""By what clients reach a volume is said in its record: the primary and heads that relay obey, also at once."""

import asyncio
import ssl
from dataclasses import replace
from typing import NoReturn
from uuid import UUID

import pytest
from kit.cluster import VOLUME, KitHead, Rack, until, with_rack
from kit.tls_client import TlsClient
from kit.transmission import request

from head_node.cluster.volume_controller import VolumeController
from head_node.export import nbd_protocol as nbd
from head_node.export.interface import Security
from head_node.export.nbd_protocol import Command, Option, OptionReply
from head_node.store.records import NbdExport

GO_PAYLOAD_END = b"\0\0"


async def connected(rack: Rack) -> list[TlsClient]:
    """A client of the volume at each head, the primary's first; both have been answered."""
    clients = []
    for head in rack.heads:
        client = await TlsClient.connect(await head.head.nbd.start("127.0.0.1", 0))
        await client.open(rack.record.name)
        client.send(request(Command.FLUSH, cookie=1))
        await client.take(16)
        clients.append(client)
    return clients


async def is_reset(client: TlsClient) -> bool:
    try:
        await client.take(1)
    except (EOFError, ConnectionError, ssl.SSLError):
        return True
    return False


async def refusal(rack: Rack, head: KitHead) -> tuple[int, list[str]]:
    """What a client in plain is told there that asks for the volume, and the names that it sees."""
    server = head.head.nbd._server
    assert server is not None
    client = await TlsClient.connect(server.sockets[0].getsockname())
    names = [text[4:].decode() for reply, text in await client.ask(Option.LIST) if reply == OptionReply.SERVER]
    ask = nbd.pack_string(rack.record.name) + GO_PAYLOAD_END
    reply, _ = (await client.ask(Option.GO, ask))[-1]
    client.writer.close()
    return reply, names


@pytest.mark.parametrize(
    ("exported", "told"), [(NbdExport.OFF, OptionReply.ERR_UNKNOWN), (NbdExport.TLS, OptionReply.ERR_POLICY)]
)
def test_clients_of_a_volume_that_is_not_exported_to_them_are_reset_on_every_head(
    exported: NbdExport, told: OptionReply
) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        clients = await connected(rack)
        rack.authority.put(replace(rack.record, nbd=exported, version=rack.record.version + 1))
        assert [await is_reset(client) for client in clients] == [True, True]
        for head in (first, second):
            assert await refusal(rack, head) == (told, [])
        assert first.serving
        rack.authority.put(replace(rack.record, nbd=NbdExport.ON, version=rack.record.version + 1))
        await until(lambda: first.head.directory.names(Security.PLAIN) == [rack.record.name])
        assert await refusal(rack, first) == (OptionReply.ACK, [rack.record.name])

    with_rack(scenario)


def test_a_host_secret_ends_nbd_clients_that_have_not_authenticated_whatever_the_record_says() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        clients = await connected(rack)
        rack.authority.secrets[VOLUME] = b"this head cannot read them"
        rack.authority.touch()
        assert [await is_reset(client) for client in clients] == [True, True]
        assert rack.record.nbd is NbdExport.ON
        for head in (first, second):
            assert await refusal(rack, head) == (OptionReply.ERR_POLICY, [])
            assert head.head.directory.names(Security.ENCRYPTED) == []
            assert head.head.directory.names(Security.AUTHENTICATED) == [rack.record.name]

    with_rack(scenario)


def test_a_relay_for_a_volume_that_the_primary_does_not_export_is_refused() -> None:
    """A head that has not heard of it asks in vain."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        (at_second,) = (await connected(rack))[1:]
        seen = second.api.gates["view"] = asyncio.Event()
        rack.authority.put(replace(rack.record, nbd=NbdExport.OFF, version=rack.record.version + 1))
        assert await is_reset(at_second)
        assert second.controller.record.nbd is NbdExport.ON
        server = second.head.nbd._server
        assert server is not None
        again = await TlsClient.connect(server.sockets[0].getsockname())
        await again.open(rack.record.name)
        assert await is_reset(again)
        assert first.head.nbd.counters.relays_open == 0
        seen.set()

    with_rack(scenario)


def test_a_volume_that_is_not_exported_by_nvme_has_no_subsystem() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await until(lambda: all(VOLUME in head.head.nvme.subsystems for head in rack.heads))
        rack.authority.put(replace(rack.record, nvme=False, version=rack.record.version + 1))
        await until(lambda: not any(VOLUME in head.head.nvme.subsystems for head in rack.heads))
        assert first.head.nvme._offers == second.head.nvme._offers == ()
        rack.authority.put(replace(rack.record, nvme=True, version=rack.record.version + 1))
        await until(lambda: VOLUME in first.head.nvme.subsystems)
        assert first.head.nvme.subsystems[VOLUME].volume is first.engine.served

    with_rack(scenario)


class Unlisted(dict[UUID, VolumeController]):
    """Controllers that are looked up one by one: who goes through all of them fails."""

    def values(self) -> NoReturn:
        raise AssertionError("all volumes were gone through")

    __iter__ = items = keys = values


def test_an_option_of_a_stranger_does_not_go_through_all_volumes() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        known = first.head.controllers
        directory = first.head.directory
        directory._controllers = Unlisted(known)
        assert directory.find("nothing") is None
        assert directory.find(rack.record.name) == directory.find("")
        assert directory.names(Security.PLAIN) == [rack.record.name]

    with_rack(scenario)
