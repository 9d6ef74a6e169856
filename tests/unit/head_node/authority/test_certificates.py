"""The authority's certificate: made, renewed and loaded while it serves; and who is believed by it."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from kit.authority import ManualClock, SeededEntropy

from head_node.authority import tls
from head_node.authority.certificates import CertificateUnusable, Given, ServerCertificate, own_names
from sled_controller.environment import Environment

DAY_MS = 86_400_000
NAMES = ["127.0.0.1", "authority.test"]


def made(
    folder: Path,
    clock: ManualClock | None = None,
    *,
    seed: int = 1,
    names: list[str] = NAMES,
    given: Given | None = None,
) -> ServerCertificate:
    folder.mkdir(exist_ok=True)
    env = Environment(clock or ManualClock(), SeededEntropy(seed))
    return ServerCertificate(folder, env, names, given)


def pinned(folder: Path) -> ssl.SSLContext:
    """What a head trusts that pins the CA of that folder."""
    return tls.PinnedCa(folder / tls.CA_FILE).context


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that says hello over TLS; its port."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def greeted(port: int, context: ssl.SSLContext, name: str = "127.0.0.1") -> x509.Certificate:
    """The certificate that the server shows to one who verifies it. Raises ssl.SSLError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        assert await reader.read() == b"hello"
        return x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
    finally:
        writer.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def test_one_who_pins_the_ca_is_served_and_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        certificate, other = made(tmp_path / "one"), made(tmp_path / "two", seed=2)
        assert certificate.fingerprint != other.fingerprint
        assert certificate.ca is not None
        async with serving(certificate.context) as port:
            await greeted(port, pinned(tmp_path / "one"))
            await greeted(port, pinned(tmp_path / "one"), "authority.test")
            machine = tls.client_context()
            machine.load_default_certs()
            for wrong in (pinned(tmp_path / "two"), machine, tls.client_context()):
                with pytest.raises(ssl.SSLCertVerificationError):
                    await greeted(port, wrong)
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                await greeted(port, pinned(tmp_path / "one"), "elsewhere.test")
            old = pinned(tmp_path / "one")
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await greeted(port, old)

    run(scenario)


def test_private_keys_are_the_owners_alone(tmp_path: Path) -> None:
    made(tmp_path / "one")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "one" / "tls").iterdir()}
    assert modes == {"ca.pem": 0o600, "server.pem": 0o600}
    assert (tmp_path / "one" / "tls").stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in (tmp_path / "one" / tls.CA_FILE).read_text(encoding="ascii")


def test_it_is_renewed_before_its_end_and_loaded_without_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        certificate = made(tmp_path / "one", clock)
        async with serving(certificate.context) as port:
            first = await greeted(port, pinned(tmp_path / "one"))
            for days, renewed in ((59, False), (2, True)):
                clock.advance(days * DAY_MS)
                certificate.look()
                shown = await greeted(port, pinned(tmp_path / "one"))
                assert (shown.serial_number != first.serial_number) is renewed
            assert shown.not_valid_after_utc.timestamp() * 1000 == clock.wall_ms() + 90 * DAY_MS
            assert shown.issuer == first.issuer

    run(scenario)


def test_a_clock_that_was_wrong_leaves_nothing_worthless(tmp_path: Path) -> None:
    """The clock was at 1970, or years ahead, when CA and certificate were made; then it is set right."""

    async def scenario() -> None:
        for number, wrong_ms in enumerate((0, 1_700_000_000_000 + 3650 * DAY_MS, 1 << 62)):
            clock = ManualClock(wrong_ms)
            certificate = made(tmp_path / str(number), clock)
            ca = certificate.ca
            clock.now_ms = 1_700_000_000_000
            certificate.look()
            async with serving(certificate.context) as port:
                shown = await greeted(port, pinned(tmp_path / str(number)))
            assert shown.not_valid_before_utc.timestamp() * 1000 < clock.wall_ms()
            assert shown.not_valid_after_utc.timestamp() * 1000 == clock.wall_ms() + 90 * DAY_MS
            assert certificate.ca == ca, "it is pinned"

    run(scenario)


def test_a_restart_keeps_the_ca_and_a_new_name_makes_a_new_certificate(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = made(tmp_path / "one")
        async with serving(first.context) as port:
            before = await greeted(port, pinned(tmp_path / "one"))
        for names, same in ((NAMES, True), ([*NAMES, "192.0.2.1"], False)):
            again = made(tmp_path / "one", seed=5, names=names)
            assert again.fingerprint == first.fingerprint
            async with serving(again.context) as port:
                shown = await greeted(port, pinned(tmp_path / "one"))
            assert (shown.serial_number == before.serial_number) is same

    run(scenario)


def test_own_files_are_served_loaded_when_they_change_and_kept_when_they_break(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        clock = ManualClock()
        issuer = made(tmp_path / "issuer", clock)
        issued = tmp_path / "issuer" / "tls" / "server.pem"
        chain, key, ca = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "issuer" / tls.CA_FILE

        def install() -> None:
            for path in (chain, key):
                path.with_suffix(".new").write_bytes(issued.read_bytes())
                path.with_suffix(".new").rename(path)

        install()
        served = made(tmp_path / "one", clock, given=Given(chain, key, ca))
        assert served.fingerprint == issuer.fingerprint
        assert not (tmp_path / "one" / "tls").exists()
        async with serving(served.context) as port:
            first = await greeted(port, pinned(tmp_path / "issuer"))
            clock.advance(80 * DAY_MS)
            served.look()
            assert "event=tls-certificate-ends" in caplog.text
            issuer.look()
            install()
            served.look()
            second = await greeted(port, pinned(tmp_path / "issuer"))
            assert second.serial_number != first.serial_number
            for broken in (b"", b"nonsense", (tmp_path / "issuer" / "tls" / "ca.pem").read_bytes()):
                key.write_bytes(broken)
                served.look()
                assert (await greeted(port, pinned(tmp_path / "issuer"))).serial_number == second.serial_number
            key.unlink()
            served.look()
            assert (await greeted(port, pinned(tmp_path / "issuer"))).serial_number == second.serial_number
            assert caplog.text.count("event=tls-certificate-unusable") == 3, "one line for each reason"

    run(scenario)


@pytest.mark.parametrize("broken", ["certificate", "key", "ca"])
def test_own_files_that_cannot_be_used_keep_the_authority_from_starting(tmp_path: Path, broken: str) -> None:
    made(tmp_path / "issuer")
    good, bad = tmp_path / "issuer" / "tls" / "server.pem", tmp_path / "bad"
    bad.write_text("nonsense", encoding="ascii")
    files = {"certificate": good, "key": good, "ca": tmp_path / "issuer" / tls.CA_FILE} | {broken: bad}
    with pytest.raises(CertificateUnusable, match="bad"):
        made(tmp_path / "one", given=Given(**files))


def test_a_ca_that_is_no_pair_is_reported_and_not_replaced(tmp_path: Path) -> None:
    made(tmp_path / "one")
    path = tmp_path / "one" / "tls" / "ca.pem"
    path.write_bytes(b"nonsense")
    with pytest.raises(CertificateUnusable, match=r"ca\.pem"):
        made(tmp_path / "one")
    assert path.read_bytes() == b"nonsense"


def test_a_head_reads_its_pinned_file_again_and_needs_no_clock(tmp_path: Path) -> None:
    """The kit's clock stands in 2023: what it makes is over for the machine, and good for a head."""

    async def scenario() -> None:
        first, second = made(tmp_path / "one"), made(tmp_path / "two", seed=2)
        assert second.ca is not None
        pin = tmp_path / "pinned.crt"
        ca = tls.PinnedCa(pin)
        assert not ca.known
        pin.write_text(str(first.ca), encoding="ascii")
        ca.look()
        assert ca.known
        async with serving(first.context) as one, serving(second.context) as two:
            await greeted(one, ca.context)
            with pytest.raises(ssl.SSLCertVerificationError):
                await greeted(two, ca.context)
            pin.write_text("nonsense", encoding="ascii")
            ca.look()
            await greeted(one, ca.context)
            pin.write_text(str(second.ca), encoding="ascii")
            ca.look()
            await greeted(two, ca.context)
            with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
                await greeted(one, tls.operator_context(tmp_path / "one" / tls.CA_FILE))

    run(scenario)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "::ffff:127.0.0.1")),
        *((host, False) for host in ("0.0.0.0", "::", "192.0.2.1", "10.0.0.1", "fe80::1%eth0", "::ffff:192.0.2.1")),
        *((host, False) for host in ("authority", "localhost.example.org", "127.0.0.1.example.org", "")),
    ],
)
def test_clear_text_is_for_loopback_only(host: str, local: bool) -> None:
    assert tls.is_loopback(host) is local
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    tls.check_url(f"https://{shown}:7400")
    if local:
        tls.check_url(f"http://{shown}:7400")
    else:
        with pytest.raises(tls.ClearTextRefused, match="loopback only"):
            tls.check_url(f"http://{shown}:7400")


def test_a_certificate_names_where_clients_come() -> None:
    assert own_names("192.0.2.1", ["rack.test"]) == ["127.0.0.1", "192.0.2.1", "::1", "localhost", "rack.test"]
    assert {"127.0.0.1", "localhost"} < set(own_names("0.0.0.0", []))
    assert "0.0.0.0" not in own_names("0.0.0.0", [])
