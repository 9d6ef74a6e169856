"""What a head's NBD port says of TLS: whether it is asked for, and the certificate or keys, from files.

TLS 1.3, and 1.2 with certificates, as nbd-client knows no more: ephemeral keys and AEAD ciphers only, no tickets, no
renegotiation. One group (P-256), so that no client chooses a costlier one.
"""

import logging
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from head_node.errors import TlsKeysUnusable
from head_node.export.interface import Security
from head_node.export.tls_psk import answer_psk
from sled_controller.environment import Entropy

log = logging.getLogger(__name__)

GROUP: Final = "prime256v1"
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all like that."""
HANDSHAKES_MAX: Final = 1024
"""Of one context: OpenSSL keeps the session of each TLS 1.2 handshake in it."""
PSK_BYTES_MIN: Final = 16
PSK_BYTES_MAX: Final = 64
PSK_NAME_BYTES_MAX: Final = 127
"""What OpenSSL takes of either."""
KEYS_FILE_BYTES_MAX: Final = 1 << 20


class TlsPolicy(StrEnum):
    """What a head's NBD port wants of its clients."""

    OFF = "off"
    ALLOWED = "allowed"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Either a certificate (chain) with its key, and a CA if clients have to show certificates; or a file of
    pre-shared keys. All PEM but the last, which has lines of NAME:HEX, as psktool of GnuTLS writes them."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    psk: Path | None = None

    @property
    def given(self) -> tuple[Path, ...]:
        """Those that there are."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca, self.psk) if path is not None)

    def check(self, policy: TlsPolicy) -> None:
        """Raises ValueError when they do not fit together, or not with the policy."""
        if policy is TlsPolicy.OFF:
            if self.given:
                raise ValueError("nbd_tls is off, but keys for it are given: set nbd_tls to allowed or required")
        elif self.psk is not None and len(self.given) > 1:
            raise ValueError("nbd_tls_psk stands alone: leave out nbd_tls_certificate, nbd_tls_key and nbd_tls_ca")
        elif self.psk is None and (self.certificate is None or self.key is None):
            raise ValueError(f"nbd_tls {policy} needs nbd_tls_certificate and nbd_tls_key, or nbd_tls_psk")


class TlsKeys:
    """The files as they are now: read again when one has changed, without a restart."""

    def __init__(self, policy: TlsPolicy, files: TlsFiles, entropy: Entropy) -> None:
        """Raises TlsKeysUnusable."""
        self.policy = policy
        self.security = Security.AUTHENTICATED if files.client_ca or files.psk else Security.ENCRYPTED
        """What a connection is once its handshake is done."""
        self.reloads = 0
        self.problem = ""
        """Why files that have changed are not in use."""
        self._files = files
        self._entropy = entropy
        self._stamps = self._look()
        self._context = self._load()
        self._handshakes = 0

    def context(self) -> ssl.SSLContext:
        """For the next handshake. Files that cannot be used are told of once, and the former ones stay in use."""
        self._handshakes += 1
        try:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                self._renew()
                self.reloads += 1
                log.info("event=nbd_tls_keys_reloaded files=%s", " ".join(map(str, self._files.given)))
            elif self._handshakes > HANDSHAKES_MAX:
                self._renew()
        except TlsKeysUnusable as error:
            if str(error) != self.problem:
                self.problem = str(error)
                log.error("event=nbd_tls_keys_unusable error=%s", error)
        return self._context

    def _renew(self) -> None:
        self._handshakes = 1
        self._context = self._load()
        self.problem = ""

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for path in self._files.given:
            try:
                found = os.stat(path)
            except OSError as error:
                raise TlsKeysUnusable(f"{path}: cannot be read: {error.strerror}") from None
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamps)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        context.set_ciphers(CIPHERS)
        context.set_ecdh_curve(GROUP)
        files = self._files
        if files.psk is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            # A name that is not known gets a key that no client has: so it takes as long, and fails alike.
            unknown = self._entropy.bytes(32)
            answer_psk(context, partial(_key_of, read_psk(files.psk), unknown))
            return context
        assert files.certificate is not None
        assert files.key is not None
        _use(files.certificate, lambda: context.load_cert_chain(str(files.certificate), files.key, _no_password))
        if files.client_ca is not None:
            _use(files.client_ca, lambda: context.load_verify_locations(str(files.client_ca)))
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def read_psk(path: Path) -> dict[bytes, bytes]:
    """The keys of a file by their names: lines of NAME:HEX, empty ones and comments (#) left out.

    Raises TlsKeysUnusable, which repeats no key.
    """
    try:
        if path.stat().st_size > KEYS_FILE_BYTES_MAX:
            raise TlsKeysUnusable(f"{path}: is larger than {KEYS_FILE_BYTES_MAX} bytes")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TlsKeysUnusable(f"{path}: cannot be read: {error.strerror}") from None
    keys: dict[bytes, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        name, _, digits = line.strip().rpartition(b":")
        try:
            key = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            key = b""
        if not 0 < len(name) <= PSK_NAME_BYTES_MAX or not PSK_BYTES_MIN <= len(key) <= PSK_BYTES_MAX:
            raise TlsKeysUnusable(
                f"{path}: line {number} is not NAME:HEX, a name of at most {PSK_NAME_BYTES_MAX} bytes and a key of"
                f" {PSK_BYTES_MIN} to {PSK_BYTES_MAX}"
            )
        keys[name] = key
    if not keys:
        raise TlsKeysUnusable(f"{path}: holds no key")
    return keys


def _key_of(keys: Mapping[bytes, bytes], unknown: bytes, name: bytes) -> bytes:
    return keys.get(name, unknown)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nothing here could ask for its password")


def _use(path: Path, load: Callable[[], None]) -> None:
    """`ssl` says of a file only what is wrong, and of two not which."""
    try:
        load()
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise TlsKeysUnusable(f"{path}: cannot be used, or does not belong to its key: {reason}") from None
    except OSError as error:
        raise TlsKeysUnusable(f"{path}, or its key, cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise TlsKeysUnusable(f"{path}: {error}") from None
