"""Certificates for tests, made on the spot: a CA, a server's and clients', in PEM files."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOST = "127.0.0.1"
YEAR = datetime.timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Certified:
    """Where a certificate and its key lie."""

    certificate: Path
    key: Path


class Ca:
    """A CA whose certificate is `folder/ca-cert.pem`, the name by which libnbd looks for it in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._name = _named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = _begin(self._name, self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.certificate = folder / "ca-cert.pem"
        _write(self.certificate, made.add_extension(usage, True).sign(self._key, hashes.SHA256()))

    def certify(self, name: str, *, server: bool) -> Certified:
        """`folder/NAME-cert.pem` and `folder/NAME-key.pem`, for 127.0.0.1 if it is a server's."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = _begin(_named(name), self._name, key).add_extension(x509.ExtendedKeyUsage([purpose]), False)
        made = made.add_extension(x509.BasicConstraints(False, None), True)
        if server:
            address = x509.IPAddress(ipaddress.ip_address(HOST))
            made = made.add_extension(x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), False)
        paths = Certified(self.folder / f"{name}-cert.pem", self.folder / f"{name}-key.pem")
        _write(paths.certificate, made.sign(self._key, hashes.SHA256()))
        paths.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), now - YEAR, now + YEAR
    )


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
