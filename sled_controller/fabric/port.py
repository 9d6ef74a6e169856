"""What a target's connections need of whoever listens: bounds, counters, clocks, and the subsystems by their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sled_controller.environment import Environment
from sled_controller.fabric.associations import HostAssociation
from sled_controller.fabric.exchanges import Exchanges
from sled_controller.fabric.receive_buffer import Allocate
from spdk_bindings.nvme import Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

SUBSYSTEM_NQN_FIELD: Final = 256 | 1 << 16  # DW0 of a refused Connect: offset, and bit 16: it is in the data
CONTROLLER_ID_FIELD: Final = 16 | 1 << 16
QUEUE_ID_FIELD: Final = 42
SQ_SIZE_FIELD: Final = 44


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of one connection, in bytes and entries; with `common_bytes` also of all connections together."""

    in_capsule_bytes_max: int  # IOCCSZ less the SQE; a capsule has to fit into the least room of a receive block
    transfer_bytes_max: int  # MDTS; also MAXH2CDATA
    entries_max: int  # MQES
    held_bytes_max: int  # data awaited by R2T, owned by whoever carries commands out, or read and not sent
    common_bytes: int | None = None  # divided among the connections, where there are so many that it is less

    def held_share(self, connections: int) -> int:
        """What each of so many connections may hold; a single command may exceed it."""
        if self.common_bytes is None or not connections:
            return self.held_bytes_max
        return min(self.held_bytes_max, self.common_bytes // connections)


KATO_SECONDS_MAX: Final = 120
"""The longest keep-alive timer a host may ask for, and the silence that ends a host that has none, unless it is set."""


class PortCounters(Protocol):
    """What is counted whoever listens."""

    connections: int
    protocol_errors: int
    timeouts: int


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """What a Connect on an admin queue says (Base 2.0, 6.3); the NQN is zero padded to 256 bytes."""

    host_nqn: bytes
    host_id: bytes
    kato_ms: int


@dataclass(frozen=True, slots=True)
class ConnectRefused:
    """Why a Connect makes no association."""

    status: Status
    dw0: int = 0
    do_not_retry: bool = True


class NvmSubsystem(Protocol):
    """One NQN."""

    @property
    def hosts(self) -> Mapping[int, HostAssociation]:
        """Its associations by controller id."""

    def open(self, queue: "TargetQueue", request: ConnectRequest) -> HostAssociation | ConnectRefused:
        """A new association whose admin queue is `queue`."""


class Port(Protocol):
    """What listens on an address."""

    limits: QueueLimits
    env: Environment
    allocate: Allocate
    """Memory that data is received into, the best there is for whoever carries commands out."""
    exchanges: Exchanges
    """What carries out the costly steps of authentication."""
    kato_ms_max: int
    """The longest keep-alive timer a host may ask for; a host without one may be silent for so long."""
    settled: bool
    """Whether a subsystem that is not known here is not there at all; until then hosts are told to try again."""

    @property
    def counters(self) -> PortCounters:
        """Counted since start."""

    def now_ms(self) -> int:
        """The time that commands are judged by."""

    def subsystem_of(self, nqn: str) -> NvmSubsystem | None:
        """The subsystem of that name, None when it is not served here."""
