"""Where the monitors look: thin wrappers that see what production code does and change nothing of it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any
from unittest import mock
from uuid import UUID

from head_node.store.records import VolumeRecord
from head_node.volume.engine import VolumeEngine
from head_node.volume.shard import SHARD_HEADER, SHARD_MAGIC
from rackctl.consistency.epochs import EpochMonitor
from rackctl.consistency.history import Violation
from rackctl.simulation.loop import PROCESS
from rackctl.simulation.monitors import FenceMonitor, NonceMonitor
from sled_controller.fabric.attachment import Attachment
from sled_controller.fabric.client import SledClient
from sled_controller.session import QueueMac
from spdk_bindings.device import BLOCK_BYTES, Buffer, Device, Done
from spdk_bindings.faults import Wrapper

if TYPE_CHECKING:
    from rackctl.simulation.world import World

VOLUME_KEYS = "rack/volume/"


class WatchedDevice(Wrapper):
    """A drive that tells which epoch made the shard that is being written, whatever the sled made of the command."""

    def __init__(self, device: Device, written: Callable[[UUID, int, int], None]) -> None:
        """`written` is called with volume, epoch and block before a shard's header reaches `device`."""
        super().__init__(device)
        self._written = written

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Look at each block, then write."""
        view = memoryview(data)
        for offset in range(0, len(view), BLOCK_BYTES):
            if bytes(view[offset : offset + 8]) == SHARD_MAGIC:
                _, _, volume, epoch, *_ = SHARD_HEADER.unpack_from(view, offset)
                self._written(UUID(bytes=volume), epoch, lba + offset // BLOCK_BYTES)
        return self.device.write(lba, data, fua, done)


class Watchers:
    """The monitors of one world; what they find is told to the world at once and ends the run."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.epochs = EpochMonitor()
        self.fences = FenceMonitor()
        self.nonces = NonceMonitor()
        watchers = self

        class WatchedClient(SledClient):
            """A head's association with a sled whose receipts are noted."""

            async def attach(self, credential: bytes, attach_number: int) -> Attachment:
                attachment = await super().attach(credential, attach_number)
                receipt = attachment.receipt
                watchers.fences.receipt(world.name_of(receipt.sled), receipt.volume, receipt.epoch, PROCESS.get().name)
                return attachment

        self.client_class: type[SledClient] = WatchedClient

    def device(self, sled: str, device: Device) -> Device:
        """A sled's drive, watched."""
        written = self._guarded(self.fences.written)
        return WatchedDevice(device, lambda volume, epoch, lba: written(sled, volume, epoch, lba))

    def stored(self, put: Mapping[str, bytes]) -> None:
        """A transaction of the authority's store."""
        recorded = self._guarded(self.epochs.recorded)
        for key, value in put.items():
            if key.startswith(VOLUME_KEYS):
                record = VolumeRecord.from_json(json.loads(value))
                recorded(record.volume, record.epoch)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch MACs and leaders while the block runs."""
        used, led = self._guarded(self.nonces.used), self._guarded(self.epochs.led)
        tag, tag_parts, lead = QueueMac.tag, QueueMac.tag_parts, VolumeEngine.lead

        @wraps(tag)
        def watched_tag(mac: QueueMac, count: int, data: Buffer) -> bytes:
            used(mac._algorithm.key, count)
            return tag(mac, count, data)

        @wraps(tag_parts)
        def watched_tag_parts(mac: QueueMac, count: int, parts: Sequence[Buffer]) -> bytes:
            used(mac._algorithm.key, count)
            return tag_parts(mac, count, parts)

        @wraps(lead)
        async def watched_lead(engine: VolumeEngine, epoch: int, *args: Any, **options: Any) -> int:
            led(engine.volume, epoch, PROCESS.get().name)
            return await lead(engine, epoch, *args, **options)

        with (
            mock.patch.object(QueueMac, "tag", watched_tag),
            mock.patch.object(QueueMac, "tag_parts", watched_tag_parts),
            mock.patch.object(VolumeEngine, "lead", watched_lead),
        ):
            yield

    def _guarded(self, look: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Any) -> None:
            try:
                look(*args)
            except Violation as violation:
                self._world.accuse(violation)

        return guarded
