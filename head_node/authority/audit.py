"""The audit trail: who changed what, from where, and what came of it; and what the authority did by itself.

It lies in the store's journal. Nothing that a head says gets into it, only what the authority has done at its request,
under the head's own name, so that no head washes out the lines of others. A change that an operator asks for is in it
before the answer leaves; what heads cause follows within moments.
"""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from head_node.authority.errors import AuthorityUnavailable
from head_node.authority.plain_text import plain
from head_node.store.errors import StoreError
from head_node.store.interface import Line, Store
from sled_controller.environment import Environment

LINES_KEPT: Final = 100_000
"""About 30 MB."""
LINE_BYTES_MAX: Final = 4096
PENDING_MAX: Final = 4096
"""Lines that wait for a store that fails; what comes on top is counted."""
PAGE_MAX: Final = 1000
RETRY_S: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for something, and from where: `token:NAME`, `head:ID`, or the authority itself."""

    name: str
    source: str = ""


ITSELF: Final = Actor("authority")
_asking: ContextVar[Actor] = ContextVar("asking", default=ITSELF)


def asks(actor: Actor) -> None:
    """Everything that this task does until the end of the `request` is done for `actor`."""
    _asking.set(actor)


@contextlib.contextmanager
def request() -> Iterator[None]:
    """The length of a request: for the authority itself until the asker has proved its right."""
    before = _asking.set(ITSELF)
    try:
        yield
    finally:
        _asking.reset(before)


def asking() -> Actor:
    """Whom this task does everything for."""
    return _asking.get()


class Audit:
    """Writes the trail and reads it. Between `start` and `close` what nothing waits for is written too."""

    def __init__(self, store: Store, env: Environment, lines_max: int) -> None:
        self._store = store
        self._env = env
        self._lines_max = lines_max
        self._pending: deque[Line] = deque()
        self._lost = 0
        self._due = asyncio.Event()
        self._turn = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    def note(
        self, action: str, *, target: str = "", result: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        """Add a line in the name of the one whose request this task carries out."""
        actor = asking()
        said = {
            "time_ms": self._env.clock.wall_ms(),
            "actor": actor.name,
            "source": actor.source,
            "action": action,
            "target": plain(target),
            "result": plain(result),
            "details": dict(details or {}),
        }
        value = _encoded(said)
        if len(value) > LINE_BYTES_MAX:
            value = _encoded(said | {"target": plain(target)[:256], "details": {"too_long": True}})
        if len(self._pending) >= PENDING_MAX:
            self._lost += 1
            return
        self._pending.append(Line(actor.name, value))
        self._due.set()

    async def flush(self) -> None:
        """Make durable what was noted. Raises AuthorityUnavailable; the lines are kept for the next time."""
        async with self._turn:
            if not self._pending:
                return
            lines = list(self._pending)
            try:
                await self._store.append(lines, self._lines_max)
            except StoreError as error:
                raise AuthorityUnavailable(f"the audit trail cannot be written: {error}") from error
            for _ in lines:
                self._pending.popleft()
            if not self._pending and not self._closing:
                self._due.clear()
            lost, self._lost = self._lost, 0
            if lost:
                self.note("audit-lines-lost", details={"count": lost})

    def start(self) -> None:
        """Write what was noted soon, from now on."""
        self._writer = asyncio.get_running_loop().create_task(self._write(), name="authority-audit")

    async def close(self) -> None:
        """Write what is left, if the store takes it. A writer that is cut off could not say what it had written."""
        self._closing = True
        self._due.set()
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        while not self._closing or self._pending:
            await self._due.wait()
            try:
                await self.flush()
            except AuthorityUnavailable as error:
                _log.error("event=audit-not-written lines=%d error=%r", len(self._pending), str(error))
                if self._closing:
                    return
                await asyncio.sleep(RETRY_S)

    async def page(self, after: int, count_max: int) -> list[dict[str, Any]]:
        """Lines with a sequence above `after`, oldest first."""
        try:
            found = await self._store.journal(after, min(count_max, PAGE_MAX))
        except StoreError as error:
            raise AuthorityUnavailable(f"the audit trail cannot be read: {error}") from error
        return [{"sequence": line.sequence, **json.loads(line.value)} for line in found]


def _encoded(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode()
