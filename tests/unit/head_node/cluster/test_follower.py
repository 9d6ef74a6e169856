"""Sealing (F5): the promises end, the link is closed, nothing touches the log, and what was appended is durable."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from head_node.cluster import follower
from head_node.cluster.errors import SealRefused, TakeoverImpossible
from head_node.cluster.follower import Follower
from head_node.cluster.frames import FrameType, Heartbeat, Truncate, encode_opnum, encode_release
from head_node.cluster.lease import MS, LeaseTerms, MemberPromise
from head_node.cluster.receiver import EPOCHS_AHEAD_MAX
from head_node.volume.errors import LogHangs

TERMS = LeaseTerms()
PRIMARY, VOLUME = UUID(int=1), UUID(int=7)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Link:
    """Stands for a PeerConnection: keeps what is sent, delivers what a test says."""

    def __init__(self) -> None:
        self.closed = False
        self.reason = ""
        self.sent: list[FrameType] = []
        self.on_frame: Any = None
        self.on_closed: Any = None

    def send(self, kind: FrameType, *payload: bytes) -> None:
        self.sent.append(kind)

    def refuse(self, text: str) -> None:
        self.abort(text)

    def abort(self, reason: str) -> None:
        if not self.closed:
            self.closed, self.reason = True, reason
            self.on_closed(reason)

    def pause_receiving(self) -> None: ...
    def resume_receiving(self) -> None: ...


class Log:
    """Stands for the engine of a follower."""

    def __init__(self) -> None:
        self.log_id, self.committed = UUID(int=9), 0
        self.commit_point = SimpleNamespace(opnum=0, epoch=0)
        self.vouched = False
        self.tail = SimpleNamespace(opnum=5, epoch=1)
        self.durable = 5
        self.highest_epoch = 5
        self.on_durable: Any = None
        self.on_failed: Any = None
        self.failure: Exception | None = None
        self.may_see_epoch = asyncio.Event()
        self.seen: list[int] = []

    def epoch_history(self) -> list[tuple[int, int]]:
        return [(1, 1)]

    def abandon(self, error: LogHangs) -> None:
        self.failure = error

    async def see_epoch(self, epoch: int) -> None:
        self.seen.append(epoch)
        await self.may_see_epoch.wait()


class Bed:
    """A follower whose dials, clock and log a test holds."""

    def __init__(self) -> None:
        self.now_ns = TERMS.ttl_ns
        self.link, self.log = Link(), Log()
        self.may_dial = asyncio.Event()
        self.dialled = False
        env = SimpleNamespace(clock=SimpleNamespace(boottime_ns=lambda: self.now_ns))
        watch = SimpleNamespace(view=None)
        services: Any = SimpleNamespace(env=env, terms=TERMS, dial=self._dial, watch=watch)
        self.watch = watch
        log: Any = self.log
        self.follower = Follower(services, log, VOLUME, MemberPromise(TERMS, started_ns=0), lambda: None)

    async def _dial(self, *whom: object) -> Link:
        await self.may_dial.wait()
        self.dialled = True
        return self.link

    def beat(self, ttl_ms: int = TERMS.ttl_ms) -> None:
        beat = Heartbeat(1, self.now_ns, 0, ttl_ms)
        self.link.on_frame(FrameType.HEARTBEAT, memoryview(beat.encode()))

    async def joined(self) -> None:
        self.may_dial.set()
        self.follower.follow(PRIMARY)
        await turns()
        assert self.link.sent == [FrameType.JOIN]


def test_f5_a_sealed_member_has_closed_its_link_and_dials_no_more() -> None:
    async def scenario() -> None:
        bed = Bed()
        await bed.joined()
        await bed.follower.seal()
        assert bed.link.closed
        assert bed.follower.session is None
        bed.link.sent.clear()
        bed.beat()
        assert bed.link.sent == []

    asyncio.run(scenario())


def test_f5_a_dial_that_is_under_way_ends_with_the_seal() -> None:
    async def scenario() -> None:
        bed = Bed()
        bed.follower.follow(PRIMARY)
        await turns()
        await bed.follower.seal()
        bed.may_dial.set()
        await turns()
        assert not bed.dialled

    asyncio.run(scenario())


def test_f5_the_seal_waits_for_what_the_link_was_doing_to_the_log() -> None:
    async def scenario() -> None:
        bed = Bed()
        await bed.joined()
        bed.link.on_frame(FrameType.TRUNCATE, memoryview(Truncate(2, False, 5, 0, 0).encode()))
        await turns()
        sealing = asyncio.ensure_future(bed.follower.seal())
        await turns()
        assert bed.link.closed
        assert not sealing.done()
        bed.log.may_see_epoch.set()
        await sealing

    asyncio.run(scenario())


@pytest.mark.parametrize("orders", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_f5_a_member_keeps_no_epoch_that_the_record_cannot_be_in(orders: tuple[int, int, int]) -> None:
    async def scenario() -> None:
        for ahead, kept in ((EPOCHS_AHEAD_MAX, True), (EPOCHS_AHEAD_MAX + 1, False), ((1 << 64) - 6, False)):
            bed = Bed()
            bed.watch.view = SimpleNamespace(volumes={VOLUME: SimpleNamespace(epoch=5)})
            await bed.joined()
            epoch, forced, doubtful = (5 + ahead * chosen for chosen in orders)
            order = Truncate(epoch, False, 5, forced, doubtful)
            bed.link.on_frame(FrameType.TRUNCATE, memoryview(order.encode()))
            await turns()
            assert (bed.log.seen == [epoch]) is kept
            bed.log.may_see_epoch.set()
            await bed.follower.stop("test over")

    asyncio.run(scenario())


def test_f5_the_seal_waits_until_what_was_appended_is_durable() -> None:
    async def scenario() -> None:
        bed = Bed()
        bed.log.durable = 3
        sealing = asyncio.ensure_future(bed.follower.seal())
        for durable in (3, 4):
            bed.log.durable = durable
            await turns()
            bed.log.on_durable(durable)
            assert not sealing.done()
        bed.log.durable = 5
        bed.log.on_durable(5)
        await sealing

    asyncio.run(scenario())


@pytest.mark.parametrize("hanging", ["the link's work", "an append"])
def test_a_seal_gives_a_log_up_whose_disk_hangs(hanging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "SETTLE_SECONDS_MAX", 0.02)

    async def scenario() -> None:
        bed = Bed()
        await bed.joined()
        if hanging == "an append":
            bed.log.durable = 3
        else:
            bed.link.on_frame(FrameType.TRUNCATE, memoryview(Truncate(2, False, 5, 0, 0).encode()))
        with pytest.raises(TakeoverImpossible, match="did not answer"):
            await bed.follower.seal()
        assert isinstance(bed.log.failure, LogHangs)
        assert bed.follower.promise.sealed
        await asyncio.wait_for(bed.follower.stop("the volume ends here"), 2)

    asyncio.run(scenario())


def test_f7_a_member_whose_promise_binds_it_keeps_its_link() -> None:
    async def scenario() -> None:
        bed = Bed()
        await bed.joined()
        bed.beat()
        bed.now_ns += TERMS.ttl_ns - MS
        with pytest.raises(SealRefused):
            await bed.follower.seal()
        assert not bed.link.closed
        await bed.follower.stop("test over")

    asyncio.run(scenario())


def test_f7_only_the_primary_of_the_newest_epoch_releases_a_member_from_its_promise() -> None:
    async def scenario() -> None:
        bed = Bed()
        await bed.joined()
        bed.beat()
        bed.link.on_frame(FrameType.RELEASE, memoryview(encode_release(4, 0)))
        assert not bed.follower.promise.may_seal(bed.now_ns)
        bed.link.on_frame(FrameType.RELEASE, memoryview(encode_release(5, 0)))
        assert bed.follower.promise.may_seal(bed.now_ns)
        await bed.follower.stop("test over")

    asyncio.run(scenario())


def test_f7_a_primary_with_another_ttl_is_promised_nothing() -> None:
    async def scenario() -> None:
        bed = Bed()
        await bed.joined()
        bed.beat(ttl_ms=TERMS.ttl_ms + 1)
        assert FrameType.PROMISE not in bed.link.sent
        assert bed.link.closed
        await bed.follower.stop("test over")

    asyncio.run(scenario())


def test_a_member_leaves_a_primary_that_is_silent_for_a_ttl() -> None:
    """A host that lost its power never closes its connections."""

    async def scenario() -> None:
        bed, terms = Bed(), LeaseTerms.scaled(100)
        bed.follower._services.terms = terms  # type: ignore[misc]
        await bed.joined()
        for _ in range(5):
            await asyncio.sleep(terms.ttl_ms / 2000)
            bed.beat(terms.ttl_ms)
        assert not bed.link.closed
        async with asyncio.timeout(5):
            while not bed.link.closed:  # noqa: ASYNC110 (the condition is state, no event marks it)
                await asyncio.sleep(0.01)
        assert "silent" in bed.link.reason

    asyncio.run(scenario())


def test_f5_a_member_vouches_for_its_log_only_from_what_was_committed_in_the_epoch_that_it_follows() -> None:
    async def scenario() -> None:
        bed = Bed()
        bed.log.may_see_epoch.set()
        history = [(1, 1)]
        bed.log.epoch_history = lambda: history  # type: ignore[method-assign]
        bed.log.follow_committed = lambda opnum: None  # type: ignore[attr-defined]
        await bed.joined()

        def committed(opnum: int) -> bool:
            bed.link.on_frame(FrameType.COMMITTED, memoryview(encode_opnum(opnum)))
            return bed.log.vouched

        bed.link.on_frame(FrameType.TRUNCATE, memoryview(Truncate(2, False, 5, 0, 0).encode()))
        await turns()
        assert not committed(5), "that is what the primary itself found on its disk"
        history.append((2, 6))
        assert not committed(6), "the epoch record is not durable here"
        bed.log.durable = 6
        assert not committed(7), "there is more that is committed"
        assert committed(6)
        await bed.follower.stop("the end")

    asyncio.run(scenario())
