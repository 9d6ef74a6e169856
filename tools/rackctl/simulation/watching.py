"""Where the monitors look: thin wrappers that see what production code does and change nothing of it."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any
from unittest import mock
from uuid import UUID

from head_node.cluster.attachments import VolumeAttachments
from head_node.cluster.membership import MembershipChanges
from head_node.cluster.states import VolumeState
from head_node.cluster.volume_controller import VolumeController
from head_node.store.records import VolumeRecord
from head_node.volume.destage import Destager
from head_node.volume.engine import VolumeEngine
from head_node.volume.interface import Done as Answered
from head_node.volume.interface import ExtentsDone, Gone, ReadDone, ServedVolume, never_gone
from head_node.volume.replica import Replica
from head_node.volume.reservations import NO_HOST
from head_node.volume.shard import SHARD_HEADER, SHARD_MAGIC
from rackctl.consistency.epochs import EpochMonitor
from rackctl.consistency.history import Violation
from rackctl.simulation.loop import PROCESS
from rackctl.simulation.monitors import AnswerMonitor, FenceMonitor, NonceMonitor, PlaceMonitor
from sled_controller.association import Association, Reply
from sled_controller.attach import Slot
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


class WatchedVolume:
    """A served volume that tells of each successful answer, just before its client gets it."""

    def __init__(self, engine: VolumeEngine, answered: Callable[[UUID, int, str, int], None]) -> None:
        """`answered` is called with volume, epoch, process and how often that request was answered before."""
        self._engine = engine
        self._served = engine.served
        self._answered = answered
        self.size_bytes = engine.served.size_bytes
        # Nobody in a simulation reserves; what is not answered is not watched.
        self.change_reservation = engine.served.change_reservation
        self.reservations = engine.served.reservations
        self.watch_reservations = engine.served.watch_reservations
        self.ready = engine.served.ready
        self.on_ready = engine.served.on_ready

    def _told(self, done: Callable[..., None]) -> Callable[..., None]:
        before = 0

        def told(error: int, *result: Any) -> None:
            nonlocal before
            if not error:
                self._answered(self._engine.volume, self._engine._epoch, PROCESS.get().name, before)
            before += 1
            done(error, *result)

        return told

    def read(self, offset: int, length: int, done: ReadDone, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        self._served.read(offset, length, self._told(done), gone, host)

    def write(
        self, offset: int, data: Buffer, fua: bool, done: Answered, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        self._served.write(offset, data, fua, self._told(done), gone, host)

    def trim(self, offset: int, length: int, done: Answered, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        self._served.trim(offset, length, self._told(done), gone, host)

    def write_zeroes(
        self, offset: int, length: int, *, no_hole: bool, done: Answered, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        self._served.write_zeroes(offset, length, no_hole=no_hole, done=self._told(done), gone=gone, host=host)

    def flush(self, done: Answered, host: bytes = NO_HOST) -> None:
        self._served.flush(self._told(done), host)

    def extents(
        self, offset: int, length: int, done: ExtentsDone, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        self._served.extents(offset, length, self._told(done), gone, host)


class Watchers:
    """The monitors of one world; what they find is told to the world at once and ends the run."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.answers = AnswerMonitor()
        self.epochs = EpochMonitor()
        self.fences = FenceMonitor()
        self.nonces = NonceMonitor()
        self.places = PlaceMonitor()
        self.transitions: Counter[tuple[str, str]] = Counter()
        """(from, to) states of volumes on heads."""
        self.strays: dict[UUID, set[str]] = {}
        """Sleds that could not be asked when a volume was deleted, by volume: they may keep its namespace."""
        self.on_step: Callable[[str, str], None] = lambda step, process: None
        """Called with a state that a volume enters, "membership" or "resync", and the process that does it."""

    def device(self, sled: str, device: Device) -> Device:
        """A drive of a sled, watched."""
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
        """Watch MACs, leaders, receipts and answers while the block runs."""
        used, led = self._guarded(self.nonces.used), self._guarded(self.epochs.led)
        answered, receipt = self._guarded(self.answers.answered), self.fences.receipt
        tag, tag_parts, lead = QueueMac.tag, QueueMac.tag_parts, VolumeEngine.lead
        attach, served, name_of = SledClient.attach, VolumeController.served, self._world.name_of
        to, put, install = VolumeController._to, MembershipChanges._put, VolumeEngine.install_checkpoint
        delete, attached = VolumeAttachments.delete_namespaces, Association._attached
        placed = self._guarded(self.places.attached)
        watched: dict[ServedVolume, WatchedVolume] = {}

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

        @wraps(attach)
        async def watched_attach(client: SledClient, credential: bytes, attach_number: int) -> Attachment:
            attachment = await attach(client, credential, attach_number)
            given = attachment.receipt
            receipt(name_of(given.sled), given.volume, given.epoch, PROCESS.get().name)
            return attachment

        @wraps(served)
        def watched_served(controller: VolumeController) -> ServedVolume:
            real = served(controller)
            engine = controller._engine
            assert engine is not None
            if real not in watched:
                watched[real] = WatchedVolume(engine, answered)
            return watched[real]

        def step(name: str) -> None:
            self.on_step(name, PROCESS.get().name)

        @wraps(to)
        def watched_to(controller: VolumeController, state: VolumeState) -> None:
            self.transitions[controller.state.value, state.value] += 1
            to(controller, state)
            step(state.value)

        @wraps(put)
        async def watched_put(changes: MembershipChanges, *args: Any, **options: Any) -> bool:
            step("membership")
            return await put(changes, *args, **options)

        @wraps(install)
        async def watched_install(engine: VolumeEngine, data: bytes) -> None:
            step("resync")
            await install(engine, data)

        def stepping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def stepped(*args: Any, **options: Any) -> Any:
                step(name)
                return function(*args, **options)

            return stepped

        @wraps(delete)
        async def watched_delete(attachments: VolumeAttachments) -> list[UUID]:
            strays = await delete(attachments)
            self.strays[attachments._volume] = set(map(name_of, strays))
            return strays

        @wraps(attached)
        def watched_attached(association: Association, slot: Slot, reply: Reply, status: int, states: Any) -> None:
            if not association.ended and not status:
                placed(association)
            attached(association, slot, reply, status, states)

        with (
            mock.patch.object(Association, "_attached", watched_attached),
            mock.patch.object(QueueMac, "tag", watched_tag),
            mock.patch.object(QueueMac, "tag_parts", watched_tag_parts),
            mock.patch.object(VolumeEngine, "lead", watched_lead),
            mock.patch.object(SledClient, "attach", watched_attach),
            mock.patch.object(VolumeController, "served", watched_served),
            mock.patch.object(VolumeController, "_to", watched_to),
            mock.patch.object(MembershipChanges, "_put", watched_put),
            mock.patch.object(VolumeEngine, "install_checkpoint", watched_install),
            mock.patch.object(VolumeAttachments, "delete_namespaces", watched_delete),
            mock.patch.object(Replica, "truncate_after", stepping("truncation", Replica.truncate_after)),
            mock.patch.object(Replica, "_write_checkpoint", stepping("checkpoint", Replica._write_checkpoint)),
            mock.patch.object(Destager, "_compact", stepping("compaction", Destager._compact)),
        ):
            yield

    def _guarded(self, look: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Any) -> None:
            try:
                look(*args)
            except Violation as violation:
                self._world.accuse(violation)

        return guarded
