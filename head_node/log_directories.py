"""Where a head keeps the logs of its volumes, and what becomes of a log that cannot be used (F5).

A log that is missing, rotten or somebody else's is never repaired in place: it is set aside, and a new one with a new
log id begins, which is another member until it has caught up.
"""

import logging
from typing import Final
from uuid import UUID

from head_node.capacity import Capacity
from head_node.files import Directory, DirectoryRoot
from head_node.store.records import BLOCK_BYTES, VolumeRecord
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogCorrupt, LogForeign, LogMissing
from head_node.volume.limits import Limits
from sled_controller.environment import Environment

log = logging.getLogger(__name__)

SET_ASIDE_MAX: Final = 100
ACCEPTED_FILE: Final = "accept-loss"
"""In a volume's directory: the code of a loss that an operator accepts (`Losses.code`). Nothing here ever writes it."""


class LogDirectories:
    """One directory per volume below `root`."""

    def __init__(
        self, root: DirectoryRoot, head: UUID, env: Environment, limits: Limits | None = None,
        capacity: Capacity | None = None,
    ) -> None:  # fmt: skip
        self._root = root
        self._head = head
        self._env = env
        self._limits = limits or Limits()
        self._capacity = capacity or Capacity()

    async def open(self, record: VolumeRecord) -> VolumeEngine:
        """The engine over the volume's log, made if there is none. Raises VolumeError, OSError; LogCorrupt and
        LogForeign only when no other member could give this head the volume's content again."""
        self._capacity.take_volume()
        root, name = self._root, str(record.volume)
        try:
            directory = root.directory(name)
            return await VolumeEngine.open(
                directory, volume=record.volume, env=self._env, limits=self._limits, accepted_loss=_accepted(directory)
            )
        except LogMissing:
            if root.directory(name).names():
                self._set_aside(name)
        except (LogCorrupt, LogForeign) as error:
            if not any(member.head != self._head for member in record.current):
                raise
            log.error("event=log_unusable volume=%s error=%s", record.volume, error)
            self._set_aside(name)
        directory = root.directory(name)
        try:
            return await VolumeEngine.create(
                directory,
                volume=record.volume,
                geometry=record.geometry,
                size_blocks=-(-record.size_bytes // BLOCK_BYTES),
                env=self._env,
                limits=self._limits,
            )
        except OSError:
            # It was empty before; left there, each try on a full disk would set another one aside.
            await directory.remove_all()
            raise

    async def remove(self, volume: UUID) -> None:
        """Remove a deleted volume's log; the engine is closed."""
        if str(volume) in self._root.names():
            await self._root.directory(str(volume)).remove_all()
            log.info("event=log_removed volume=%s", volume)

    async def set_aside(self, volume: UUID) -> None:
        """Keep the volume's log, whose engine is closed, under another name. Raises OSError."""
        self._set_aside(str(volume))

    def orphans(self, known: set[UUID]) -> list[str]:
        """Directories of volumes that the authority does not assign to this head: never removed by themselves."""
        known_names = {str(volume) for volume in known}
        return [name for name in self._root.names() if name not in known_names]

    def _set_aside(self, name: str) -> None:
        taken = set(self._root.names())
        for number in range(SET_ASIDE_MAX):
            aside = f"{name}.aside-{number}"
            if aside not in taken:
                self._root.rename(name, aside)
                log.error("event=log_set_aside path=%s", self._root.shown(aside))
                return
        raise OSError(
            f"{self._root.shown(name)}: {SET_ASIDE_MAX} logs were set aside already; remove those that nobody needs"
        )


def _accepted(directory: Directory) -> str:
    try:
        return directory.read(ACCEPTED_FILE).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
