"""Where a head keeps the logs of its volumes, and what becomes of a log that cannot be used (F5).

A log that is missing, rotten or somebody else's is never repaired in place: it is set aside, and a new one with a new
log id begins, which is another member until it has caught up.
"""

import logging
from pathlib import Path
from typing import Final
from uuid import UUID

from head_node.files import HostDirectory
from head_node.store.records import BLOCK_BYTES, VolumeRecord
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogCorrupt, LogForeign, LogMissing
from sled_controller.environment import Environment

log = logging.getLogger(__name__)

SET_ASIDE_MAX: Final = 100


class LogDirectories:
    """One directory per volume below `root`."""

    def __init__(self, root: Path, head: UUID, env: Environment) -> None:
        self._root = root
        self._head = head
        self._env = env

    async def open(self, record: VolumeRecord) -> VolumeEngine:
        """The engine over the volume's log, made if there is none. Raises VolumeError, OSError; LogCorrupt and
        LogForeign only when no other member could give this head the volume's content again."""
        path = self._path(record.volume)
        try:
            return await VolumeEngine.open(HostDirectory(path), volume=record.volume, env=self._env)
        except LogMissing:
            if HostDirectory(path).names():
                self._set_aside(path)
        except (LogCorrupt, LogForeign) as error:
            if not any(member.head != self._head for member in record.current):
                raise
            log.error("event=log_unusable volume=%s error=%s", record.volume, error)
            self._set_aside(path)
        directory = HostDirectory(path)
        try:
            return await VolumeEngine.create(
                directory,
                volume=record.volume,
                geometry=record.geometry,
                size_blocks=-(-record.size_bytes // BLOCK_BYTES),
                env=self._env,
            )
        except OSError:
            # It was empty before; left there, each try on a full disk would set another one aside.
            await directory.remove_all()
            raise

    async def remove(self, volume: UUID) -> None:
        """Remove a deleted volume's log; the engine is closed."""
        if self._path(volume).is_dir():
            await HostDirectory(self._path(volume)).remove_all()
            log.info("event=log_removed volume=%s", volume)

    def orphans(self, known: set[UUID]) -> list[str]:
        """Directories of volumes that the authority does not assign to this head: never removed by themselves."""
        if not self._root.is_dir():
            return []
        names = {str(volume) for volume in known}
        return sorted(path.name for path in self._root.iterdir() if path.name not in names)

    def _path(self, volume: UUID) -> Path:
        return self._root / str(volume)

    def _set_aside(self, path: Path) -> None:
        for number in range(SET_ASIDE_MAX):
            aside = path.with_name(f"{path.name}.aside-{number}")
            if not aside.exists():
                path.rename(aside)
                log.error("event=log_set_aside path=%s", aside)
                return
        raise OSError(f"{path}: {SET_ASIDE_MAX} logs were set aside already; remove those that nobody needs")
