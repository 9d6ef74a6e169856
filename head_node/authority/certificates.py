"""The authority's TLS certificate: made by a CA of the rack, or given by files; renewed and loaded while it serves.

The CA is made at the first start that needs it and has no end, since heads and tools pin it (RFC 5280, 4.1.2.5: the
year 9999). What it signs lasts 90 days and is made again when a third is left. All begins in the year 2020: a clock
that was wrong when a certificate was made must not make it worthless when the clock is right again.
"""

import contextlib
import fcntl
import ipaddress
import logging
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from head_node.authority import tls
from head_node.authority.errors import AuthorityError
from head_node.authority.tls import CA_FILE
from sled_controller.durable import make_directory, replace_file
from sled_controller.environment import Environment

FOLDER: Final = "tls"
TERM: Final = timedelta(days=90)
RENEW: Final = timedelta(days=30)
"""Before the end."""
WARN: Final = timedelta(days=14)
"""Before the end of a certificate that others renew."""
BEGIN: Final = datetime(2020, 1, 1, tzinfo=UTC)
NO_END: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
LOOK_S: Final = 30.0
_SIOCGIFADDR: Final = 0x8915
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256."""

_log = logging.getLogger(__name__)


class CertificateUnusable(AuthorityError):
    """The certificate or its key cannot be used: put back what fits."""

    slug = "certificate-unusable"


@dataclass(frozen=True, slots=True)
class Given:
    """Files of an operator's own certificate: its chain, its key, and what clients are to pin (None: they know)."""

    certificate: Path
    key: Path
    ca: Path | None


class ServerCertificate:
    """A live `ssl.SSLContext`, which `look` keeps up to date: later connections have the new certificate."""

    def __init__(self, folder: Path, env: Environment, names: Sequence[str], given: Given | None) -> None:
        """`names`: host names and addresses that clients use. Raises CertificateUnusable, OSError."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._folder = folder
        self._env = env
        self._names = sorted(set(names))
        self._given = given
        self._stamps: list[tuple[int, int]] = []
        self._warned = ""
        self.ca: str | None = None
        """What clients are to pin (PEM)."""
        if given is None:
            make_directory(folder / FOLDER, 0o700)
            self._ca_key, self._ca_certificate = self._own_ca()
            self.ca = self._ca_certificate.public_bytes(Encoding.PEM).decode()
            replace_file(folder / CA_FILE, self.ca, 0o644)
            self._keep_own()
            self._load(self._own, self._own)
        else:
            self._take(given)

    @property
    def fingerprint(self) -> bytes | None:
        """SHA-256 of the certificate that clients are to pin."""
        return None if self.ca is None else tls.fingerprint(self.ca)

    @property
    def _own(self) -> Path:
        return self._folder / FOLDER / "server.pem"

    def look(self) -> None:
        """Renew what is near its end, load files that have changed; what cannot be used leaves what was in use."""
        try:
            if self._given is None:
                if self._keep_own():
                    self._load(self._own, self._own)
            elif self._stamps != self._stamps_of(self._given):
                self._take(self._given)
                _log.info("event=tls-certificate-loaded file=%s", self._given.certificate)
            else:
                self._warn(self._given)
        except (OSError, CertificateUnusable) as error:
            if str(error) != self._warned:
                _log.error("event=tls-certificate-unusable error=%s", error)
                self._warned = str(error)

    # own

    def _own_ca(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        path = self._folder / FOLDER / "ca.pem"
        if not path.exists():
            key = self._fresh_key()
            # Two racks' CAs differ by name too: a client that pins both has to find the right one.
            called = f"Palisade rack CA {self._env.entropy.bytes(4).hex()}"
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, called)])
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            built = (
                self._builder(name, name, key, NO_END)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(usage, critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            )
            _write(path, key, built.sign(key, hashes.SHA256()))
            _log.warning("event=tls-ca-made file=%s", self._folder / CA_FILE)
        return _read(path)

    def _keep_own(self) -> bool:
        """Make the server's certificate if there is none, or it is near its end, or it has other names."""
        now = max(self._now(), BEGIN)
        if self._own.exists():
            with contextlib.suppress(CertificateUnusable):
                _, kept = _read(self._own)
                fits = kept.issuer == self._ca_certificate.subject and _names_of(kept) == self._names
                if fits and now < kept.not_valid_after_utc - RENEW <= now + TERM:
                    return False
        key = self._fresh_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Palisade authority")])
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key())
        built = (
            self._builder(self._ca_certificate.subject, name, key, now + TERM)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in self._names]), critical=False)
            .add_extension(authority_id, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = built.sign(self._ca_key, hashes.SHA256())
        _write(self._own, key, certificate)
        _log.info("event=tls-certificate-made ends=%s names=%s", certificate.not_valid_after_utc, self._names)
        return True

    def _now(self) -> datetime:
        seconds = min(self._env.clock.wall_ms() // 1000, int(NO_END.timestamp()) - int(TERM.total_seconds()))
        return datetime.fromtimestamp(seconds, UTC)

    def _fresh_key(self) -> ec.EllipticCurvePrivateKey:
        number = int.from_bytes(self._env.entropy.bytes(48), "big") % (_ORDER - 1) + 1
        return ec.derive_private_key(number, ec.SECP256R1())

    def _builder(
        self, issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePrivateKey, end: datetime
    ) -> x509.CertificateBuilder:
        serial = int.from_bytes(self._env.entropy.bytes(16), "big") | 1
        return x509.CertificateBuilder(issuer, subject, key.public_key(), serial, BEGIN, end)

    # given

    def _take(self, given: Given) -> None:
        """Try the files on a context of their own first: a live one with half a pair would serve nothing."""
        stamps = self._stamps_of(given)
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_into(trial, given.certificate, given.key)
        ca = None
        if given.ca is not None:
            ca = given.ca.read_text(encoding="ascii", errors="replace")
            try:
                tls.fingerprint(ca)
            except ValueError as error:
                raise CertificateUnusable(f"{given.ca}: {error}") from None
        self._load(given.certificate, given.key)
        self.ca, self._stamps, self._warned = ca, stamps, ""
        self._warn(given)

    def _warn(self, given: Given) -> None:
        end = _certificate(given.certificate).not_valid_after_utc
        left = end - self._now()
        if left < WARN and self._warned != str(left.days):
            self._warned = str(left.days)
            _log.warning("event=tls-certificate-ends file=%s days=%d", given.certificate, left.days)

    def _stamps_of(self, given: Given) -> list[tuple[int, int]]:
        files = [path for path in (given.certificate, given.key, given.ca) if path is not None]
        return [(found.st_mtime_ns, found.st_ino) for found in map(os.stat, files)]

    def _load(self, certificate: Path, key: Path) -> None:
        _load_into(self.context, certificate, key)


def own_names(host: str, more: Sequence[str]) -> list[str]:
    """What a certificate is for: where the authority listens (at all addresses: this machine's name and those that its
    interfaces have now) and what an operator says."""
    names = {*more, "localhost", "127.0.0.1", "::1"}
    wildcard = False
    with contextlib.suppress(ValueError):
        wildcard = ipaddress.ip_address(host).is_unspecified
    if not wildcard:
        return sorted(names | {host})
    return sorted(names | {socket.gethostname()} | _own_addresses())


def _own_addresses() -> set[str]:
    """Of the interfaces (netdevice(7), and /proc/net/if_inet6)."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.add(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            found.add(str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))))
    return found


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return sorted(str(name.value) for name in found)


def _write(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """Key and certificate in one file, so that a power cut never leaves halves of two pairs."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(path, (private + certificate.public_bytes(Encoding.PEM)).decode(), 0o600)


def _read(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        data = path.read_bytes()
        key, certificate = load_pem_private_key(data, None), x509.load_pem_x509_certificate(data)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateUnusable(f"{path}: {error}; put it back, or remove it and pin the new CA") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateUnusable(f"{path}: key and certificate are no pair; remove it")
    return key, certificate


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise CertificateUnusable(f"{path}: holds no certificate (PEM): {error}") from None


def _load_into(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise CertificateUnusable(f"{certificate}: cannot be used with the key {key}: {error}") from None
