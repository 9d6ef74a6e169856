"""Which volumes clients can open through this head: here when it serves them, else relayed to the primary."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final
from uuid import UUID

from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import ClusterError, NotServing
from head_node.cluster.frames import Purpose
from head_node.cluster.relay_transport import LinkRelayTransport
from head_node.cluster.volume_controller import VolumeController
from head_node.export.errors import ExportUnavailable
from head_node.export.interface import LocalExport, RelayTransport, RemoteExport, Security
from head_node.store.records import NbdExport, RackView, VolumeRecord, VolumeState

OFFERED_STATES: Final = frozenset({VolumeState.ACTIVE, VolumeState.FROZEN})

Dial = Callable[[UUID, Purpose, UUID], Awaitable[PeerConnection]]


class VolumeDirectory:
    """ExportDirectory of head_node/export/interface.py over this head's volumes."""

    def __init__(self, head: UUID, controllers: Mapping[UUID, VolumeController], dial: Dial) -> None:
        self._head = head
        self._controllers = controllers
        self._dial = dial
        self.guarded: Collection[UUID] = ()
        """Volumes with hosts that authenticate."""
        self._offered: dict[str, UUID] = {}
        self._names: dict[Security, list[str]] = {}

    def update(self, view: RackView) -> dict[UUID, Security | None]:
        """Follow the view; returns what `security_needed` says of each of its volumes. What clients ask is answered
        from here: any stranger may ask, as often as it likes, and a head may have thousands of volumes."""
        self.guarded = view.secrets.keys()
        needed = {volume: self.security_needed(record) for volume, record in view.volumes.items()}
        offered = [
            (record.name, volume, least)
            for volume, record in view.volumes.items()
            if record.state in OFFERED_STATES and (least := needed[volume]) is not None
        ]
        self._offered = {name: volume for name, volume, _ in offered}
        for security in Security:
            self._names[security] = sorted(name for name, _, least in offered if least <= security)
        return needed

    def security_needed(self, record: VolumeRecord) -> Security | None:
        """The least that an NBD client's connection has to be, None when the volume is not exported by NBD.

        With host secrets a client has to authenticate, whatever the record says.
        """
        if record.nbd is NbdExport.OFF:
            return None
        if record.volume in self.guarded:
            return Security.AUTHENTICATED
        return Security.ENCRYPTED if record.nbd is NbdExport.TLS else Security.PLAIN

    def names(self, security: Security) -> list[str]:
        """Volumes that exist and that a client may open over such a connection, served at this moment or not."""
        return self._names.get(security, [])

    def find(self, name: str) -> LocalExport | RemoteExport | None:
        """See ExportDirectory.find. Raises ExportUnavailable while nobody serves the volume."""
        if name == "" and len(self._offered) == 1:
            name = next(iter(self._offered))
        volume = self._offered.get(name)
        controller = None if volume is None else self._controllers.get(volume)
        if controller is None or controller.left_view or controller.record.state not in OFFERED_STATES:
            return None
        needed = self.security_needed(controller.record)
        return None if needed is None else self._export(controller, needed)

    def local(self, volume: UUID) -> LocalExport:
        """The export of a volume that this head serves now. Raises NotServing."""
        controller = self._controllers.get(volume)
        if controller is None:
            raise NotServing(f"volume {volume} is not on this head")
        needed = self.security_needed(controller.record)
        if needed is None:
            raise NotServing(f"volume {controller.record.name} is not exported by NBD")
        return LocalExport(volume, controller.served(), needed)

    def _export(self, controller: VolumeController, needed: Security) -> LocalExport | RemoteExport:
        record = controller.record
        if controller.is_primary or record.primary == self._head:
            try:
                return LocalExport(controller.volume, controller.served(), needed)
            except NotServing as error:
                raise ExportUnavailable(record.name, str(error)) from error
        primary = record.primary
        if primary is None:
            raise ExportUnavailable(record.name, "it has no primary yet")

        async def dial() -> RelayTransport:
            try:
                connection = await self._dial(primary, Purpose.RELAY, controller.volume)
            except ClusterError as error:
                raise ExportUnavailable(record.name, str(error)) from error
            return LinkRelayTransport(connection)

        return RemoteExport(controller.volume, record.size_bytes, dial, needed)
