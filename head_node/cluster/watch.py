"""The authority as this head sees it: a long poll that survives outages, and re-reads on request."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol
from uuid import UUID

from head_node.authority.errors import AuthorityError, AuthorityUnavailable, Unenrolled
from head_node.store.records import RackView, VolumeRecord
from sled_controller.backoff import Backoff
from sled_controller.environment import Environment

log = logging.getLogger(__name__)

POLL_WAIT_MS: Final = 10_000
"""How long the authority holds a poll when nothing changes."""
BACKOFF_SECONDS_MIN: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 1.0
UNENROLLED_SECONDS: Final = 30.0
"""Between two polls of a head that is no part of the rack: only another store of the authority's would change that."""


class ViewApi(Protocol):
    async def view(self, after: int | None = None, wait_ms: int = 0) -> RackView: ...


class AuthorityWatch:
    """Keeps the newest view. A view older than one already seen is ignored. A head that the authority does not know, or
    has revoked, has an empty view: it has a part in nothing any more, and every listener hears of that at once."""

    def __init__(self, api: ViewApi, env: Environment | None = None) -> None:
        """Heads that wait for the authority to come back wait differently long, by `env`'s entropy."""
        self._api = api
        self._env = env
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[RackView], None]] = []
        self.view: RackView | None = None
        self.reachable = False
        self.unenrolled = False
        self.reason = "not asked yet"
        self._asked = 0
        self._void_until = 0
        """Views asked for up to then say what was true before this head was put out of the rack."""

    def on_view(self, listener: Callable[[RackView], None]) -> None:
        """Call `listener` with each newer view."""
        self._listeners.append(listener)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._poll())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def refresh(self) -> RackView:
        """Read the view now. Raises AuthorityError."""
        asked = self._ask()
        try:
            view = await self._api.view(None, 0)
        except AuthorityError as error:
            self._unreachable(error)
            raise
        self._take(view, asked)
        return view

    async def record(self, volume: UUID) -> VolumeRecord:
        """Read one volume's record now, trying until there is an answer. Raises AuthorityError when it is gone."""
        backoff = self._backoff()
        while True:
            try:
                view = await self.refresh()
            except AuthorityUnavailable:
                await asyncio.sleep(backoff.next_s())
                continue
            record = view.volumes.get(volume)
            if record is None:
                raise AuthorityError(f"volume {volume} is not in this head's view any more")
            return record

    def _backoff(self) -> Backoff:
        return Backoff(self._env, BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX)

    async def _poll(self) -> None:
        backoff = self._backoff()
        while True:
            asked = self._ask()
            try:
                after = None if self.view is None or not self.reachable else self.view.revision
                view = await self._api.view(after, POLL_WAIT_MS if after is not None else 0)
            except AuthorityError as error:
                self._unreachable(error)
                await asyncio.sleep(UNENROLLED_SECONDS if self.unenrolled else backoff.next_s())
                continue
            backoff.reset()
            self._take(view, asked)

    def _ask(self) -> int:
        self._asked += 1
        return self._asked

    def _take(self, view: RackView, asked: int) -> None:
        if asked <= self._void_until:
            return
        if not self.reachable:
            log.info("event=authority_reachable revision=%d", view.revision)
        again = self.unenrolled
        self.reachable, self.unenrolled, self.reason = True, False, ""
        if self.view is not None and view.revision <= self.view.revision and not again:
            return
        self._hold(view)

    def _hold(self, view: RackView) -> None:
        self.view = view
        for listener in self._listeners:
            try:
                listener(view)
            except Exception:  # the next view must still be seen
                log.exception("event=view_listener_broke revision=%d", view.revision)

    def _unreachable(self, error: AuthorityError) -> None:
        if self.reachable or not self.reason:
            log.warning("event=authority_unreachable error=%s", error)
        self.reachable, self.reason = False, str(error)
        if isinstance(error, Unenrolled) and not self.unenrolled:
            log.error("event=unenrolled error=%s", error)
            self.unenrolled = True
            self._void_until = self._asked
            if self.view is not None:
                self._hold(replace(self.view, heads={}, sleds={}, volumes={}, secrets={}, deleted=frozenset()))
