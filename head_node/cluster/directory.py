"""Which volumes clients can open through this head: here when it serves them, else relayed to the primary."""

from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID

from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import ClusterError, NotServing
from head_node.cluster.frames import Purpose
from head_node.cluster.relay_transport import LinkRelayTransport
from head_node.cluster.volume_controller import VolumeController
from head_node.export.errors import ExportUnavailable
from head_node.export.interface import LocalExport, RelayTransport, RemoteExport
from head_node.store.records import VolumeState

Dial = Callable[[UUID, Purpose, UUID], Awaitable[PeerConnection]]


class VolumeDirectory:
    """ExportDirectory of head_node/export/interface.py over this head's volumes."""

    def __init__(self, head: UUID, controllers: Mapping[UUID, VolumeController], dial: Dial) -> None:
        self._head = head
        self._controllers = controllers
        self._dial = dial

    def names(self) -> list[str]:
        """Volumes that exist, served at this moment or not."""
        return sorted(controller.record.name for controller in self._visible())

    def find(self, name: str) -> LocalExport | RemoteExport | None:
        """See ExportDirectory.find. Raises ExportUnavailable while nobody serves the volume."""
        visible = self._visible()
        if name == "" and len(visible) == 1:
            return self._export(visible[0])
        for controller in visible:
            if controller.record.name == name:
                return self._export(controller)
        return None

    def local(self, volume: UUID) -> LocalExport:
        """The export of a volume that this head serves now. Raises NotServing."""
        controller = self._controllers.get(volume)
        if controller is None:
            raise NotServing(f"volume {volume} is not on this head")
        return LocalExport(volume, controller.served())

    def _visible(self) -> list[VolumeController]:
        return [
            controller
            for controller in self._controllers.values()
            if controller.record.state in (VolumeState.ACTIVE, VolumeState.FROZEN) and not controller.left_view
        ]

    def _export(self, controller: VolumeController) -> LocalExport | RemoteExport:
        record = controller.record
        if controller.is_primary or record.primary == self._head:
            try:
                return LocalExport(controller.volume, controller.served())
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

        return RemoteExport(controller.volume, record.size_bytes, dial)
