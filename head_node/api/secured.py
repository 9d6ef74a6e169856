"""TLS in front of the REST interface: handshakes bounded in number and time, before anything is known of who asks.

The server behind counts a connection from its first byte of HTTP on. Without this, strangers could hold any number that
never finish their handshake.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final

from head_node.bursts import Burst

log = logging.getLogger(__name__)

HANDSHAKES_MAX: Final = 256
HANDSHAKE_SECONDS_MAX: Final = 5.0
NO_DESCRIPTORS_SECONDS: Final = 0.1
"""How long a listener rests that gets no connection because the process has no descriptor left."""


class SecuredListener:
    """Accepts connections and gives them to protocols once their handshake is done.

    `context` may load other certificates meanwhile. When too many handshakes are under way, the oldest one goes
    of the source that has the most.
    """

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._listener = listener
        self._context = context
        self._make_protocol = make_protocol
        self._handshakes: dict[asyncio.Task[None], str] = {}
        """By source, oldest first."""
        self._failures = Burst(log, "tls_handshake_failed", "rest")
        self._crowded = Burst(log, "connection_refused", f"max_{HANDSHAKES_MAX}_handshakes")

    async def run(self) -> None:
        """Accept until cancelled; handshakes under way end with it."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(self._listener)
                except OSError:  # the peer has left again, or no descriptor is left
                    self._crowded.add()
                    await asyncio.sleep(NO_DESCRIPTORS_SECONDS)
                    continue
                if len(self._handshakes) >= HANDSHAKES_MAX:
                    self._crowded.add()
                    [(most, _)] = Counter(self._handshakes.values()).most_common(1)
                    oldest = next(task for task, source in self._handshakes.items() if source == most)
                    del self._handshakes[oldest]
                    oldest.cancel()
                task = loop.create_task(self._shake_hands(connection))
                self._handshakes[task] = str(peer[0])
                task.add_done_callback(lambda done: self._handshakes.pop(done, None))
        finally:
            for task in list(self._handshakes):
                task.cancel()
            self._failures.close()
            self._crowded.close()

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_protocol, connection, ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX, ssl_shutdown_timeout=HANDSHAKE_SECONDS_MAX,
            )  # fmt: skip
        except (OSError, ssl.SSLError):  # what a peer does that speaks no TLS, or gives up
            self._failures.add()
            with contextlib.suppress(OSError):
                connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
