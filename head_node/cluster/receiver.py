"""The member's end of log replication: append what the primary sends, say what is durable, promise not to seal."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import LinkError
from head_node.cluster.frames import (
    FrameType,
    Heartbeat,
    Join,
    Truncate,
    decode_chunk,
    decode_opnum,
    decode_release,
    encode_opnum,
    encode_promise,
)
from head_node.cluster.lease import LeaseTerms, MemberPromise
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import StaleEpoch, VolumeError
from sled_controller.environment import Environment

log = logging.getLogger(__name__)

EPOCHS_AHEAD_MAX: Final = 1024
"""Takeovers that may have happened while this head was cut off from the authority. A member that was made to see too
high an epoch is out until the record is above it: `recover` sets it there."""


class LogReceiver:
    """One session of a member with a primary, over one link. `ended` resolves when the session is over and nothing of
    it touches the engine any more."""

    def __init__(
        self,
        connection: PeerConnection,
        engine: VolumeEngine,
        promise: MemberPromise,
        terms: LeaseTerms,
        env: Environment,
        on_promise: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._promise = promise
        self._terms = terms
        self._env = env
        self._on_promise = on_promise
        self._following = False
        self._committed_there = 0
        self._pieces = bytearray()
        self._work: asyncio.Task[None] | None = None
        self.epoch = 0
        self.heartbeats = 0
        self.released = False
        self.on_deleted: Callable[[], None] = lambda: None
        self.on_forfeited: Callable[[], None] = lambda: None
        """Another log counts, which lacks records of this one that may have been committed: set this one aside."""
        self.record_epoch: Callable[[], int | None] = lambda: None
        """The epoch of the record that the authority has shown last, None where it has shown none."""
        self.reason = ""
        self._heard = True
        self._silence: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def following(self) -> bool:
        """The logs agree and records are being taken."""
        return self._following

    def start(self) -> None:
        """Send the JOIN and take frames from now on."""
        self._connection.on_frame = self._frame
        self._connection.on_closed = self._closed
        self._engine.on_durable = self._durable
        if self._connection.closed:
            self._closed("closed before the session began")
            return
        self._join()
        self._connection.resume_receiving()
        self._listen()

    async def stop(self, reason: str) -> None:
        """Close the link and wait until nothing of this session is under way in the engine."""
        self.abandon(reason)
        await asyncio.wait([self.ended])

    def abandon(self, reason: str) -> None:
        """Close the link; `ended` follows."""
        self._connection.abort(reason)

    def _listen(self) -> None:
        """End a session whose primary says nothing for a TTL: a host that lost its power never says that it is gone,
        and a member that only answers would wait on such a link for ever."""
        if not self._heard and self._work is None:
            self.abandon(f"the primary was silent for {self._terms.ttl_ms} ms")
        if not self._connection.closed:
            self._heard = False
            self._silence = asyncio.get_running_loop().call_later(self._terms.ttl_ms / 1000, self._listen)

    def _join(self) -> None:
        engine = self._engine
        committed = engine.commit_point
        join = Join(
            engine.log_id, self._terms.ttl_ms, engine.tail.opnum, engine.tail.epoch, committed.opnum, committed.epoch,
            tuple(engine.epoch_history()),
        )  # fmt: skip
        self._connection.send(FrameType.JOIN, join.encode())

    def _frame(self, kind: FrameType, payload: memoryview) -> None:
        self._heard = True
        if kind is FrameType.RECORDS:
            self._records(payload)
        elif kind is FrameType.HEARTBEAT:
            self._heartbeat(Heartbeat.decode(payload))
        elif kind is FrameType.COMMITTED:
            self._committed(decode_opnum(payload))
        elif kind is FrameType.TRUNCATE:
            self._begin(self._truncate(Truncate.decode(payload)))
        elif kind is FrameType.CHECKPOINT:
            self._checkpoint(*decode_chunk(payload))
        elif kind is FrameType.RELEASE:
            self._released(*decode_release(payload))
        elif kind is FrameType.DELETED:
            if decode_opnum(payload) >= self._engine.highest_epoch:
                self.on_deleted()
        else:
            raise LinkError(f"{kind.name} is not for a member")

    def _records(self, payload: memoryview) -> None:
        if not self._following:
            raise LinkError("RECORDS before TRUNCATE")
        try:
            self._engine.follow_append(payload)
        except StaleEpoch as error:
            self._connection.refuse(f"stale: {error}")
        except VolumeError as error:
            raise LinkError(f"records refused: {error}") from error

    def _heartbeat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.ttl_ms != self._terms.ttl_ms:
            self._connection.refuse(f"lease TTL {self._terms.ttl_ms} ms here, {heartbeat.ttl_ms} ms there")
            return
        if self._promise.promise(self._env.clock.boottime_ns()):
            self.heartbeats += 1
            self._connection.send(FrameType.PROMISE, encode_promise(heartbeat.sequence, heartbeat.sent_ns))
            self._on_promise()

    def _committed(self, opnum: int) -> None:
        if self._following:
            self._committed_there = opnum
            self._engine.follow_committed(min(opnum, self._engine.tail.opnum))
            self._vouch()

    def _released(self, epoch: int, committed: int) -> None:
        if epoch < self._engine.highest_epoch:
            return
        self._committed(committed)
        self.released = True
        self._promise.released(self._env.clock.boottime_ns())
        self._on_promise()

    def _checkpoint(self, total_bytes: int, offset: int, data: memoryview) -> None:
        if self._following or offset != len(self._pieces):
            raise LinkError(f"CHECKPOINT piece at {offset}, expected at {len(self._pieces)}")
        self._pieces += data
        if len(self._pieces) == total_bytes:
            self._begin(self._install())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes a while, with no frame delivered meanwhile."""
        self._connection.pause_receiving()
        self._work = asyncio.get_running_loop().create_task(work)
        self._work.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._work = None
        self._heard = True
        error = None if task.cancelled() else task.exception()
        if self._connection.closed:
            self._end()
        elif error is not None:
            log.warning("event=join_failed error=%r", error)
            self._connection.refuse(f"join failed: {error}")
        else:
            self._connection.resume_receiving()

    def _durable(self, opnum: int) -> None:
        if self._following:
            self._connection.send(FrameType.DURABLE, encode_opnum(opnum))
            self._vouch()

    def _vouch(self) -> None:
        """Note the moment from which on this process itself has made durable what was committed: all that the primary
        of this epoch says is, its epoch record among it. Later records are committed only when it has them too."""
        engine = self._engine
        if engine.vouched:
            return
        history = engine.epoch_history()
        epoch, first = history[-1] if history else (0, 0)
        engine.vouched = epoch == self.epoch and first <= self._committed_there <= engine.durable

    def _may_cut(self, order: Truncate) -> bool:
        """Whether the log may lose what follows the common point; False: it is to be set aside. Raises LinkError: a
        primary that does not ask for what is committed gets no further here."""
        committed, tail, after = self._engine.commit_point, self._engine.tail, order.after_opnum
        lost = min(tail.opnum, committed.opnum) > after
        if lost and order.forced_epoch <= committed.epoch:
            raise LinkError(
                f"the primary wants to cut this log after {after}, but {committed.opnum} of epoch {committed.epoch} was"
                " committed"
            )
        if tail.opnum <= after or not (lost or tail.epoch < max(order.forced_epoch, order.doubtful_epoch)):
            return True
        log.warning(
            "event=log_forfeited log=%s records=%d after=%d committed=%d tail=%d",
            self._engine.log_id, tail.opnum - after, after, committed.opnum, tail.opnum,
        )  # fmt: skip
        return False

    def _check_epochs(self, order: Truncate) -> None:
        """A primary may be ahead of the view, by some takeovers. What it says beyond that is not kept: it would shut
        out every later primary. Raises LinkError."""
        known = self.record_epoch()
        highest = max(order.epoch, order.forced_epoch, order.doubtful_epoch)
        if known is not None and highest > known + EPOCHS_AHEAD_MAX:
            raise LinkError(f"the primary says epoch {highest}, the record is in epoch {known}")

    async def _truncate(self, order: Truncate) -> None:
        self._check_epochs(order)
        if not self._may_cut(order):
            self._connection.close("this log is set aside: another one counts")
            self.on_forfeited()
            return
        self._committed_there = 0
        await self._engine.see_epoch(order.epoch)
        self.epoch = order.epoch
        self._pieces.clear()
        if order.resync:
            self._following = False
            return
        if order.after_opnum < self._engine.tail.opnum:
            log.info(
                "event=log_truncated after=%d tail=%d epoch=%d", order.after_opnum, self._engine.tail.opnum, order.epoch
            )
            await self._engine.truncate_after(order.after_opnum)
        self._following = True
        self._durable(self._engine.durable)

    async def _install(self) -> None:
        data, self._pieces = bytes(self._pieces), bytearray()
        await self._engine.install_checkpoint(data)
        self._join()

    def _closed(self, reason: str) -> None:
        self.reason = reason
        self._following = False
        if self._silence is not None:
            self._silence.cancel()
        if self._work is None:
            self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(self.reason)
