"""The subsystem of a sled: what all its connections share. Volumes and their fences, namespaces, key set, sled time."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sled_controller.association import REFUSED_ATTACHES as REFUSED_ATTACHES
from sled_controller.association import Association
from sled_controller.association import Refusal as Refusal
from sled_controller.attach import CallLater, VolumeState
from sled_controller.credential import U64_MAX, Credential, parse_credential
from sled_controller.dma import allocator
from sled_controller.environment import Environment
from sled_controller.errors import CredentialMalformed, KeySetRefused
from sled_controller.fabric.associations import Associations
from sled_controller.fabric.authentication import InBandAuthentication
from sled_controller.fabric.controller import FIRMWARE, MODEL, SledController
from sled_controller.fabric.dhchap.handshake import SequenceNumbers
from sled_controller.fabric.discovery import DiscoverySubsystem
from sled_controller.fabric.exchanges import Exchanges
from sled_controller.fabric.port import KATO_SECONDS_MAX, ConnectRefused, ConnectRequest, NvmSubsystem
from sled_controller.fabric.receive_buffer import Allocate
from sled_controller.fabric.vendor import NAMESPACE_ENTRY, STATUS
from sled_controller.fabric.vendor_io import LIMITS
from sled_controller.fencing import Fence, Verdict
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.keyset import KeySet
from sled_controller.places import Places
from sled_controller.retirement import Retirement
from sled_controller.served import Served, then
from sled_controller.sled_time import SledTime
from sled_controller.storage.records import StoredFence, TimeEntry
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.time_statement import TimeStatement
from spdk_bindings.device import Device
from spdk_bindings.log_pages import DiscoveryEntry, discovery_row
from spdk_bindings.nvme import DISCOVERY_NQN, Status, uuid_nqn

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

log = logging.getLogger(__name__)

ASSOCIATIONS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this sled is; `root_public` (32 raw bytes) signs key sets."""

    sled_id: UUID
    key: Ed25519PrivateKey
    root_public: bytes
    name: str = "sled"

    @property
    def nqn(self) -> str:
        """The subsystem's NQN."""
        return uuid_nqn(self.sled_id)


@dataclass(slots=True)
class Counters:
    """Counted since start; the sled status log page shows them in this order."""

    admitted: int = 0
    fenced_off: int = 0
    superseded: int = 0
    refused: int = 0
    bad_macs: int = 0
    protocol_errors: int = 0
    attaches: int = 0
    receipts: int = 0
    device_errors: int = 0
    connections: int = 0
    timeouts: int = 0
    out_of_range: int = 0
    denied: int = 0

    def values(self) -> list[int]:
        """All of them."""
        return [getattr(self, name) for name in self.__slots__]


class Subsystem:
    """All that the connections of one sled share."""

    def __init__(
        self, identity: Identity, storage: SledStorage, env: Environment, call_later: CallLater,
        advertised_host: str | None = None, *, firmware: FirmwareUpdate | None = None,
        managers: ManagementHosts | None = None, associations_max: int = ASSOCIATIONS_MAX,
        kato_s_max: int = KATO_SECONDS_MAX,
    ) -> None:  # fmt: skip
        """`firmware` is there where the sled runs from slots that can be updated, by `managers` only."""
        self.identity = identity
        self._advertised_host = advertised_host  # None: the address that a host has connected to
        self.storage = storage
        self.env = env
        self.call_later = call_later
        self.counters = Counters()
        stated = storage.time
        self.time = SledTime(env.clock, storage.issued_ms, rtc_ahead_ms=0 if stated is None else stated.rtc_ahead_ms)
        self._statements_under_way = 0
        self.boot_id = b""  # made by the first handshake
        self.started_ns = env.clock.boottime_ns()
        self.key_set: KeySet | None = self._kept_key_set()
        self.volumes: dict[UUID, VolumeState] = {}
        self.served: dict[int, Served] = {}
        self.limits = LIMITS
        self.settled = True
        self.kato_ms_max = kato_s_max * 1000
        self.firmware = firmware
        self.exchanges = Exchanges(env)
        self._authentication: InBandAuthentication | None = None
        if managers is not None:
            numbers = SequenceNumbers(env.entropy)
            self._authentication = InBandAuthentication(identity.nqn, managers, env.entropy, numbers, self.exchanges)
        self.discovery = DiscoverySubsystem(
            self._addresses, env.entropy, serial=self.serial, model=MODEL, firmware=FIRMWARE
        )
        self._associations: Associations[Association] = Associations(associations_max, env.entropy)
        self.places = Places(associations_max, self._associations.live)
        storage.on_device_offline = self._device_offline
        storage.on_fence_raised = self._fence_joined
        self.refresh_namespaces()

    def _kept_key_set(self) -> KeySet | None:
        if self.storage.key_set is None:
            return None
        try:
            return KeySet.open(self.storage.key_set[1], self.identity.root_public)
        except KeySetRefused as error:
            log.error("event=kept_key_set_refused reason=%s", error.reason)
            return None

    # --- volumes and namespaces

    def volume(self, volume: UUID) -> VolumeState:
        """The volume's state, from the durable fence when it is seen for the first time since start."""
        state = self.volumes.get(volume)
        if state is None:
            kept = self.storage.fence_of(volume)
            fence = Fence(volume) if kept is None else Fence(volume, kept.epoch, 0, kept.holder, kept.credential)
            state = self.volumes[volume] = VolumeState(fence, fence.epoch)
        return state

    def refresh_namespaces(self) -> None:
        """Take over what the storage says of namespaces and their devices."""
        self._namespace_page = b""
        first = next((device for _, device in self.storage.online_devices()), None)
        self.allocate: Allocate = allocator(first)  # any drive of the kind takes it without a copy
        kept = self.storage.namespaces
        for nsid in [nsid for nsid, served in self.served.items() if kept.get(nsid) is not served.namespace]:
            del self.served[nsid]
        for nsid, namespace in kept.items():
            served = self.served.get(nsid)
            if served is None:
                self.served[nsid] = Served(namespace, self.volume(namespace.volume).fence)
            else:
                served.follow()

    def device(self, index: int) -> Device | None:
        """The device, None when it is offline."""
        return dict(self.storage.online_devices()).get(index)

    def of_volume(self, fence: Fence) -> list[int]:
        """Indices of the online devices that hold a namespace of the fence's volume."""
        entries = self.storage.namespaces.values()
        return sorted({entry.device_index for entry in entries if entry.online and entry.volume == fence.volume})

    def indices(self) -> list[int]:
        """Indices of all devices that this sled ever had."""
        return [index for index, _ in self.storage.device_states()]

    def take_offline(self, index: int, reason: str) -> None:
        """From now on the device takes no commands; the others go on."""
        self.storage.take_offline(index, reason)

    def _device_offline(self, index: int, reason: str) -> None:
        self.refresh_namespaces()

    def _fence_joined(self, volume: UUID, fence: StoredFence) -> None:
        """A joining device brought a higher fence than the one here."""
        state = self.volume(volume)
        if fence.epoch > state.fence.epoch:
            holder, former = state.fence.holder, state.holder
            state.retire_holder()
            state.fence.raise_to(fence.epoch, 0, fence.holder, fence.credential)
            state.newest = (0, 0)
            if holder != fence.holder:
                self.places.fenced(holder, None if former is None else former.owner)

    def count_refusal(self, verdict: Verdict) -> None:
        """Count a command that the fence decision refused."""
        if verdict == Verdict.FENCED_OFF:
            self.counters.fenced_off += 1
        elif verdict == Verdict.SUPERSEDED:
            self.counters.superseded += 1
        else:
            self.counters.refused += 1

    # --- hosts

    @property
    def serial(self) -> str:
        """The serial number, from the sled's id."""
        return self.identity.sled_id.hex[:20].upper()

    @property
    def hosts(self) -> Mapping[int, Association]:
        """Associations by controller id."""
        return self._associations.live

    def now_ms(self) -> int:
        """Sled time."""
        return self.time.now_ms()

    def subsystem_of(self, nqn: str) -> NvmSubsystem | None:
        """This one, or the discovery subsystem."""
        if nqn == self.identity.nqn:
            return self
        return self.discovery if nqn == DISCOVERY_NQN else None

    def open(self, queue: "TargetQueue", request: ConnectRequest) -> Association | ConnectRefused:
        """A new association with this sled: anybody may have one, it takes a session to do something with it; a host
        that manages the sled has to prove who it is."""
        association = self._associations.open(
            lambda number: Association(self, number, request.host_nqn, request.host_id)
        )
        if association is None:
            return ConnectRefused(Status.CONNECT_CONTROLLER_BUSY, do_not_retry=False)
        if self._authentication is not None and self._authentication.required_of(association.host_name):
            association.authentication = self._authentication
        association.controller = SledController(association, request.kato_ms)
        return association

    def _addresses(self, queue: "TargetQueue", host_nqn: bytes) -> list[bytes]:
        host, port = queue.local_address
        host = self._advertised_host or host
        return [discovery_row(1, DiscoveryEntry(self.identity.nqn, host, port, ip_address(host).version == 6))]

    # --- sled-wide admin commands

    def learn_time(self, issued_ms: int) -> None:
        """Move sled time forward by a verified issue time, as far as our own clock bears it out, and keep it."""
        self.time.learn(issued_ms)
        self.keep_time()

    def keep_time(self) -> None:
        """Note durably how late it is: a start without a clock to go by begins there. A time that is just being put
        right is not noted behind the statement that does so."""
        if not self._statements_under_way:
            self.storage.note_issued(self.time.to_keep_ms())

    def has_expired(self, credential: Credential) -> bool:
        """Whether a verified credential's term is over in sled time, which its issue time moves forward; or may be:
        it is no newer than what was known before a start without a clock, or it may be of a volume whose fence was
        forgotten because all its credentials had expired (F2)."""
        self.learn_time(credential.issued_ms)
        if self.time.now_ms() > credential.expires_ms or self.time.unsure_of(credential.issued_ms):
            return True
        retired = self.storage.retired
        return (
            retired is not None
            and credential.expires_ms < retired.over_ms
            and credential.key_id <= retired.key_id
            and self.storage.fence_of(credential.volume) is None
        )

    def state_time(self, statement: TimeStatement, done: Callable[[int, int], None]) -> None:
        """Set sled time, forward or back, by a verified statement; `done(status, refusal)` once it is durable."""
        known = self.storage.time
        if not statement.is_for(self.identity.sled_id, self.storage.boot_counter):
            done(Status.REFUSED, Refusal.OTHER_SLED)
            return
        if known is not None and statement.serial <= known.serial:
            done(Status.REFUSED, Refusal.TIME_SERIAL)
            return
        before_ms = self.time.now_ms()
        entry = TimeEntry(statement.serial, statement.time_ms, self.time.rtc_ahead_of(statement.time_ms))

        def kept(status: int) -> None:
            self._statements_under_way -= 1
            if not status:
                self.time.state(statement.time_ms, entry.rtc_ahead_ms)
                self._forget_wrong_times(statement.time_ms)
                log.warning(
                    "event=time_stated serial=%d time_ms=%d before_ms=%d rtc_ahead_ms=%d",
                    entry.serial, entry.time_ms, before_ms, entry.rtc_ahead_ms,
                )  # fmt: skip
            done(status, 0)

        self._statements_under_way += 1
        then(partial(self.storage.state_time, entry), kept)

    def _forget_wrong_times(self, time_ms: int) -> None:
        """What was issued later than a statement of time was issued by a wrong clock: credentials of the right time
        must not count as older ones beside it."""
        for state in self.volumes.values():
            state.newest = min(state.newest, (time_ms, 0))
            if state.holder is not None and state.holder.issued_ms > time_ms:
                state.holder.issued_ms = time_ms
                state.holder.serial = 0

    def update_key_set(self, data: bytes, done: Callable[[int, int], None]) -> None:
        """Take a newer key set signed by the root, ignore others; `done(status, refusal)` once it is durable."""
        try:
            key_set = KeySet.open(data, self.identity.root_public)
        except KeySetRefused as error:
            log.warning("event=key_set_refused reason=%s", error.reason)
            done(Status.REFUSED, Refusal.KEY_SET)
            return
        if self.key_set is not None and key_set.version <= self.key_set.version:
            done(Status.SUCCESS, 0)
            return
        self.key_set = key_set
        self.learn_time(key_set.issued_ms)
        for association in self.hosts.values():
            association.keys_changed(key_set)
        log.info("event=key_set version=%d keys=%d", key_set.version, len(key_set.keys))
        start = partial(self.storage.store_key_set, key_set.version, data)
        then(start, lambda status: done(status, 0))

    def retire(self, statement: Retirement, done: Callable[[int, int], None]) -> None:
        """Forget the fence of a deleted volume (F2); `done(status, refusal)` once that is durable.

        What the fence kept out has expired in sled time, which never goes back behind that. The statement does not move
        sled time: an authority whose clock is ahead has to wait until the sled is there itself.
        """
        volume, over_ms = statement.volume, statement.over_ms
        state = self.volume(volume)
        raised_by, holder = state.fence.credential, state.holder
        if self.time.now_ms() < over_ms or (raised_by and not self._over(raised_by, over_ms)):
            done(Status.REFUSED, Refusal.NOT_OVER)
            return
        if holder is not None and holder.key_current and holder.expires_ms >= over_ms:
            done(Status.REFUSED, Refusal.NOT_OVER)
            return
        if state.fence.epoch > statement.epoch:
            done(Status.REFUSED, Refusal.NEWER_EPOCH)
            return
        if self.storage.has_namespace_of(volume):
            done(Status.REFUSED, Refusal.NAMESPACES_REMAIN)
            return
        if state.busy or self._statements_under_way:
            done(Status.NAMESPACE_NOT_READY, 0)
            return
        self.time.keep(over_ms)
        key_id = 0 if self.key_set is None else max(self.key_set.keys, default=0)
        start = partial(self.storage.retire_fence, volume, statement.epoch, over_ms, key_id=key_id)
        then(start, lambda status: done(status, 0))
        if self.storage.fence_of(volume) is None:
            log.info("event=fence_retired volume=%s epoch=%d over_ms=%d", volume, state.fence.epoch, over_ms)
            state.retire_holder()
            del self.volumes[volume]

    def _over(self, raised_by: bytes, over_ms: int) -> bool:
        """Whether the credential that raised a fence expires before `over_ms`, or its key has left the key set."""
        try:
            credential = parse_credential(raised_by).credential
        except CredentialMalformed:
            return False
        retired = self.key_set is not None and credential.key_id not in self.key_set.keys
        return retired or credential.expires_ms < over_ms

    def status_page(self) -> bytes:
        """Log page C2h."""
        uptime_ms = (self.env.clock.boottime_ns() - self.started_ns) // 1_000_000
        version = 0 if self.key_set is None else self.key_set.version
        head = STATUS.pack(self.storage.boot_counter, version, min(self.time.now_ms(), U64_MAX))
        return head + b"".join(value.to_bytes(8, "little") for value in (uptime_ms, *self.counters.values()))

    def namespace_page(self) -> bytes:
        """Log page C1h, with the zero entry that ends it; kept, as any host may ask for a part of it."""
        if not self._namespace_page:
            rows = [
                NAMESPACE_ENTRY.pack(nsid, entry.column, 0, entry.blocks, entry.volume.bytes)
                for nsid, entry in sorted(self.storage.namespaces.items())
            ]
            self._namespace_page = b"".join(rows) + bytes(NAMESPACE_ENTRY.size)
        return self._namespace_page
