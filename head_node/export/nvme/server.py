"""All volumes of a head over NVMe/TCP: the port that hosts connect to, with a discovery service on it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from uuid import UUID

from head_node.export.nvme.commands import LIMITS
from head_node.export.nvme.controller import FIRMWARE, MODEL, ExportController
from head_node.export.nvme.counters import NvmeCounters
from head_node.export.nvme.guard import UNGUARDED, Guard
from head_node.export.nvme.shares import CONNECTIONS_MAX as CONNECTIONS_MAX
from head_node.export.nvme.shares import Shares
from head_node.export.nvme.subsystem import Access, Exported, VolumeSubsystem
from head_node.export.peer import peer_is_gone
from head_node.store.records import Address
from head_node.volume.interface import ServedVolume
from sled_controller.descriptors import UNLIMITED, Descriptors
from sled_controller.environment import Environment
from sled_controller.fabric.dhchap.handshake import SequenceNumbers
from sled_controller.fabric.discovery import DiscoverySubsystem
from sled_controller.fabric.exchanges import Exchanges
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS
from sled_controller.fabric.port import KATO_SECONDS_MAX, NvmSubsystem
from sled_controller.fabric.receive_buffer import RECEIVE_BYTES, Allocate
from sled_controller.fabric.target_server import WRITE_BUFFER_BYTES_MAX, TargetServer
from sled_controller.turns import Turns
from spdk_bindings.log_pages import DiscoveryEntry, discovery_row
from spdk_bindings.nvme import DISCOVERY_NQN, uuid_nqn

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

log = logging.getLogger(__name__)

CONNECTION_BYTES_MAX: Final = RECEIVE_BYTES + WRITE_BUFFER_BYTES_MAX + LIMITS.transfer_bytes_max
"""What one may cost beside its share of LIMITS.common_bytes: received, unsent, and a command beyond the share."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A volume, and where its heads can be reached: (transport address, port) of each, in no particular order."""

    exported: Exported
    addresses: tuple[Address, ...]


class NvmeServer:
    """The port. `update` follows the rack's view, `set_access` what this head is to a volume."""

    def __init__(
        self,
        env: Environment,
        *,
        serial: str,
        connections_max: int = CONNECTIONS_MAX,
        descriptors: Descriptors = UNLIMITED,
        peer_silence_s: int = PEER_SILENCE_SECONDS,
        kato_s_max: int = KATO_SECONDS_MAX,
        turns: Turns | None = None,
    ) -> None:
        self.env = env
        self.limits = LIMITS
        self.allocate: Allocate = bytearray
        self.kato_ms_max = kato_s_max * 1000
        self.settled = False  # until the first view says what is exported
        self.counters = NvmeCounters()
        self.discovery = DiscoverySubsystem(self._entries, env.entropy, serial=serial, model=MODEL, firmware=FIRMWARE)
        self._server = TargetServer(
            self, connections_max, setting="nvme_queues_max", descriptors=descriptors, peer_is_gone=peer_is_gone,
            silence_s=peer_silence_s, turns=turns,
        )  # fmt: skip
        self._by_nqn: dict[str, VolumeSubsystem] = {}
        self._by_volume: dict[UUID, VolumeSubsystem] = {}
        self._offers: tuple[Offer, ...] = ()
        self._rows: dict[Offer, list[bytes]] = {}
        """Of the discovery log: one for each path to the volume."""
        self._numbers = SequenceNumbers(env.entropy)
        self._shares = Shares(connections_max)
        self.exchanges = Exchanges(env)

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen (port 0: any) and return where. OSError when the address cannot be had."""
        return await self._server.start(host, port)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        await self._server.close()

    # --- followed by the head

    def update(self, offers: Sequence[Offer], head_number: int, guards: Mapping[UUID, Guard]) -> None:
        """These volumes are exported by this head from now on, to hosts that know what `guards` says."""
        self.settled = True
        wanted = {offer.exported.volume: offer.exported for offer in offers}
        for volume in [volume for volume in self._by_volume if volume not in wanted]:
            subsystem = self._by_volume.pop(volume)
            del self._by_nqn[subsystem.nqn]
            subsystem.close("the volume is not exported any more")
        for volume, exported in wanted.items():
            known = self._by_volume.get(volume)
            if known is None:
                subsystem = VolumeSubsystem(
                    exported, head_number, self.counters, ExportController, self.env.entropy, self._numbers,
                    self._shares, self.exchanges,
                )  # fmt: skip
                self._by_volume[volume] = self._by_nqn[subsystem.nqn] = subsystem
            elif known.exported != exported:
                known.update(exported)
        for volume, subsystem in self._by_volume.items():
            guard = guards.get(volume, UNGUARDED)
            if guard != subsystem.guard:
                subsystem.set_guard(guard)
        if tuple(offers) != self._offers:
            self._offers = tuple(offers)
            made = self._rows
            self._rows = {offer: made.get(offer) or _rows_of(offer) for offer in offers}
            self.discovery.changed()

    def set_access(self, volume: UUID, access: Access, served: ServedVolume | None) -> None:
        """What this head's path to the volume is worth from now on; nothing if it is not exported."""
        subsystem = self._by_volume.get(volume)
        if subsystem is not None:
            subsystem.set_access(access, served)

    def drop_clients(self, volume: UUID) -> None:
        """This head serves the volume no more (F6)."""
        subsystem = self._by_volume.get(volume)
        if subsystem is not None:
            unfinished = subsystem.step_down()
            log.info("event=nvme_stepped_down volume=%s unfinished=%d", volume, unfinished)

    def status(self) -> dict[str, object]:
        """Counters, and by volume how it is reached and by how many hosts."""
        volumes = {
            str(volume): {
                "access": subsystem.access.name.lower(),
                "hosts": len(subsystem.hosts),
                "hosts_guarded": len(subsystem.guard.terms),
                "secrets_changed_total": subsystem.guard_changes,
                "secrets_unreadable": subsystem.guard.locked,
                "authenticated_total": subsystem.authentication.succeeded,
                "authentication_failed_total": subsystem.authentication.failed,
            }
            for volume, subsystem in self._by_volume.items()
        }
        return {**self.counters.as_dict(), "volumes": volumes}

    @property
    def subsystems(self) -> Mapping[UUID, VolumeSubsystem]:
        """What is exported, by volume."""
        return self._by_volume

    # --- Port

    def now_ms(self) -> int:
        """Nothing here is judged by time: the lease is asked by the volume itself (F7)."""
        return 0

    def subsystem_of(self, nqn: str) -> NvmSubsystem | None:
        """The volume of that name, or the discovery subsystem."""
        return self.discovery if nqn == DISCOVERY_NQN else self._by_nqn.get(nqn)

    def _entries(self, queue: "TargetQueue", host_nqn: bytes) -> list[bytes]:
        """Every path to every volume that admits the host."""
        name = host_nqn.rstrip(b"\0").decode("utf-8", "replace")
        return [row for offer, rows in self._rows.items() if offer.exported.admits(name) for row in rows]


def _rows_of(offer: Offer) -> list[bytes]:
    nqn = uuid_nqn(offer.exported.volume)
    return [
        discovery_row(number, DiscoveryEntry(nqn, host, port, is_ipv6(host)))
        for number, (host, port) in enumerate(offer.addresses, start=1)
    ]


def is_ipv6(host: str) -> bool:
    """Whether it is an IPv6 address; a name is looked up by the host, over IPv4."""
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False
