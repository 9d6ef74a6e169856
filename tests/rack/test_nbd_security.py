"""A volume whose hosts authenticate is not open to strangers by NBD: on no head, and at once."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from kit.certificates import Ca, Certified
from kit.tls_client import TlsClient, trusting
from kit.transmission import request
from rackctl.cli import main
from rackctl.errors import ApiRefused
from rackctl.rack import Rack

from head_node.export import nbd_protocol as nbd
from head_node.export.nbd_protocol import Command, Option, OptionReply
from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.secret import Secret

Tell = Callable[[Coroutine[Any, Any, None]], None]
NQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-4333-8444-555555555555"
K4 = 4096


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory, ca: Ca) -> Iterator[Rack]:
    """Heads that speak TLS with clients that want it, and then want their certificates."""
    own = ca.certify("server", server=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEAD_NODE_NBD_TLS", "allowed")
        patch.setenv("HEAD_NODE_NBD_TLS_CERTIFICATE", str(own.certificate))
        patch.setenv("HEAD_NODE_NBD_TLS_KEY", str(own.key))
        patch.setenv("HEAD_NODE_NBD_TLS_CA", str(ca.certificate))
        patch.setenv("HEAD_NODE_NVME_HOST", "127.0.0.2")
        with Rack.running(tmp_path_factory.mktemp("rack") / "rack") as started:
            yield started


async def connect(rack: Rack, head: str) -> TlsClient:
    node = rack.node(head)
    return await TlsClient.connect((node.host, node.ports["nbd"]))


async def flushed(client: TlsClient) -> None:
    client.send(request(Command.FLUSH, cookie=1))
    await client.take(16)


async def refused(rack: Rack, head: str, volume: str) -> int:
    """What a stranger is told there that asks for the volume."""
    client = await connect(rack, head)
    assert volume not in str(await client.ask(Option.LIST))
    reply, _ = (await client.ask(Option.GO, nbd.pack_string(volume) + b"\0\0"))[-1]
    client.writer.close()
    return reply


async def is_reset(client: TlsClient) -> None:
    with pytest.raises((EOFError, ConnectionError)):
        await client.take(1)


def protect(rack: Rack, volume: str) -> None:
    secret = Secret.generate(SystemEntropy()).text()
    rack.api.set_host_secret(volume, NQN, secret, None, hash_floor="sha256", group_floor="ffdhe2048")


def set_exports(rack: Rack, volume: str, *flags: str) -> None:
    """By the command line, which is for the main thread."""
    assert main(["volume", "set", volume, *flags, "--dir", str(rack.directory)]) == 0


def test_strangers_reach_no_guarded_volume_by_nbd_and_clients_with_certificates_do(
    rack: Rack, ca: Ca, tell: Tell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = ca.certify("client", server=False)
    other = Ca(tmp_path_factory.mktemp("other"), "other").certify("client", server=False)

    async def over_tls(head: str, certificate: Certified) -> TlsClient:
        client = await connect(rack, head)
        shown = str(certificate.certificate), str(certificate.key)
        await client.start_tls(trusting(str(ca.certificate), shown))
        await client.open("guarded")
        return client

    async def story() -> None:
        rack.create_volume("guarded", 64 << 20, hosts=(NQN,))
        roles = rack.wait_members("guarded", 2)
        assert roles.primary is not None
        heads = [roles.primary, *roles.secondaries]
        assert {host for host, _ in rack.paths("guarded").nvme} == {"127.0.0.2"}
        with pytest.raises(ApiRefused, match="NBD"):
            await asyncio.to_thread(protect, rack, "guarded")
        strangers = [await connect(rack, head) for head in heads]
        for stranger in strangers:
            await stranger.open("guarded")
            await flushed(stranger)
        secure = [await over_tls(head, own) for head in heads]
        set_exports(rack, "guarded", "--nbd", "tls")
        for stranger in strangers:
            await is_reset(stranger)
        await asyncio.to_thread(protect, rack, "guarded")
        with pytest.raises(ApiRefused, match="NBD"):
            await asyncio.to_thread(rack.api.set_policy, "guarded", {"nbd": "on"})
        for number, (head, client) in enumerate(zip(heads, secure, strict=True)):
            assert await refused(rack, head, "guarded") == OptionReply.ERR_TLS_REQD
            with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
                await over_tls(head, other)
            data = bytes([number + 1]) * K4
            client.send(request(Command.WRITE, number * K4, data=data))
            await client.take(16)
            client.send(request(Command.READ, number * K4, K4))
            assert (await client.take(16 + K4))[16:] == data
        assert [uri.partition(":")[0] for uri in rack.paths("guarded").nbd_uris] == ["nbds", "nbds"]
        set_exports(rack, "guarded", "--nbd", "off", "--nvme", "off")
        for client in secure:
            await is_reset(client)
        for head in heads:
            assert await refused(rack, head, "guarded") == OptionReply.ERR_UNKNOWN
        paths = rack.paths("guarded")
        assert paths.nbd_uris == []
        assert paths.nvme == ()

    tell(story())
