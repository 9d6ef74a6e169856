"""The authority as this head sees it: a long poll that survives outages, and re-reads on request."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol
from uuid import UUID

from head_node.authority.errors import AuthorityError, AuthorityUnavailable
from head_node.store.records import RackView, VolumeRecord

log = logging.getLogger(__name__)

POLL_WAIT_MS: Final = 10_000
"""How long the authority holds a poll when nothing changes."""
BACKOFF_SECONDS_MIN: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 1.0


class ViewApi(Protocol):
    async def view(self, after: int | None = None, wait_ms: int = 0) -> RackView: ...


class AuthorityWatch:
    """Keeps the newest view. A view older than one already seen is ignored."""

    def __init__(self, api: ViewApi) -> None:
        self._api = api
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[RackView], None]] = []
        self.view: RackView | None = None
        self.reachable = False
        self.reason = "not asked yet"

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
        try:
            view = await self._api.view(None, 0)
        except AuthorityError as error:
            self._unreachable(error)
            raise
        self._take(view)
        return view

    async def record(self, volume: UUID) -> VolumeRecord:
        """Read one volume's record now, trying until there is an answer. Raises AuthorityError when it is gone."""
        pause = BACKOFF_SECONDS_MIN
        while True:
            try:
                view = await self.refresh()
            except AuthorityUnavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_SECONDS_MAX)
                continue
            record = view.volumes.get(volume)
            if record is None:
                raise AuthorityError(f"volume {volume} is not in this head's view any more")
            return record

    async def _poll(self) -> None:
        pause = BACKOFF_SECONDS_MIN
        while True:
            try:
                after = None if self.view is None or not self.reachable else self.view.revision
                view = await self._api.view(after, POLL_WAIT_MS if after is not None else 0)
            except AuthorityError as error:
                self._unreachable(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_SECONDS_MAX)
                continue
            pause = BACKOFF_SECONDS_MIN
            self._take(view)

    def _take(self, view: RackView) -> None:
        if not self.reachable:
            log.info("event=authority_reachable revision=%d", view.revision)
        self.reachable, self.reason = True, ""
        if self.view is not None and view.revision <= self.view.revision:
            return
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
