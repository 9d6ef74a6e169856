"""Room for checkpoints on a head's disk: two copies of the newest, and blocks kept for the next one.

A checkpoint is how a log gets shorter, so a full disk must not stop it: clients wait as soon as the next one might be
larger than what is kept for it.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from head_node.files import Directory
from head_node.volume.checkpoint import CHECKPOINT_COPY, CHECKPOINT_FILE
from sled_controller.backoff import Backoff
from spdk_bindings.device import Buffer

ROOM_FILE: Final = "room"
ROOM_BYTES_FIRST_MAX: Final = 8 << 20
"""What a new log keeps at most: small volumes have all that they will ever need from the beginning."""
RETRY_SECONDS: Final = 0.5
RETRY_SECONDS_MAX: Final = 4.0
"""How long to wait before a disk is asked again that had no room, or failed: at first, and at last."""

logger = logging.getLogger(__name__)


class CheckpointRoom:
    """Writes the checkpoints of one directory."""

    def __init__(self, directory: Directory, bytes_max: int, give_up_spare: Callable[[], Awaitable[bool]]) -> None:
        """`bytes_max`: what a checkpoint of this volume may ever have. `give_up_spare` gives a spare segment back to
        the disk, or says False."""
        self._directory = directory
        self._give_up_spare = give_up_spare
        self._bytes_max = bytes_max
        self.kept_bytes = directory.size_of(ROOM_FILE)
        self.refused: str | None = None
        """Why the room cannot be had, while it cannot."""
        self.on_room: Callable[[], None] = lambda: None
        self._wanted_bytes = 0
        self._growing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._backoff = Backoff(None, RETRY_SECONDS, RETRY_SECONDS_MAX)
        self._closed = False

    def enough(self, needed_bytes: int) -> bool:
        """Whether a checkpoint of `needed_bytes` can be written whatever else is on the disk; asks for more if not,
        and early, so that nothing waits for it."""
        if needed_bytes * 4 > self.kept_bytes * 3:
            self._want(needed_bytes)
        return needed_bytes <= self.kept_bytes

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Put a checkpoint in place, then its copy: at each moment one of them is whole. Raises OSError when neither
        was written."""
        await self.put(CHECKPOINT_FILE, buffers)
        try:
            await self.put(CHECKPOINT_COPY, buffers)
        except OSError as error:
            # The former copy may need more log than there is soon; freeing room comes first.
            logger.error("event=checkpoint_copy_failed path=%s error=%s", self._directory.path, error)
        self._want(sum(map(len, buffers)))

    async def put(self, name: str, buffers: Sequence[Buffer]) -> None:
        """Put a file in place; in the kept blocks if there are no others. Raises OSError."""
        try:
            await self._directory.replace(name, buffers)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.kept_bytes:
                raise
            self.kept_bytes = 0
            logger.warning("event=checkpoint_takes_kept_room path=%s file=%s", self._directory.path, name)
            await self._directory.replace(name, buffers, within=ROOM_FILE)

    def _want(self, needed_bytes: int) -> None:
        self._wanted_bytes = max(self._wanted_bytes, min(2 * needed_bytes, max(self._bytes_max, needed_bytes)))
        if self._growing is None and self._retry is None and not self._closed and self._wanted_bytes > self.kept_bytes:
            self._growing = asyncio.get_running_loop().create_task(self._grow())

    async def keep_first(self) -> None:
        """What a new log keeps. Raises OSError."""
        self._wanted_bytes = min(self._bytes_max, ROOM_BYTES_FIRST_MAX)
        await self._directory.reserve(ROOM_FILE, self._wanted_bytes)
        self.kept_bytes = self._wanted_bytes

    async def _grow(self) -> None:
        wanted = self._wanted_bytes
        try:
            await self._reserve(wanted)
            self.kept_bytes, self.refused = wanted, None
            self._backoff.reset()
        except OSError as error:
            if self.refused is None:
                logger.error("event=checkpoint_room_refused path=%s error=%s", self._directory.path, error)
            self.refused = str(error)
            self._retry = asyncio.get_running_loop().call_later(self._backoff.next_s(), self._again)
        finally:
            self._growing = None
        self.on_room()

    async def _reserve(self, wanted: int) -> None:
        try:
            await self._directory.reserve(ROOM_FILE, wanted)
        except OSError as error:
            if error.errno != errno.ENOSPC or not await self._give_up_spare():
                raise
            await self._directory.reserve(ROOM_FILE, wanted)

    def _again(self) -> None:
        self._retry = None
        self._want(0)

    async def close(self) -> None:
        """Ask for nothing more."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._growing is not None:
            await asyncio.wait([self._growing])
