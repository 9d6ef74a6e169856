"""Which reply keys a head takes for its authority's: root key -> certificate -> reply.

No clock has to be right for it: what expires is counted in this machine's own uptime from when a certificate was first
seen here. The highest number is kept durably, so that a key that was replaced is worth nothing at a head that knows.
"""

from collections.abc import Callable, Mapping
from typing import Final

from head_node.authority import signatures
from head_node.authority.reply_certificate import CERTIFICATE_BYTES, CertificateRefused, ReplyCertificate
from head_node.authority.signatures import SignatureRefused
from sled_controller.environment import Environment

CERTIFICATE_HEADER: Final = "palisade-reply-key"
NS_PER_MS: Final = 1_000_000


class ReplyTrust:
    """`floor` is the highest number that this head has ever seen; `keep` is called with each higher one."""

    def __init__(self, env: Environment, floor: int = 0, keep: Callable[[int], None] = lambda number: None) -> None:
        self._env = env
        self._floor = floor
        self._keep = keep
        self._newest: ReplyCertificate | None = None
        self._raw = ""
        self._since_ns = 0

    def check(
        self, headers: Mapping[str, str], given: signatures.SignatureInput, values: Mapping[str, str], root: bytes
    ) -> None:
        """Return when the reply is signed by a reply key that `root` certified, the newest known here, in its term.

        Raises SignatureRefused.
        """
        certificate = self._certificate(headers.get(CERTIFICATE_HEADER, ""), root)
        signatures.verify(given, values, certificate.public, tag=signatures.REPLY_TAG)

    def _certificate(self, raw: str, root: bytes) -> ReplyCertificate:
        if self._newest is None or raw != self._raw:
            self._take(raw, root)
        assert self._newest is not None
        if self._env.clock.boottime_ns() - self._since_ns > self._newest.term_ms * NS_PER_MS:
            raise SignatureRefused(f"reply key {self._newest.number} has expired; the authority needs a new one")
        return self._newest

    def _take(self, raw: str, root: bytes) -> None:
        try:
            data = bytes.fromhex(raw) if len(raw) == 2 * CERTIFICATE_BYTES else b""
            found = ReplyCertificate.open(data, root)
        except (CertificateRefused, ValueError) as error:
            raise SignatureRefused(f"the reply key is not certified by the rack's root key: {error}") from None
        newest = self._newest
        if found.number < self._floor or (newest is not None and found.number == newest.number and found != newest):
            raise SignatureRefused(f"reply key {found.number} was replaced: this head knows number {self._floor}")
        if newest is None or found.number > newest.number:
            self._since_ns = self._env.clock.boottime_ns()
        if found.number > self._floor:
            self._keep(found.number)
            self._floor = found.number
        self._newest, self._raw = found, raw
