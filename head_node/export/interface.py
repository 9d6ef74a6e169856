"""What the export side needs of the cluster side: which volumes there are, and a link to the head that serves one."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol
from uuid import UUID

from head_node.volume.interface import ServedVolume
from spdk_bindings.device import Buffer as Buffer

RELAY_FRAME_BYTES_MAX: Final = 256 * 1024 + 16
"""No relay frame is longer than this, so that a link can bound its receive buffer."""


NOT_EXPORTED: Final = "the volume is not exported to such a client"
"""Why a client is reset that the volume's exports do not allow, or no longer."""


class Security(IntEnum):
    """What is known of a client's connection; a volume asks for one of these, or more."""

    PLAIN = 0
    ENCRYPTED = 1
    """TLS: others on the network neither read nor change it."""
    AUTHENTICATED = 2
    """TLS, and the client has shown a certificate or key that this head was given to accept."""


class RelayReceiver(Protocol):
    """What a relay transport calls. All calls come on the event loop, none after `transport_lost`."""

    def frame_received(self, frame: memoryview) -> None:
        """One whole authenticated frame of at most RELAY_FRAME_BYTES_MAX, in memory valid during this call only."""

    def transport_lost(self, reason: str) -> None:
        """The link is gone, for whatever reason. Called exactly once, also after `abort` (or from within it)."""


class RelayTransport(Protocol):
    """One authenticated link between two heads that carries one client connection. Never shared, never reopened.

    It never stops reading: the relay bounds what is under way with credits of its own (about 1 MiB each way), so that
    a peer that is gone is noticed at once whatever else is stuck.
    """

    def start(self, receiver: RelayReceiver) -> None:
        """Begin to deliver frames. Called once; frames that came earlier are delivered now (or after this turn)."""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send one frame whose body is the concatenation. Never blocks; ignored when the link is gone.

        The buffers are not changed by the caller afterwards.
        """

    def abort(self) -> None:
        """Reset the link now: what is unsent is thrown away, as it must never arrive late."""


@dataclass(frozen=True, slots=True)
class LocalExport:
    """A volume whose primary is this head."""

    volume_id: UUID
    volume: ServedVolume
    security: Security = Security.PLAIN
    """The least that a client's connection has to be."""


@dataclass(frozen=True, slots=True)
class RemoteExport:
    """A volume whose primary is another head.

    `dial` opens a fresh link to that head for this volume, or raises ExportUnavailable (within its own bounded time).
    The other head hands its end to `NbdServer.accept_relay(transport, local_export)`.
    """

    volume_id: UUID
    size_bytes: int
    dial: Callable[[], Awaitable[RelayTransport]]
    security: Security = Security.PLAIN


class ExportDirectory(Protocol):
    """Which volumes a client can open through this head."""

    def names(self, security: Security) -> Sequence[str]:
        """The names that NBD_OPT_LIST shows to a client whose connection is that."""

    def find(self, name: str) -> LocalExport | RemoteExport | None:
        """The export of that name; None: unknown. Raises ExportUnavailable when it is known but not served now.

        The empty name is the only volume if there is exactly one, by the directory's choice.
        """
