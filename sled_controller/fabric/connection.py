"""One NVMe/TCP queue on an event loop: the shell around `host.HostQueue`.

Commands beyond the queue's depth wait here; what is to be sent is written once per loop turn.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from sled_controller.errors import QueueFull, SledUnavailable
from sled_controller.fabric.command import Command, Completed, Connected, Terminated
from sled_controller.fabric.host import HostQueue, HostState
from spdk_bindings.nvme import status_name

log = logging.getLogger(__name__)

WAITING_MAX: Final = 4096  # commands beyond the depth; a caller with more has lost count
TERMINATION_SECONDS_MAX: Final = 1.0

Done = Callable[[Completed], None]


class QueueConnection(asyncio.BufferedProtocol):
    """A queue's connection. `connected` gets the controller id; `on_lost(reason)` is called once, after that.

    A command's `context` is called with its `Completed`. When the connection is lost nothing more is called for the
    commands that `abandoned` hands over.
    """

    def __init__(self, core: HostQueue, on_lost: Callable[[str], None]) -> None:
        self.core = core
        self.heard_s = 0.0
        self._loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[int] = self._loop.create_future()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Command] = deque()
        self._flush_scheduled = False
        self._paused = False
        self._lost = False
        self._aborted = False
        self._reason = ""

    def submit(self, command: Command) -> None:
        """Send `command` now, or when a completion makes room; raises QueueFull, SledUnavailable."""
        if self._lost or self.core.state is not HostState.LIVE:
            raise SledUnavailable(self._reason or "the queue is not live")
        if self._waiting or not self.core.has_room:
            if len(self._waiting) >= WAITING_MAX:
                raise QueueFull(f"{WAITING_MAX} commands wait for the sled already")
            self._waiting.append(command)
            return
        self.core.submit(command, self._loop.time())
        self._flush_soon()

    def abandoned(self) -> list[Command]:
        """The commands that nobody will answer any more, oldest first; taken once."""
        commands = [*self.core.outstanding.values(), *self._waiting]
        self.core.outstanding.clear()
        self._waiting.clear()
        return commands

    def oldest_s(self) -> float | None:
        """When the oldest outstanding command was submitted, in loop time."""
        for command in self.core.outstanding.values():
            return command.submitted_s
        return None

    def abort(self) -> None:
        """Close at once, without waiting for a sled that may not read any more; what is queued is dropped.

        A connection that is still being made is closed as soon as it is there.
        """
        self._aborted = True
        if self._transport is not None and not self._lost:
            self._transport.abort()

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        if self._aborted:
            self._transport.abort()
            return
        self.heard_s = self._loop.time()
        self.core.start()
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.core.receive_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.heard_s = self._loop.time()
        for event in self.core.received(nbytes):
            if type(event) is Completed:
                event.command.context(event)
            elif isinstance(event, Connected):
                if not self.connected.done():
                    self.connected.set_result(event.controller_id)
            elif isinstance(event, Terminated):
                log.warning(
                    "event=queue_terminated queue=%d by=%s fes=%d fei=%d reason=%s", self.core.queue_id,
                    "sled" if event.by_peer else "host", event.fes, event.fei, event.reason,
                )  # fmt: skip
                self._end(event.reason)
                return
            else:
                self._end(f"connect was refused with {status_name(event.status)}")
                return
        core = self.core
        waiting = self._waiting
        while waiting and core.has_room:
            core.submit(waiting.popleft(), self.heard_s)
        self._flush_soon()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.core.end_of_stream()
        self._lose(self._reason or (f"the connection is lost: {exc}" if exc else "the sled closed the connection"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # --- inside

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        transport = self._transport
        if self._paused or transport is None or transport.is_closing():
            return
        buffers = self.core.data_to_send()
        if not buffers:
            return
        try:
            transport.writelines(buffers)
        except RuntimeError as error:
            # uvloop may have closed the handle without saying so; `connection_lost` is on its way.
            log.debug("event=write_to_closed_queue queue=%d error=%s", self.core.queue_id, error)

    def _end(self, reason: str) -> None:
        """Close after a TermReq, theirs or ours; ours is given a moment to leave."""
        self._reason = reason
        transport = self._transport
        assert transport is not None
        self._flush()
        transport.close()
        self._loop.call_later(TERMINATION_SECONDS_MAX, transport.abort)
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if self._lost:
            return
        self._lost = True
        self._reason = reason
        if not self.connected.done():
            self.connected.set_exception(SledUnavailable(reason))
            self.connected.exception()  # the one who waits reads it again; nobody may be waiting
        self._on_lost(reason)
