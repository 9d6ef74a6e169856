"""Heartbeats as they go out and answers as they come in (F7)."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID

from kit.cluster import record_of

from head_node.cluster.frames import FrameType, Heartbeat, Join, encode_promise
from head_node.cluster.lease import MS, LeaseTerms, PrimaryLease
from head_node.cluster.member_links import MemberLinks

TERMS = LeaseTerms()
OTHER = UUID(int=2)


class Link:
    """Stands for a PeerConnection: keeps the frames that are sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[FrameType, bytes]] = []
        self.on_frame: Any = None
        self.on_closed: Any = None
        self.on_writable: Any = None

    def send(self, kind: FrameType, *payload: bytes) -> None:
        self.sent.append((kind, b"".join(payload)))


def test_f7_the_lease_runs_from_when_the_answered_heartbeat_was_sent() -> None:
    now_ns = 0
    env: Any = SimpleNamespace(clock=SimpleNamespace(boottime_ns=lambda: now_ns))
    engine: Any = SimpleNamespace(committed=0)
    lease = PrimaryLease(TERMS, now_ns=0, term_end_ns=10**15)
    lease.require({OTHER})
    links = MemberLinks(
        engine, lease, env, 1, log_of=lambda head: None, on_durable=lambda member, opnum: None,
        on_wiped=lambda head: None, on_newer_epoch=lambda epoch: None, on_diverged=lambda member, join, parted: None,
        record=lambda: record_of([], []),
    )  # fmt: skip
    link: Any = Link()
    links.accept(link, OTHER)
    now_ns = 1000 * MS
    link.on_frame(FrameType.JOIN, memoryview(Join(UUID(int=3), TERMS.ttl_ms, 0, 0, 0, 0, ()).encode()))
    ((kind, payload),) = link.sent
    assert kind is FrameType.HEARTBEAT
    beat = Heartbeat.decode(payload)
    assert beat.sent_ns == 1000 * MS
    now_ns = 1700 * MS
    link.on_frame(FrameType.PROMISE, memoryview(encode_promise(beat.sequence, beat.sent_ns)))
    assert lease.end_ns == 1000 * MS + TERMS.serve_ns
