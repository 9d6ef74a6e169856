"""NBD over TLS with the programs of clients: libnbd, qemu and nbd-client, by certificate and by pre-shared key."""

import asyncio
import filecmp
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
from kit.certificates import Ca
from kit.export import MemoryVolume, one_volume
from kit.peers import TIMEOUT_S, random_file, require

from head_node.export.server import NbdServer
from head_node.export.tls import TlsFiles, TlsKeys, TlsPolicy
from sled_controller.environment import Environment

SIZE = 16 << 20
ENV = Environment()
CREDENTIALS = ("x509", "psk")


@dataclass(frozen=True, slots=True)
class Port:
    """A server, and what clients need for it."""

    server: NbdServer
    host: str
    port: int
    folder: Path
    by_psk: bool

    def uri(self, scheme: str = "nbds", name: str = "alice") -> str:
        """For libnbd."""
        if self.by_psk:
            return f"{scheme}://{name}@{self.host}:{self.port}/vol?tls-psk-file={self.folder / 'keys.psk'}"
        return f"{scheme}://{self.host}:{self.port}/vol?tls-certificates={self.folder}"

    @property
    def qemu_credentials(self) -> str:
        """qemu's object `tls0`."""
        more = "tls-creds-psk,username=alice" if self.by_psk else "tls-creds-x509,verify-peer=yes"
        return f"{more},id=tls0,dir={self.folder},endpoint=client"

    @property
    def qemu_image(self) -> str:
        return f"driver=nbd,host={self.host},port={self.port},export=vol,tls-creds=tls0"


@asynccontextmanager
async def serving(folder: Path, credentials: str, policy: TlsPolicy = TlsPolicy.REQUIRED) -> AsyncIterator[Port]:
    """One volume, for clients with a certificate of the CA, or with alice's key."""
    if credentials == "psk":
        (folder / "keys.psk").write_text("alice:" + "5a" * 32 + "\nmallory:" + "00" * 32 + "\n", encoding="ascii")
        (folder / "server.psk").write_text("alice:" + "5a" * 32 + "\n", encoding="ascii")
        files = TlsFiles(psk=folder / "server.psk")
    else:
        ca = Ca(folder)
        own = ca.certify("server", server=True)
        ca.certify("client", server=False)
        files = TlsFiles(own.certificate, own.key, ca.certificate)
    server = NbdServer(one_volume(MemoryVolume(SIZE)), ENV, tls=TlsKeys(policy, files, ENV.entropy))
    host, port = await server.start("127.0.0.1", 0)
    try:
        yield Port(server, host, port, folder, credentials == "psk")
    finally:
        await server.close()


async def ended(program: str, *arguments: str | Path) -> tuple[int, str]:
    """Exit status and output of a program."""
    child = await asyncio.create_subprocess_exec(
        require(program), *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(child.communicate(), TIMEOUT_S)
    assert child.returncode is not None
    return child.returncode, said.decode()


async def run(program: str, *arguments: str | Path) -> str:
    status, said = await ended(program, *arguments)
    assert status == 0, said
    return said


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(story())


@pytest.mark.parametrize("credentials", CREDENTIALS)
def test_libnbd_copies_in_and_out_over_tls(credentials: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, credentials) as port:
            source = random_file(tmp_path / "in", SIZE)
            assert "newstyle-fixed with TLS, using structured packets" in await run("nbdinfo", port.uri())
            await run("nbdcopy", "--flush", source, port.uri())
            await run("nbdcopy", port.uri(), tmp_path / "out")
            assert filecmp.cmp(source, tmp_path / "out", shallow=False)
            assert "vol" in await run("nbdinfo", "--list", port.uri())
            assert port.server.counters.tls_failures == 0

    play(story)


@pytest.mark.parametrize("credentials", CREDENTIALS)
def test_qemu_converts_in_and_out_over_tls(credentials: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, credentials) as port:
            source, copy = random_file(tmp_path / "in", SIZE), tmp_path / "out"
            tls = ("--object", port.qemu_credentials)
            await run("qemu-img", "convert", *tls, "-n", "--target-image-opts", "-f", "raw", source, port.qemu_image)
            await run("qemu-img", "convert", *tls, "--image-opts", "-O", "raw", port.qemu_image, copy)
            assert filecmp.cmp(source, copy, shallow=False)
            listed = await run("qemu-nbd", "--list", *tls, "--tls-creds", "tls0", "-b", port.host, "-p", str(port.port))
            assert "export: 'vol'" in listed
            assert port.server.counters.tls_failures == 0

    play(story)


@pytest.mark.parametrize("credentials", CREDENTIALS)
def test_a_client_without_what_is_asked_fails_at_once(credentials: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, credentials) as port:
            plain = await ended("nbdinfo", f"nbd://{port.host}:{port.port}/vol")
            wrong = f"nbds://{port.host}:{port.port}/vol"  # the system's own certificates, which are none of ours
            stranger = await ended("nbdinfo", port.uri(name="mallory") if port.by_psk else wrong)
            qemu = await ended("qemu-img", "info", "--image-opts", f"driver=nbd,host={port.host},port={port.port}")
            for status, said in (plain, stranger, qemu):
                assert status != 0, said
            assert "TLS" in qemu[1]

    play(story)


def test_a_client_that_would_like_tls_gets_it_or_goes_on_without(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, "x509", TlsPolicy.ALLOWED) as port:
            assert "with TLS" in await run("nbdinfo", port.uri())
            assert "without TLS" in await run("nbdinfo", f"nbd://{port.host}:{port.port}/vol")
        server = NbdServer(one_volume(MemoryVolume(SIZE)), ENV)
        host, number = await server.start("127.0.0.1", 0)
        status, said = await ended("nbdinfo", f"nbds://{host}:{number}/vol?tls-certificates={tmp_path}")
        assert status != 0, said
        await server.close()

    play(story)


def test_nbd_client_lists_what_it_is_told_to(tmp_path: Path) -> None:
    """It needs the kernel's module for more; negotiation is its own."""

    async def story() -> None:
        async with serving(tmp_path, "x509") as port:
            files = [("-cacertfile", "ca-cert.pem"), ("-certfile", "client-cert.pem"), ("-keyfile", "client-key.pem")]
            tls = [part for flag, name in files for part in (flag, tmp_path / name)]
            said = await ended("nbd-client", "-l", port.host, str(port.port), *tls, "-tlshostname", "localhost")
            assert port.server.counters.tls_handshakes == 1, (said, port.server.tls.status())
            assert "vol" in said[1]

    play(story)
