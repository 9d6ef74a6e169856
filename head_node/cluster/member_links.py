"""The primary's links to the other heads of a volume: JOINs taken, heartbeats sent, promises fed to the lease (F7)."""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import LinkError
from head_node.cluster.frames import (
    FrameType,
    Heartbeat,
    Join,
    decode_opnum,
    decode_promise,
    encode_opnum,
    encode_release,
)
from head_node.cluster.lease import PrimaryLease
from head_node.cluster.replication import LogSender, Resyncs, SourceLog
from head_node.store.records import Member, VolumeRecord
from sled_controller.environment import Environment
from spdk_bindings.device import Buffer

log = logging.getLogger(__name__)


class MemberLinks:
    """One link per other head. A head that dials again replaces its former link."""

    def __init__(
        self,
        engine: SourceLog,
        lease: PrimaryLease,
        env: Environment,
        epoch: int,
        *,
        log_of: Callable[[UUID], UUID | None],
        on_durable: Callable[[Member, int], None],
        on_wiped: Callable[[UUID], None],
        on_newer_epoch: Callable[[int], None],
        on_diverged: Callable[[Member, Join, int], None],
        record: Callable[[], VolumeRecord],
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._now_ns = env.clock.boottime_ns
        self._epoch = epoch
        self._log_of = log_of
        self._on_durable = on_durable
        self._on_wiped = on_wiped
        self._on_newer_epoch = on_newer_epoch
        self._on_diverged = on_diverged
        self._record = record
        self._leading = False
        self.resyncs = Resyncs()
        self._connections: dict[UUID, PeerConnection] = {}
        self._senders: dict[UUID, LogSender] = {}

    def sender(self, head: UUID) -> LogSender | None:
        return self._senders.get(head)

    def linked(self, head: UUID) -> bool:
        """Whether `head` has joined over a link that is open now."""
        return head in self._senders

    def senders(self) -> list[LogSender]:
        return list(self._senders.values())

    def accept(self, connection: PeerConnection, head: UUID) -> None:
        """A link from `head`, authenticated; its JOIN comes next."""
        former = self._connections.get(head)
        if former is not None:
            former.abort("replaced by a newer link of the same head")
        self._connections[head] = connection
        connection.on_frame = lambda kind, payload: self._frame(connection, head, kind, payload)
        connection.on_closed = lambda reason: self._closed(connection, head, reason)

    def lead(self) -> None:
        """The epoch record is in the log: members may follow from now on."""
        self._leading = True
        for sender in self.senders():
            sender.lead(self._epoch)

    def appended(self, first: int, last: int, buffers: Sequence[Buffer]) -> None:
        for sender in self.senders():
            sender.appended(first, last, buffers)

    def committed(self, opnum: int) -> None:
        for sender in self.senders():
            sender.committed()

    def heartbeat(self) -> None:
        """Send one heartbeat on every joined link, its time read just before."""
        for head, sender in list(self._senders.items()):
            now_ns = self._now_ns()
            sequence = self._lease.heartbeat_sent(head, now_ns)
            sender.heartbeats_pace.sent(sequence, now_ns)
            beat = Heartbeat(sequence, now_ns, self._engine.committed, self._lease.terms.ttl_ms)
            sender.connection.send(FrameType.HEARTBEAT, beat.encode())

    def release(self) -> None:
        """Tell every member that this primary has stopped serving for good (hand-over)."""
        for sender in self.senders():
            sender.connection.send(FrameType.RELEASE, encode_release(self._epoch, self._engine.committed))

    def deleted(self) -> None:
        """Tell every member that the volume is gone for good."""
        for sender in self.senders():
            sender.connection.send(FrameType.DELETED, encode_opnum(self._epoch))

    def close(self, reason: str) -> None:
        """Close every link after what is queued on it."""
        for connection in list(self._connections.values()):
            connection.close(reason)

    def drop(self, head: UUID, reason: str) -> None:
        """Close one link; its head has to join again."""
        connection = self._connections.get(head)
        if connection is not None:
            connection.close(reason)

    def _frame(self, connection: PeerConnection, head: UUID, kind: FrameType, payload: memoryview) -> None:
        sender = self._senders.get(head)
        if kind is FrameType.JOIN:
            self._join(connection, head, Join.decode(payload))
        elif sender is None:
            raise LinkError(f"{kind.name} before JOIN")
        elif kind is FrameType.PROMISE:
            sequence = decode_promise(payload)[0]
            self._lease.promised(head, sequence)
            sender.heartbeats_pace.answered(sequence, self._now_ns())
        elif kind is FrameType.DURABLE:
            sender.durable_received(decode_opnum(payload))
        else:
            raise LinkError(f"{kind.name} is not for a primary")

    def _join(self, connection: PeerConnection, head: UUID, join: Join) -> None:
        counted = self._log_of(head)
        if join.ttl_ms != self._lease.terms.ttl_ms:
            connection.refuse(f"lease TTL is {self._lease.terms.ttl_ms} ms here, {join.ttl_ms} ms there")
        elif join.tail_epoch > self._epoch or (join.history and join.history[-1][0] > self._epoch):
            connection.refuse(f"this primary's epoch is {self._epoch}, the log has seen a newer one")
            self._on_newer_epoch(max(join.tail_epoch, join.history[-1][0] if join.history else 0))
        elif counted is not None and counted != join.log:
            log.warning("event=wiped_log head=%s log=%s counted=%s epoch=%d", head, join.log, counted, self._epoch)
            connection.refuse(f"log {counted} of this head is still a member; it is being removed, join again (F5)")
            self._on_wiped(head)
        else:
            self._take(connection, head, join)

    def _take(self, connection: PeerConnection, head: UUID, join: Join) -> None:
        sender = self._senders.get(head)
        if sender is None or sender.member.log != join.log:
            sender = LogSender(
                connection, self._engine, Member(head, join.log), self._on_durable, self._on_diverged,
                self._record, self._now_ns, self.resyncs,
            )  # fmt: skip
            self._senders[head] = sender
            log.info(
                "event=member_joined head=%s log=%s tail=%d epoch=%d", head, join.log, join.tail_opnum, self._epoch
            )
        if self._leading:
            sender.lead(self._epoch)
        sender.joined(join)
        self.heartbeat()

    def _closed(self, connection: PeerConnection, head: UUID, reason: str) -> None:
        if self._connections.get(head) is not connection:
            return
        del self._connections[head]
        self._lease.link_lost(head)
        sender = self._senders.pop(head, None)
        if sender is not None:
            sender.close()
            log.warning("event=member_link_lost head=%s epoch=%d reason=%s", head, self._epoch, reason)
