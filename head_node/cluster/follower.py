"""A volume's follower on this head: keeps a link to the primary as long as there is one, and seals when it must.

Sealing (F5) means: the link is closed, no dial is under way, whatever was being done to the log is finished, and all
that was appended is durable. Only then may the next epoch be asked for.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final
from uuid import UUID

from head_node.cluster.errors import ClusterError, TakeoverImpossible
from head_node.cluster.frames import Purpose
from head_node.cluster.lease import MemberPromise
from head_node.cluster.receiver import LogReceiver
from head_node.cluster.services import Services
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogHangs
from sled_controller.backoff import Backoff

log = logging.getLogger(__name__)

REDIAL_SECONDS_MIN: Final = 0.02
REDIAL_SECONDS_MAX: Final = 0.5
"""Between dials of a primary that does not answer or refuses: well within a TTL at first, patient later."""
SETTLE_SECONDS_MAX: Final = 45.0
"""How long a seal waits for the log's disk: longer than Linux waits for an NVMe command (30 s) before it resets the
drive and asks again, so that a drive which comes back by that costs a delay and not a member."""


class Follower:
    """Follows one volume. `primary` names whom to dial, None for nobody."""

    def __init__(
        self, services: Services, engine: VolumeEngine, volume: UUID, promise: MemberPromise, wake: Callable[[], None]
    ) -> None:
        self._services = services
        self._engine = engine
        self._volume = volume
        self._wake = wake
        self.promise = promise
        self._primary: UUID | None = None
        self._redial = asyncio.Event()
        self._session: LogReceiver | None = None
        self._task: asyncio.Task[None] | None = None
        self.deleted = False
        """A primary said that the volume is deleted; only together with the view is that a reason to drop the log."""
        self.on_forfeited: Callable[[], None] = lambda: None
        """Another log counts, which lacks records of this one that may have been committed."""
        self.reason = "not dialled yet"

    @property
    def linked(self) -> bool:
        return self._session is not None and self._session.following

    @property
    def session(self) -> LogReceiver | None:
        return self._session

    def follow(self, primary: UUID | None) -> None:
        """Dial this head, and again when the link ends; None: stop dialling. Cheap when nothing changes."""
        if self._task is not None and self._task.done():
            log.error("event=follower_broke volume=%s", self._volume, exc_info=self._task.exception())
            self._task = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_joined())
        if primary == self._primary:
            return
        self._primary = primary
        self._redial.set()
        if self._session is not None:
            self._session.abandon("following another primary")

    async def stop(self, reason: str) -> None:
        """Close the link, end dialling, and wait until nothing of it touches the log."""
        task, self._task = self._task, None
        self._primary = None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._session is not None:
            await self._session.stop(reason)
            self._session = None

    async def seal(self) -> None:
        """Promise nothing any more, close the link, settle the log. Raises SealRefused while a promise binds,
        TakeoverImpossible when the log fails, or has hung for SETTLE_SECONDS_MAX and was given up."""
        self.promise.seal(self._services.env.clock.boottime_ns())
        try:
            async with asyncio.timeout(SETTLE_SECONDS_MAX):
                await self.stop("sealed")
                await self._settle()
        except TimeoutError:
            self._session = None  # it still waits for the disk; whatever it does then, the engine refuses
            hangs = LogHangs(f"its disk did not answer for {SETTLE_SECONDS_MAX:g} s; mend it, restart this head")
            self._engine.abandon(hangs)
            raise TakeoverImpossible(f"the log failed: {hangs}") from None
        log.info(
            "event=sealed volume=%s log=%s tail=%d epoch=%d",
            self._volume, self._engine.log_id, self._engine.tail.opnum, self._engine.tail.epoch,
        )  # fmt: skip

    async def _settle(self) -> None:
        engine = self._engine
        changed = asyncio.Event()
        on_failed = engine.on_failed

        def failed(error: Exception) -> None:
            changed.set()
            on_failed(error)

        engine.on_durable = lambda opnum: changed.set()
        engine.on_failed = failed
        try:
            while engine.failure is None and engine.durable < engine.tail.opnum:
                changed.clear()
                await changed.wait()
        finally:
            engine.on_failed = on_failed
        if engine.failure is not None:
            raise TakeoverImpossible(f"the log failed: {engine.failure}")

    async def _keep_joined(self) -> None:
        backoff = Backoff(self._services.env, REDIAL_SECONDS_MIN, REDIAL_SECONDS_MAX)
        while True:
            self._redial.clear()
            primary = self._primary
            if primary is None:
                await self._redial.wait()
                backoff.reset()
                continue
            if await self._one_session(primary):
                backoff.reset()
            self._wake()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_s()):
                    await self._redial.wait()

    async def _one_session(self, primary: UUID) -> bool:
        """Dial and follow until the link ends; True when the primary was heard at all."""
        try:
            connection = await self._services.dial(primary, Purpose.LOG, self._volume)
        except ClusterError as error:
            self._note(primary, str(error))
            return False
        if self._primary != primary:
            connection.abort("following another primary")
            return False
        session = LogReceiver(
            connection, self._engine, self.promise, self._services.terms, self._services.env, self._wake
        )
        session.record_epoch = self._record_epoch
        session.on_deleted = self._told_deleted
        session.on_forfeited = lambda: self.on_forfeited()
        self._session = session
        session.start()
        try:
            await asyncio.wait([session.ended])
        finally:
            connection.abort("no longer followed")
        await asyncio.wait([session.ended])
        self._session = None
        self._note(primary, session.reason)
        return session.heartbeats > 0

    def _record_epoch(self) -> int | None:
        view = self._services.watch.view
        record = None if view is None else view.volumes.get(self._volume)
        return None if record is None else record.epoch

    def _told_deleted(self) -> None:
        self.deleted = True
        self._wake()

    def _note(self, primary: UUID, reason: str) -> None:
        if reason != self.reason:
            log.warning("event=not_following volume=%s primary=%s reason=%s", self._volume, primary, reason)
        self.reason = reason
