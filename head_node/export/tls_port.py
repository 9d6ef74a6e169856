"""TLS at the NBD port of a head: starts it on connections, counts, and says how it goes."""

import asyncio
import logging
from collections.abc import Callable

from head_node.bursts import Burst
from head_node.export.counters import NbdCounters
from head_node.export.handshake_turns import HandshakeTurns
from head_node.export.interface import Security
from head_node.export.tls import TlsKeys, TlsPolicy
from head_node.export.tls_transport import TlsTransport
from sled_controller.environment import Clock

log = logging.getLogger(__name__)


class TlsPort:
    """Shared by the connections of a server; without keys there is no TLS."""

    def __init__(self, keys: TlsKeys | None, clock: Clock, counters: NbdCounters) -> None:
        self.policy = TlsPolicy.OFF if keys is None else keys.policy
        self._keys = keys
        self._turns = HandshakeTurns(clock)
        self._counters = counters
        self._last_failure = ""
        self._failures = Burst(log, "nbd_tls_failed", "see_last_failure_in_status")

    def start(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.BufferedProtocol,
        on_ready: Callable[[Security], None],
        on_failed: Callable[[str], None],
    ) -> TlsTransport:
        """The transport that takes the place of a connection's from here on. `on_ready` is called with what the
        connection is once the handshake is done, `on_failed` when TLS breaks, then or later."""
        keys = self._keys
        assert keys is not None

        def ready() -> None:
            self._counters.tls_handshakes += 1
            on_ready(keys.security)

        def failed(reason: str) -> None:
            # Any stranger can bring that about: it is told of in numbers, and by the last reason.
            self._counters.tls_failures += 1
            self._last_failure = f"{transport.get_extra_info('peername')}: {reason}"
            self._failures.add()
            on_failed(reason)

        return TlsTransport(transport, protocol, keys.context(), self._turns, on_ready=ready, on_failed=failed)

    def status(self) -> dict[str, object]:
        """For the head's pages."""
        shown: dict[str, object] = {"policy": self.policy.value, "last_failure": self._last_failure}
        if self._keys is not None:
            shown |= {"reloads": self._keys.reloads, "keys_problem": self._keys.problem}
        return shown

    def close(self) -> None:
        """Forget the handshakes that wait."""
        self._turns.close()
        self._failures.close()
