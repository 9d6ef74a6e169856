"""TLS as the clients of the authority use it: verified by pinned certificates, and where clear text may go instead.

Clear text is for loopback only. An operator's token travels with each of its requests, and replies to heads hold the
layout of the rack.
"""

import contextlib
import hashlib
import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

CA_FILE: Final = "ca.crt"
"""In the authority's state directory, for those who pin it."""
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----\s[^-]{1,65536}-----END CERTIFICATE-----")
_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL."""


class ClearTextRefused(ValueError):
    """Clear text to a network address: use https."""


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be this machine's loopback."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    return False


def check_url(url: str) -> None:
    """Raises ClearTextRefused when a URL sends clear text beyond this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ClearTextRefused(f"{url}: clear text is for loopback only; use https:// and the authority's CA")


def client_context() -> ssl.SSLContext:
    """A context that trusts nothing yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def pin(context: ssl.SSLContext, certificates: str) -> None:
    """Trust these certificates (PEM), and what they sign. Raises ValueError when there is none."""
    try:
        context.load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"holds no certificates (PEM): {error}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


class PinnedCa:
    """The certificates that a head verifies the authority by: a file, read again when it has changed.

    Their time is not checked. A head signs its requests and verifies the signature of every answer, and needs no clock
    that is right; a wrong one must not keep it from renewing its credentials.
    """

    def __init__(self, path: Path | None) -> None:
        """Without a path the machine's own certificates count. Raises OSError, ValueError."""
        self.context = client_context()
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        if path is None:
            self.context.load_default_certs()
        else:
            self.context.verify_flags = ssl.VerifyFlags(self.context.verify_flags | _NO_CHECK_TIME)
            if path.exists():
                self._read(path)

    @property
    def known(self) -> bool:
        """Whether there is something to verify by."""
        return self._path is None or self._stamp is not None

    def look(self) -> None:
        """Read the file again if it has changed; one that cannot be read leaves what was."""
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                if self._stamp != _stamp(self._path):
                    self._read(self._path)

    def _read(self, path: Path) -> None:
        stamp = _stamp(path)
        try:
            pin(self.context, path.read_text(encoding="ascii"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self._stamp = stamp


def operator_context(ca: Path | None) -> ssl.SSLContext:
    """For tools that carry a token: the pinned file and nothing else, or without one the machine's certificates.

    Raises OSError, ValueError."""
    context = client_context()
    if ca is None:
        context.load_default_certs()
        return context
    try:
        pin(context, ca.read_text(encoding="ascii"))
    except ValueError as error:
        raise ValueError(f"{ca}: {error}") from None
    return context


def fingerprint(certificate: str) -> bytes:
    """SHA-256 of the first certificate in a PEM text. Raises ValueError."""
    found = _CERTIFICATE.search(certificate)
    if found is None:
        raise ValueError("holds no certificate (PEM)")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest()


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino
