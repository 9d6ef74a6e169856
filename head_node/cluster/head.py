"""One head: its volumes, its links to other heads, its sleds, and what it tells the authority about itself."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.errors import AuthorityError, AuthorityUnavailable
from head_node.capacity import Capacity
from head_node.cluster.connection import PeerConnection, PeerListener, dial
from head_node.cluster.directory import VolumeDirectory
from head_node.cluster.errors import LinkClosed, NotServing
from head_node.cluster.frames import Purpose
from head_node.cluster.lease import LeaseTerms
from head_node.cluster.link import LinkContext
from head_node.cluster.link_rights import LinkUse, OpenLinks, refusal
from head_node.cluster.relay_transport import LinkRelayTransport
from head_node.cluster.reopening import Reopening
from head_node.cluster.services import Authority, Services
from head_node.cluster.sleds import MakeClient, Sleds
from head_node.cluster.states import VolumeState as RoleState
from head_node.cluster.takeover import TAIL_WAIT_MS
from head_node.cluster.volume_controller import VolumeController
from head_node.cluster.watch import AuthorityWatch
from head_node.export.nvme.guard import LOCKED, Guard
from head_node.export.nvme.server import NvmeServer, Offer
from head_node.export.nvme.subsystem import Access, Exported
from head_node.export.server import NbdServer
from head_node.export.tls import TlsKeys
from head_node.store.errors import RecordMalformed
from head_node.store.host_secrets import unsealed
from head_node.store.records import Address, RackView, VolumeRecord, VolumeState
from head_node.volume.engine import VolumeEngine
from sled_controller.backoff import Backoff
from sled_controller.environment import Environment
from sled_controller.errors import KeySetRefused
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS
from sled_controller.fabric.port import KATO_SECONDS_MAX
from sled_controller.keyset import KeySet
from sled_controller.turns import Turns

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 1.0
REMOVE_SECONDS_MAX: Final = 60.0
"""Between two tries to remove the log of a deleted volume, which fails or of which the authority goes on to speak."""
REFUSED_SECONDS_MAX: Final = 10.0
"""Between two reports that the authority does not take: it says so with a reason, or is not there."""
FENCES_KEPT_MAX: Final = 32
EVENTS_KEPT_MAX: Final = 64
DIAL_SECONDS_MAX: Final = 1.0
PEER_SERVICE: Final = "peer"
NVME_SERVICE: Final = "nvme"

ACCESS_OF: Final = {
    RoleState.SEALED: Access.CHANGE,
    RoleState.ATTACHING: Access.CHANGE,
    RoleState.LEADING: Access.CHANGE,
    RoleState.SERVING: Access.OPTIMIZED,
    RoleState.HOLDING: Access.CHANGE,
}
"""What a path of NVMe/TCP is worth while this head is that to the volume; inaccessible in every other state."""

OpenEngine = Callable[[VolumeRecord], Awaitable[VolumeEngine]]
RemoveLog = Callable[[UUID], Awaitable[None]]


class Head:
    """See the module. `listen`, then `start` once enrolled, `stop` at the end."""

    def __init__(
        self, head: UUID, key: Ed25519PrivateKey, authority: Authority, *, root_public: Callable[[], bytes | None],
        make_client: MakeClient, open_engine: OpenEngine, remove_log: RemoveLog,
        set_log_aside: RemoveLog, terms: LeaseTerms, env: Environment, tail_wait_ms: int = TAIL_WAIT_MS,
        peer_silence_s: int = PEER_SILENCE_SECONDS, capacity: Capacity | None = None, nbd_tls: TlsKeys | None = None,
        nvme_kato_max_s: int = KATO_SECONDS_MAX,
    ) -> None:  # fmt: skip
        self.head = head
        self._capacity = capacity = capacity or Capacity()
        self._key = key
        self._root_public = root_public
        self._env = env
        self.controllers: dict[UUID, VolumeController] = {}
        self.watch = AuthorityWatch(authority, env)
        self.sleds = Sleds(make_client, env)
        self._links = OpenLinks(self._link_refusal)
        self.turns = Turns(env.clock)
        self.listener = PeerListener(key, head, self._peer_keys, self._accept, env, peer_silence_s, self.turns)
        self.directory = VolumeDirectory(head, self.controllers, self._dial)
        descriptors = capacity.descriptors
        self.nbd = NbdServer(
            self.directory, env, connections_max=capacity.nbd_clients_max, descriptors=descriptors,
            peer_silence_s=peer_silence_s, tls=nbd_tls, turns=self.turns,
        )  # fmt: skip
        self.nvme = NvmeServer(
            env, serial=head.hex[:20].upper(), connections_max=capacity.nvme_queues_max, descriptors=descriptors,
            peer_silence_s=peer_silence_s, kato_s_max=nvme_kato_max_s, turns=self.turns,
        )  # fmt: skip
        self._authority = authority
        self._key_set: KeySet | None = None
        self.key_set_bytes: bytes | None = None
        self._authority_is_old = False
        """Its key set is older than one that this head has had from it."""
        self._fences: deque[dict[str, Any]] = deque(maxlen=FENCES_KEPT_MAX)
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT_MAX)
        self._reporter: asyncio.Task[None] | None = None
        self._remover: asyncio.Task[None] | None = None
        self._report_due = asyncio.Event()
        self._report_refused = ""
        self._stopping = False
        self._started = False
        self._reopening = Reopening(self._begin_again)
        self._services = Services(
            head=head, env=env, terms=terms, authority=authority, watch=self.watch, sleds=self.sleds,
            key_set=lambda: self._key_set, dial=self._dial, drop_clients=self._drop_clients,
            role_changed=self._role_changed, open_engine=open_engine, remove_log=remove_log, note=self._note,
            set_log_aside=set_log_aside, tail_wait_ms=tail_wait_ms,
        )  # fmt: skip

    async def start(self) -> None:
        """Begin to follow the authority. Volumes appear with its first view."""
        self.watch.on_view(self._viewed)
        self.watch.start()
        self._reporter = asyncio.get_running_loop().create_task(self._report())
        self._started = True

    async def stop(self) -> None:
        """Hand over what is served, or destage it, then close everything."""
        self._stopping = True
        self._reopening.close()
        await asyncio.gather(*(controller.stop() for controller in self.controllers.values()))
        await self.nbd.close()
        await self.nvme.close()
        await self.listener.close()
        if self._started:
            await self.watch.close()
        for task in filter(None, (self._reporter, self._remover)):
            task.cancel()
            await asyncio.wait([task])
        await self.sleds.close()

    @property
    def ready(self) -> bool:
        """The authority has been heard, and no volume is still opening or has failed here."""
        states = {controller.state.value for controller in self.controllers.values()}
        heard = self.watch.view is not None and not self.watch.unenrolled
        return heard and not states & {"opening", "failed"}

    def status(self) -> dict[str, Any]:
        """What the authority is told, and what the status page shows."""
        return {
            "volumes": {str(volume): controller.status() for volume, controller in self.controllers.items()},
            "sleds": self.sleds.status(),
            "fences": list(self._fences),
            "authority": {
                "reachable": self.watch.reachable,
                "reason": self.watch.reason,
                "report_refused": self._report_refused,
            },
            "nbd": self.nbd.status(),
            "nvme": self.nvme.status(),
            **({"newer_key_set": (self.key_set_bytes or b"").hex()} if self._authority_is_old else {}),
            "links_refused_total": self.listener.refused_total,
            "capacity": self._capacity.status(),
            "ready": self.ready,
        }

    # the authority's view

    def _viewed(self, view: RackView) -> None:
        if self._stopping:
            self._links.recheck()
            return
        self._take_key_set(view.key_set)
        for volume, controller in list(self.controllers.items()):
            controller.record_changed(view.volumes.get(volume))
            if controller.left_view and controller.ended:
                del self.controllers[volume]
                self._reopening.forget(volume)
        self._restrict_nbd(view)
        self._links.recheck()
        self.sleds.update(view.sleds)
        for volume, record in view.volumes.items():
            if volume not in self.controllers:
                controller = VolumeController(self._services, record, self._ended)
                self.controllers[volume] = controller
                controller.start()
        if view.deleted and self._remover is None:
            self._remover = asyncio.get_running_loop().create_task(self._remove_logs())
            self._remover.add_done_callback(self._removed_logs)
        self._offer(view)

    def _restrict_nbd(self, view: RackView) -> None:
        """What the view says of exports by NBD holds for clients that are connected, too."""
        self.nbd.restrict(self.directory.update(view))

    async def _remove_logs(self) -> None:
        """Remove what deleted volumes have left here, and say so, until the view names none any more."""
        backoff = Backoff(self._env, REPORT_SECONDS, REMOVE_SECONDS_MAX)
        while (view := self.watch.view) is not None and view.deleted:
            for volume in view.deleted - self.controllers.keys():
                try:
                    await self._services.remove_log(volume)
                    await self._authority.confirm_log_removed(volume)
                except (AuthorityError, OSError) as error:
                    log.warning("event=log_not_removed volume=%s error=%s", volume, error)
            await asyncio.sleep(backoff.next_s())

    def _removed_logs(self, task: "asyncio.Task[None]") -> None:
        self._remover = None
        if not task.cancelled() and task.exception() is not None:
            log.error("event=log_remover_broke", exc_info=task.exception())

    def _ended(self, volume: UUID) -> None:
        """A volume has ended here; if it has come back to the view meanwhile, it begins again."""
        if self.watch.view is not None:
            self._viewed(self.watch.view)
        controller = self.controllers.get(volume)
        if controller is not None and controller.may_begin_again and not self._stopping:
            self._reopening.failed(volume)

    def _begin_again(self, volume: UUID) -> None:
        del self.controllers[volume]
        if self.watch.view is not None:
            self._viewed(self.watch.view)

    def _offer(self, view: RackView) -> None:
        """Export what the view says by NVMe/TCP, on this head too once it has its number; nothing if it says nothing of
        this head."""
        own = view.heads.get(self.head)
        if own is None:
            self.nvme.update([], 0, {})
        if own is None or not own.number:
            return
        offers = [
            Offer(
                Exported(record.volume, record.name, record.size_bytes, frozenset(record.hosts)), _paths(record, view)
            )
            for record in view.volumes.values()
            if record.nvme and record.state in (VolumeState.ACTIVE, VolumeState.FROZEN)
        ]
        known = set(self.nvme.subsystems)
        guards = {volume: self._guard(volume, sealed) for volume, sealed in view.secrets.items()}
        self.nvme.update(offers, own.number, guards)
        for volume in set(self.nvme.subsystems) - known:
            self._role_changed(volume)

    def _guard(self, volume: UUID, sealed: bytes) -> Guard:
        """Secrets that cannot be read let nobody in."""
        try:
            return Guard(unsealed(self._key, volume, sealed).terms)
        except RecordMalformed as error:
            log.error("event=secrets_unreadable volume=%s error=%s", volume, error)
            return LOCKED

    def _take_key_set(self, data: bytes) -> None:
        root = self._root_public()
        if root is None or data == self.key_set_bytes:
            return
        try:
            key_set = KeySet.open(data, root)
        except KeySetRefused as error:
            log.error("event=key_set_refused error=%s", error)
            return
        if self._key_set is None or key_set.version > self._key_set.version:
            self._key_set, self.key_set_bytes = key_set, data
            self._authority_is_old = False
            self.sleds.push_key_set()
            for controller in self.controllers.values():
                controller.keys_changed(key_set)
        elif key_set.version < self._key_set.version:
            if not self._authority_is_old:
                log.error("event=authority_is_old key_set=%d known=%d", key_set.version, self._key_set.version)
            self._authority_is_old = True
        else:
            self._authority_is_old = False

    # links

    def _peer_keys(self) -> list[bytes]:
        view = self.watch.view
        if view is None:
            return []
        return [head.public_key for head in view.heads.values() if head.id != self.head and not head.revoked]

    def _accept(self, connection: PeerConnection, context: LinkContext, peer_public: bytes) -> None:
        peer = self._head_of(peer_public)
        controller = self.controllers.get(context.volume)
        if peer is None or controller is None or self._stopping:
            connection.refuse(f"volume {context.volume} is not on this head")
            return
        use = LinkUse(context.purpose, context.volume, peer, peer_public, dialled=False)
        if reason := self._links.admit(connection, use):
            connection.refuse(reason)
        elif context.purpose is Purpose.LOG:
            controller.accept_log(connection, peer)
        elif context.purpose is Purpose.TAIL:
            controller.answer_tail(connection)
        else:
            try:
                export = self.directory.local(context.volume)
            except NotServing as error:
                connection.refuse(str(error))
            else:
                self.nbd.accept_relay(LinkRelayTransport(connection), export)

    def _head_of(self, public: bytes) -> UUID | None:
        view = self.watch.view
        heads = {} if view is None else view.heads
        return next((head.id for head in heads.values() if head.public_key == public and not head.revoked), None)

    async def _dial(self, head: UUID, purpose: Purpose, volume: UUID) -> PeerConnection:
        view = self.watch.view
        record = None if view is None else view.heads.get(head)
        address = None if record is None else record.addresses.get(PEER_SERVICE)
        if record is None or address is None or record.revoked:
            raise LinkClosed(f"head {head} has no address that is known here")
        context = LinkContext(purpose, volume, head)
        connection = await dial(
            address, self._key, record.public_key, context, self._env, timeout_s=DIAL_SECONDS_MAX, turns=self.turns
        )
        use = LinkUse(purpose, volume, head, record.public_key, dialled=True)
        if reason := self._links.admit(connection, use):  # the view may have changed meanwhile
            connection.abort(reason)
            raise LinkClosed(reason)
        return connection

    def _link_refusal(self, use: LinkUse) -> str:
        """By the newest view; of a volume's record the controller may have had a newer one, as answer to a put."""
        view, controller = self.watch.view, self.controllers.get(use.volume)
        if view is None:
            return refusal(use, None, None)
        record = view.volumes.get(use.volume)
        if record is not None and controller is not None and controller.record.version >= record.version:
            record = controller.record
        return refusal(use, view.heads.get(use.peer), record)

    def _drop_clients(self, volume: UUID) -> None:
        self.nbd.drop_clients(volume)
        self.nvme.drop_clients(volume)

    def _role_changed(self, volume: UUID) -> None:
        controller = self.controllers.get(volume)
        if controller is None:
            return
        access = ACCESS_OF.get(controller.state, Access.INACCESSIBLE)
        self.nvme.set_access(volume, access, controller.served() if access is Access.OPTIMIZED else None)

    # reports

    def _note(self, kind: str, fields: dict[str, Any]) -> None:
        """Something that an operator may want to know; goes out with the next report, which is due now."""
        if kind == "fenced-off":
            self._fences.append(fields)
        self._events.append({"kind": kind, **fields})
        self._report_due.set()

    def _report_failed(self, error: AuthorityError) -> None:
        """One line for as long as it fails for the same reason: what the authority does not know it acts against."""
        reason = f"{type(error).__name__}: {error}"
        if reason != self._report_refused:
            log.warning("event=report_failed error=%s", error)
            self._report_refused = reason

    def _report_taken(self, events: int) -> None:
        if self._report_refused:
            log.info("event=report_taken")
            self._report_refused = ""
        for _ in range(events):
            self._events.popleft()

    async def _report(self) -> None:
        backoff = Backoff(self._env, REPORT_SECONDS, REFUSED_SECONDS_MAX)
        while True:
            self._report_due.clear()
            pause_s = REPORT_SECONDS
            events = list(self._events)
            try:
                if not self.watch.unenrolled:
                    await self._authority.report({**self.status(), "events": events})
                    self._report_taken(len(events))
                    backoff.reset()
            except AuthorityError as error:
                self._report_failed(error)
                if not isinstance(error, AuthorityUnavailable):
                    pause_s = backoff.next_s()
            try:
                async with asyncio.timeout(pause_s):
                    await self._report_due.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(pause_s / 10)


def _exported(record: VolumeRecord) -> Exported:
    return Exported(record.volume, record.name, record.size_bytes, frozenset(record.hosts))


def _paths(record: VolumeRecord, view: RackView) -> tuple[Address, ...]:
    """Where the volume's heads listen for NVMe/TCP: those that may become its primary, the primary first."""
    heads = dict.fromkeys([*((record.primary,) if record.primary else ()), *record.heads])
    heads |= dict.fromkeys(member.head for member in record.current)
    found = [view.heads[head] for head in heads if head in view.heads]
    return tuple(head.addresses[NVME_SERVICE] for head in found if not head.revoked and NVME_SERVICE in head.addresses)
