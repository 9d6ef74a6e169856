"""NBD over TLS: what is answered before it, what it carries over, who is let in, and what a handshake may cost."""

import asyncio
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from kit.certificates import Ca, Certified
from kit.export import VOLUME_ID, MemoryDirectory, MemoryVolume, link_pair, one_volume, until
from kit.tls_client import TlsClient, knowing, trusting
from kit.transmission import request

from head_node.errors import TlsKeysUnusable
from head_node.export import nbd_protocol as nbd
from head_node.export import tls
from head_node.export.interface import LocalExport, RelayTransport, RemoteExport, Security
from head_node.export.nbd_protocol import Command, Option, OptionReply
from head_node.export.server import NbdServer
from head_node.export.tls import TlsFiles, TlsKeys, TlsPolicy, read_psk
from head_node.export.tls_transport import HANDSHAKE_BYTES_MAX
from sled_controller.environment import Environment

SIZE = 8 << 20
K4 = 4096
NAME = nbd.pack_string("vol")
ENV = Environment()
RUNNERS = [asyncio.run, uvloop.run]
every_loop = pytest.mark.parametrize("runner", RUNNERS)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def own(ca: Ca) -> Certified:
    return ca.certify("server", server=True)


@pytest.fixture
def files(own: Certified) -> TlsFiles:
    """Without client certificates."""
    return TlsFiles(own.certificate, own.key)


def keys(files: TlsFiles, policy: TlsPolicy = TlsPolicy.REQUIRED) -> TlsKeys:
    return TlsKeys(policy, files, ENV.entropy)


def run(test: Coroutine[Any, Any, None], runner: Any = asyncio.run) -> None:
    runner(asyncio.wait_for(test, 20))


@asynccontextmanager
async def serving(
    tls: TlsKeys | None, directory: MemoryDirectory | None = None, **options: Any
) -> AsyncIterator[tuple[NbdServer, tuple[str, int]]]:
    server = NbdServer(directory or one_volume(MemoryVolume(SIZE)), ENV, tls=tls, **options)
    try:
        yield server, await server.start("127.0.0.1", 0)
    finally:
        await server.close()


async def ended(client: TlsClient) -> bytes:
    """What comes until the connection ends, however it ends."""
    data = b""
    try:
        while True:
            data += await client.take(1)
    except (EOFError, ConnectionError, ssl.SSLError):
        return data


@every_loop
def test_a_client_reads_over_tls_what_it_wrote(runner: Any, files: TlsFiles, ca: Ca) -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(keys(files), one_volume(volume)) as (server, address):
            client = await TlsClient.connect(address)
            await client.start_tls(trusting(str(ca.certificate)))
            await client.open()
            data = os.urandom(3 << 20)
            client.send(request(Command.WRITE, K4, data=data, cookie=1))
            assert nbd.SIMPLE_REPLY.unpack(await client.take(16)) == (nbd.SIMPLE_REPLY_MAGIC, 0, 1)
            client.send(request(Command.READ, K4, len(data), cookie=2) + request(Command.DISC, cookie=3))
            assert nbd.SIMPLE_REPLY.unpack(await client.take(16)) == (nbd.SIMPLE_REPLY_MAGIC, 0, 2)
            assert await client.take(len(data)) == data == volume.data[K4 : K4 + len(data)]
            assert await ended(client) == b""
            await until(lambda: server.counters.connections_open == 0)
            assert (server.counters.tls_handshakes, server.counters.tls_failures) == (1, 0)
            assert server.counters.connections_reset == 0

    run(scenario(), runner)


@every_loop
def test_a_volume_that_is_not_ready_holds_a_tls_client_up_and_loses_nothing(runner: Any, files: TlsFiles) -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(keys(files), one_volume(volume)) as (_, address):
            client = await TlsClient.connect(address)
            await client.start_tls(trusting(None))
            await client.open()
            volume.is_ready = False
            count = SIZE // (1 << 16)
            for number in range(count):
                payload = bytes([number % 255 + 1]) * (1 << 16)
                client.send(request(Command.WRITE, number << 16, data=payload, cookie=number))
            await until(lambda: volume.waiters)
            assert not any(volume.data)
            volume.become_ready()
            cookies = [nbd.SIMPLE_REPLY.unpack(await client.take(16))[2] for _ in range(count)]
            assert sorted(cookies) == list(range(count))
            assert [volume.data[number << 16] for number in range(count)] == [n % 255 + 1 for n in range(count)]
            client.writer.close()

    run(scenario(), runner)


@every_loop
@pytest.mark.parametrize("says_so", [True, False])
def test_a_tls_client_that_closes_its_side_gets_the_answers_to_what_was_begun(
    runner: Any, says_so: bool, files: TlsFiles
) -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(keys(files), one_volume(volume)) as (server, address):
            client = await TlsClient.connect(address)
            await client.start_tls(trusting(None))
            await client.open()
            volume.hold = True
            client.send(request(Command.WRITE, 0, data=b"x" * K4, cookie=7))
            await until(lambda: server.counters.requests == 1)
            if says_so:
                client.close_tls()
            else:
                client.writer.write_eof()
            await client.writer.drain()
            volume.release()
            assert nbd.SIMPLE_REPLY.unpack(await client.take(16))[2] == 7
            assert await ended(client) == b""

    run(scenario(), runner)


def test_where_tls_is_required_nothing_else_is_answered_before_it(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files)) as (_, address):
            client = await TlsClient.connect(address)
            context = NAME + nbd.U32.pack(1) + nbd.pack_string("base:allocation")
            for option, payload in (
                (Option.LIST, b""), (Option.INFO, NAME + b"\0\0"), (Option.GO, NAME + b"\0\0"),
                (Option.STRUCTURED_REPLY, b""), (Option.SET_META_CONTEXT, context),
                (Option.LIST_META_CONTEXT, context), (Option.PEEK_EXPORT, b""), (Option.EXTENDED_HEADERS, b""),
                (12345, b"?"), (Option.GO, b"malformed"), (Option.LIST, b"x" * 40_000),
            ):  # fmt: skip
                ((reply, text),) = await client.ask(option, payload)
                assert reply == OptionReply.ERR_TLS_REQD, (option, text)
                assert b"vol" not in text
            assert (await client.ask(Option.ABORT))[0][0] == OptionReply.ACK
            client = await TlsClient.connect(address)
            client.send(nbd.option_request(Option.EXPORT_NAME, b"vol"))
            assert await ended(client) == b""

    run(scenario())


@pytest.mark.parametrize(
    "injected",
    [
        nbd.option_request(Option.LIST),
        nbd.option_request(Option.STRUCTURED_REPLY),
        nbd.option_request(Option.GO, NAME + b"\0\0"),
        nbd.option_request(Option.LIST)[:7],
        b"\0",
    ],
)
def test_nothing_that_came_in_plain_behind_starttls_enters_tls(injected: bytes, files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files)) as (server, address):
            client = await TlsClient.connect(address)
            client.send(nbd.option_request(Option.STARTTLS) + injected)
            assert await ended(client) == b""
            assert server.counters.negotiations_failed == 1
            late = await TlsClient.connect(address)  # in a segment of its own: it can only be taken for TLS
            assert await late.ask(Option.STARTTLS) == [(OptionReply.ACK, b"")]
            late.send(injected.ljust(16, b"\0"))
            assert len(await ended(late)) < 16  # an alert at most
            assert (server.counters.tls_handshakes, server.counters.tls_failures) == (0, 1)

    run(scenario())


def test_what_was_agreed_in_plain_is_forgotten_in_tls(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files, TlsPolicy.ALLOWED)) as (_, address):
            client = await TlsClient.connect(address)
            assert await client.ask(Option.STRUCTURED_REPLY) == [(OptionReply.ACK, b"")]
            context = NAME + nbd.U32.pack(1) + nbd.pack_string("base:allocation")
            assert len(await client.ask(Option.SET_META_CONTEXT, context)) == 2
            await client.start_tls(trusting(None))
            ((reply, _),) = await client.ask(Option.SET_META_CONTEXT, context)
            assert reply == OptionReply.ERR_INVALID  # as structured replies are not agreed upon
            await client.open()
            client.send(request(Command.READ, 0, K4, cookie=5))
            assert nbd.SIMPLE_REPLY.unpack(await client.take(16)) == (nbd.SIMPLE_REPLY_MAGIC, 0, 5)
            client.writer.close()

    run(scenario())


def test_starttls_where_there_is_none_or_twice_or_malformed(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(None) as (_, address):
            client = await TlsClient.connect(address)
            assert (await client.ask(Option.STARTTLS))[0][0] == OptionReply.ERR_POLICY
            await client.open()
            client.writer.close()
        async with serving(keys(files)) as (_, address):
            client = await TlsClient.connect(address)
            assert (await client.ask(Option.STARTTLS, b"?"))[0][0] == OptionReply.ERR_INVALID
            await client.start_tls(trusting(None))
            assert (await client.ask(Option.STARTTLS))[0][0] == OptionReply.ERR_INVALID
            assert await client.ask(Option.LIST) == [(OptionReply.SERVER, NAME), (OptionReply.ACK, b"")]
            client.writer.close()

    run(scenario())


def test_a_client_shows_a_certificate_of_the_ca_where_one_is_set(files: TlsFiles, ca: Ca, tmp_path: Path) -> None:
    async def scenario() -> None:
        good, other = ca.certify("client", server=False), Ca(tmp_path, "other").certify("client", server=False)
        async with serving(keys(replace(files, client_ca=ca.certificate))) as (server, address):
            for shown in (None, other, files):
                client = await TlsClient.connect(address)
                pair = None if shown is None else (str(shown.certificate), str(shown.key))
                with suppress(ssl.SSLError, ConnectionError):  # a client learns of it when it reads
                    await client.start_tls(trusting(None, pair))
                assert await ended(client) == b""
            assert (server.counters.tls_handshakes, server.counters.tls_failures) == (0, 3)
            assert "certificate" in str(server.tls.status()["last_failure"])
            client = await TlsClient.connect(address)
            await client.start_tls(trusting(str(ca.certificate), (str(good.certificate), str(good.key))))
            await client.open()
            client.writer.close()

    run(scenario())


@every_loop
def test_a_client_with_a_pre_shared_key_is_authenticated_and_others_fail_alike(runner: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        path, key, fresh = tmp_path / "keys.psk", os.urandom(32), os.urandom(64)
        path.write_text(f"alice:{key.hex()}\n", encoding="ascii")
        directory = MemoryDirectory({"vol": LocalExport(VOLUME_ID, MemoryVolume(SIZE), Security.AUTHENTICATED)})
        async with serving(keys(TlsFiles(psk=path)), directory) as (server, address):
            said = set()
            for wrong in (knowing(b"alice", os.urandom(32)), knowing(b"bob", key), trusting(None)):
                client = await TlsClient.connect(address)
                with pytest.raises(ssl.SSLError) as failed:
                    await client.start_tls(wrong)
                said.add((failed.value.reason, str(server.tls.status()["last_failure"]).rpartition(": ")[2]))
            assert len(said) == 2, said  # without a key it is another failure than with a wrong key or name
            assert (server.counters.tls_handshakes, server.counters.tls_failures) == (0, 3)
            client = await TlsClient.connect(address)
            await client.start_tls(knowing(b"alice", key))
            await client.open()
            path.write_text(f"alice:{fresh.hex()}\nbob:{key.hex()}\n", encoding="ascii")
            for name, known in ((b"alice", fresh), (b"bob", key)):
                late = await TlsClient.connect(address)
                await late.start_tls(knowing(name, known))
                late.writer.close()
            client.send(request(Command.FLUSH, cookie=9))
            assert (await client.take(16))[-1] == 9

    run(scenario(), runner)


@pytest.mark.parametrize("needed", [Security.ENCRYPTED, Security.AUTHENTICATED])
def test_a_volume_for_secure_connections_is_kept_from_others(needed: Security, files: TlsFiles) -> None:
    async def scenario() -> None:
        directory = MemoryDirectory({"vol": LocalExport(VOLUME_ID, MemoryVolume(SIZE), needed)})
        async with serving(None, directory) as (_, address):
            client = await TlsClient.connect(address)
            assert (await client.ask(Option.GO, NAME + b"\0\0"))[0][0] == OptionReply.ERR_POLICY
            assert await client.ask(Option.LIST) == [(OptionReply.ACK, b"")]
        async with serving(keys(files, TlsPolicy.ALLOWED), directory) as (_, address):
            client = await TlsClient.connect(address)
            for option in (Option.INFO, Option.GO):
                assert (await client.ask(option, NAME + b"\0\0"))[0][0] == OptionReply.ERR_TLS_REQD
            assert await client.ask(Option.LIST) == [(OptionReply.ACK, b"")]
            client.send(nbd.option_request(Option.EXPORT_NAME, b"vol"))
            assert await ended(client) == b""
            client = await TlsClient.connect(address)
            await client.start_tls(trusting(None))
            found = (await client.ask(Option.GO, NAME + b"\0\0"))[-1][0]
            assert found == (OptionReply.ACK if needed is Security.ENCRYPTED else OptionReply.ERR_POLICY)

    run(scenario())


@pytest.mark.parametrize("path", ["direct", "relayed"])
def test_a_restriction_ends_the_connections_that_are_less_and_no_others(path: str, files: TlsFiles) -> None:
    async def scenario() -> None:
        export, asked = LocalExport(VOLUME_ID, MemoryVolume(SIZE)), [Security.PLAIN]
        primary = NbdServer(MemoryDirectory({"vol": export}), ENV, tls=keys(files, TlsPolicy.ALLOWED))

        async def dial() -> RelayTransport:
            near, far = link_pair()
            primary.accept_relay(far, replace(export, security=asked[-1]))
            return near

        relay = NbdServer(
            MemoryDirectory({"vol": RemoteExport(VOLUME_ID, SIZE, dial)}), ENV, tls=keys(files, TlsPolicy.ALLOWED)
        )
        try:
            server = primary if path == "direct" else relay
            address = await server.start("127.0.0.1", 0)
            plain, secure = await TlsClient.connect(address), await TlsClient.connect(address)
            await secure.start_tls(trusting(None))
            for client in (plain, secure):
                await client.open()
                client.send(request(Command.FLUSH, cookie=1))
                await client.take(16)
            asked.append(Security.ENCRYPTED)  # the primary alone has heard of it
            primary.restrict({VOLUME_ID: Security.ENCRYPTED})
            assert await ended(plain) == b""
            secure.send(request(Command.FLUSH, cookie=2))
            assert (await secure.take(16))[-1] == 2
            if path == "relayed":  # granted by a head that has not heard of it, ended by the primary
                again = await TlsClient.connect(address)
                await again.open()
                assert await ended(again) == b""
            primary.restrict({VOLUME_ID: Security.ENCRYPTED})
            secure.send(request(Command.FLUSH, cookie=3))
            assert (await secure.take(16))[-1] == 3
            server.restrict({VOLUME_ID: None})
            assert await ended(secure) == b""
        finally:
            await relay.close()
            await primary.close()

    run(scenario())


def test_keys_that_change_count_for_the_next_handshake(ca: Ca, tmp_path: Path) -> None:
    async def scenario() -> None:
        other = Ca(tmp_path / "other", "other")
        names = ("server-cert.pem", "server-key.pem")
        ca.certify("server", server=True)
        used = TlsFiles(*(Path(shutil.copy(ca.folder / name, tmp_path)) for name in names))
        other.certify("server", server=True)
        async with serving(keys(used)) as (server, address):
            client = await TlsClient.connect(address)
            await client.start_tls(trusting(str(ca.certificate)))
            for name in names:
                shutil.copy(other.folder / name, tmp_path)
                late = await TlsClient.connect(address)  # in between, the pair does not fit: the former one counts
                await late.start_tls(trusting(str((ca if name == names[0] else other).certificate)))
                assert bool(server.tls.status()["keys_problem"]) is (name == names[0])
                late.writer.close()
            (tmp_path / names[0]).unlink()
            late = await TlsClient.connect(address)
            await late.start_tls(trusting(str(other.certificate)))
            assert "cannot be read" in str(server.tls.status()["keys_problem"])
            await client.open()  # who is connected stays

    run(scenario())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "holds no key"),
        ("alice", "line 1"),
        ("alice:xyz", "line 1"),
        ("# two\nalice:" + "00" * 15, "line 2"),
        ("a" * 128 + ":" + "00" * 32, "line 1"),
        (":" + "00" * 32, "line 1"),
        ("alice:" + "00" * 65, "line 1"),
    ],
)
def test_a_psk_file_that_is_none_is_refused_without_its_keys(text: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.psk"
    path.write_text(text, encoding="ascii")
    with pytest.raises(TlsKeysUnusable, match=wrong) as refused:
        keys(TlsFiles(psk=path))
    assert "0000" not in str(refused.value)


def test_a_psk_file_has_a_name_and_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.psk"
    path.write_text("# clients\n\nalice:" + "01" * 32 + "\nb:c:" + "FF" * 16 + "\n", encoding="ascii")
    assert read_psk(path) == {b"alice": b"\x01" * 32, b"b:c": b"\xff" * 16}


@pytest.mark.parametrize("kind", ["certificate", "key", "client_ca", "psk"])
def test_a_file_that_is_not_there_or_nonsense_is_named(kind: str, files: TlsFiles, tmp_path: Path) -> None:
    for path in (tmp_path / "away.pem", tmp_path / "nonsense.pem"):
        if path.name == "nonsense.pem":
            path.write_text("nonsense", encoding="ascii")
        given = TlsFiles(psk=path) if kind == "psk" else replace(files, **{kind: path})
        with pytest.raises(TlsKeysUnusable) as refused:
            keys(given)
        shown = str(given.certificate if kind == "key" and path.exists() else path)
        assert shown in str(refused.value)


def test_a_handshake_is_bounded_in_time(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files), option_s_max=0.05) as (server, address):
            client = await TlsClient.connect(address)
            assert await client.ask(Option.STARTTLS) == [(OptionReply.ACK, b"")]
            assert await ended(client) == b""
            assert server.counters.negotiations_timed_out == 1

    run(scenario())


def test_a_handshake_is_bounded_in_memory(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files)) as (server, address):
            client = await TlsClient.connect(address)
            assert await client.ask(Option.STARTTLS) == [(OptionReply.ACK, b"")]
            hello = bytes.fromhex("01018000").ljust(0x18004, b"\0")  # 96 KiB, which OpenSSL would wait for
            for at in range(0, HANDSHAKE_BYTES_MAX + 1, 16384):
                client.send(bytes.fromhex("1603014000") + hello[at : at + 16384])
            assert await ended(client) == b""
            assert server.counters.tls_failures == 1
            assert f"more than {HANDSHAKE_BYTES_MAX} bytes" in str(server.tls.status()["last_failure"])

    run(scenario())


@pytest.mark.filterwarnings("ignore:.*TLSv1:DeprecationWarning")
def test_what_tls_1_2_had_that_was_weak_or_costly_is_not_to_be_had(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files)) as (server, address):
            for ciphers, version in (
                ("AES128-GCM-SHA256:@SECLEVEL=0", "1_2"), ("DHE:@SECLEVEL=0", "1_2"), ("ECDHE+SHA256", "1_2"),
                ("ALL:@SECLEVEL=0", "1_1"),
            ):  # fmt: skip
                old = trusting(None)
                old.minimum_version = ssl.TLSVersion.TLSv1
                old.maximum_version = ssl.TLSVersion[f"TLSv{version}"]
                old.set_ciphers(ciphers)
                client = await TlsClient.connect(address)
                with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure|version"):
                    await client.start_tls(old)
            assert (server.counters.tls_handshakes, server.counters.tls_failures) == (0, 4)
            good = trusting(None)
            good.maximum_version = ssl.TLSVersion.TLSv1_2
            client = await TlsClient.connect(address)
            await client.start_tls(good)
            assert (await client.ask(Option.LIST))[-1][0] == OptionReply.ACK
            client.writer.close()

    run(scenario())


def test_sessions_that_openssl_keeps_are_bounded(files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKES_MAX", 3)

    async def scenario() -> None:
        async with serving(found := keys(files)) as (_, address):
            old = trusting(None)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            seen = set[int]()
            contexts = []
            for _ in range(8):
                client = await TlsClient.connect(address)
                await client.start_tls(old)
                client.writer.close()
                contexts.append(found._context)
                seen.add(found._context.session_stats()["number"])
            assert max(seen) <= 3
            assert len(set(map(id, contexts))) == 3
            assert found.reloads == 0

    run(scenario())

    run(scenario())


def test_no_client_chooses_a_costlier_group(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files)) as (server, address):
            for group in ("secp521r1", "secp384r1", "X448"):
                costly = trusting(None)
                costly.set_ecdh_curve(group)
                client = await TlsClient.connect(address)
                with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                    await client.start_tls(costly)
            assert (server.counters.tls_handshakes, server.counters.tls_failures) == (0, 3)

    run(scenario())


def test_a_plain_connection_costs_nothing_of_tls(files: TlsFiles) -> None:
    """The socket of a client that did not ask for TLS is the connection's own, whatever the head has."""

    async def scenario() -> None:
        async with serving(keys(files, TlsPolicy.ALLOWED)) as (server, address):
            client = await TlsClient.connect(address)
            await client.open()
            (connection,) = server._connections
            assert type(connection._transport).__module__.partition(".")[0] == "asyncio"
            client.writer.close()

    run(scenario())


def test_bytes_of_a_handshake_that_come_one_by_one_do(files: TlsFiles) -> None:
    async def scenario() -> None:
        async with serving(keys(files)) as (_, address):
            client = await TlsClient.connect(address)
            write = client.writer.write
            client.writer.write = lambda data: [write(bytes([one])) for one in data]  # type: ignore[method-assign,assignment,return-value]
            client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await client.start_tls(trusting(None))
            assert (await client.ask(Option.LIST))[-1][0] == OptionReply.ACK
            client.writer.close()

    run(scenario())
