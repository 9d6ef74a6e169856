"""Where a head keeps the logs of its volumes, and what becomes of a log that cannot be used (F5).

A log that is missing, rotten or somebody else's is never repaired in place: it is set aside, and a new one with a new
log id begins, which is another member until it has caught up.
"""

import errno
import logging
from collections import Counter
from typing import Final
from uuid import UUID

from head_node.capacity import Capacity
from head_node.files import Directory, DirectoryRoot
from head_node.store.records import BLOCK_BYTES, VolumeRecord
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogCorrupt, LogForeign, LogMissing
from head_node.volume.limits import Limits
from head_node.volume.replica import INSTALLING_FILE
from sled_controller.environment import Environment

log = logging.getLogger(__name__)

UNREADABLE_TRIES: Final = 5
"""A log whose disk answers reads with EIO is opened again a second later, by its volume; so often in a row, its sectors
are gone and not only its disk for a moment."""
ACCEPTED_FILE: Final = "accept-loss"
"""In a volume's directory: the code of a loss that an operator accepts (`Losses.code`). Nothing here ever writes it."""
ASIDES_MAX: Final = 2
"""Logs of a volume kept aside: the newest ones. They are evidence, and the last way out if every other copy is lost; a
head that sets one aside at each try would fill its disk with them."""

PARTED_MAX: Final = 100
"""Logs kept of which another one was chosen; none of them is removed to make room."""


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
        self._unreadable: Counter[UUID] = Counter()
        """How often in a row a volume's log could not be read."""

    async def open(self, record: VolumeRecord) -> VolumeEngine:
        """The engine over the volume's log, made if there is none. Raises VolumeError, OSError; LogCorrupt and
        LogForeign only when no other member could give this head the volume's content again."""
        self._capacity.take_volume()
        root, name = self._root, str(record.volume)
        others = any(member.head != self._head for member in record.current)
        try:
            directory = root.directory(name)
            engine = await VolumeEngine.open(
                directory, volume=record.volume, env=self._env, limits=self._limits,
                accepted_loss=_accepted(directory), alone=not others,
            )  # fmt: skip
            del self._unreadable[record.volume]
            return engine
        except LogMissing:
            await self._clear(name, others)
        except (LogCorrupt, LogForeign) as error:
            if not others:
                raise
            log.error("event=log_unusable volume=%s error=%s", record.volume, error)
            await self._set_aside(name, others)
        except OSError as error:
            if not self._given_up(record, error, others):
                raise
            log.error("event=log_unusable volume=%s error=%s", record.volume, error)
            await self._set_aside(name, others)
        return await self._create(record, others)

    async def _create(self, record: VolumeRecord, others: bool) -> VolumeEngine:
        """A new log. When the disk is full, logs set aside go for it, oldest first, if another member has all."""
        name = str(record.volume)
        while True:
            directory = self._root.directory(name)
            try:
                return await VolumeEngine.create(
                    directory,
                    volume=record.volume,
                    geometry=record.geometry,
                    size_blocks=-(-record.size_bytes // BLOCK_BYTES),
                    env=self._env,
                    limits=self._limits,
                )
            except OSError as error:
                # It was empty before; left there, each try on a full disk would set another one aside.
                await directory.remove_all()
                asides = self._asides(name)
                if error.errno != errno.ENOSPC or not others or not asides:
                    raise
                await self._remove_aside(asides[0])

    def _given_up(self, record: VolumeRecord, error: OSError, others: bool) -> bool:
        """Whether the log's sectors are unreadable for good, and another member has what they held."""
        if error.errno != errno.EIO or not others:
            return False
        self._unreadable[record.volume] += 1
        if self._unreadable[record.volume] < UNREADABLE_TRIES:
            return False
        del self._unreadable[record.volume]
        return True

    async def remove(self, volume: UUID) -> None:
        """Remove a deleted volume's log; the engine is closed."""
        if str(volume) in self._root.names():
            await self._root.directory(str(volume)).remove_all()
            log.info("event=log_removed volume=%s", volume)

    async def set_aside(self, volume: UUID) -> None:
        """Keep the volume's log, whose engine is closed, under another name until an operator removes it: it may have
        records that no other log has. Raises OSError."""
        name, taken = str(volume), set(self._root.names())
        for number in range(PARTED_MAX):
            aside = f"{name}.aside-parted-{number}"
            if aside not in taken:
                self._root.rename(name, aside)
                log.error("event=log_set_aside path=%s", self._root.shown(aside))
                return
        raise OSError(
            f"{self._root.shown(name)}: {PARTED_MAX} logs were set aside already; remove those that are not needed"
        )

    def orphans(self, known: set[UUID]) -> list[str]:
        """Directories of volumes that the authority does not assign to this head: never removed by themselves."""
        known_names = {str(volume) for volume in known}
        return [name for name in self._root.names() if name not in known_names]

    async def _clear(self, name: str, others: bool) -> None:
        """Make place for a log where there is none. What an unfinished full resync left is of no use to anybody."""
        names = self._root.directory(name).names()
        if INSTALLING_FILE in names:
            await self._root.directory(name).remove_all()
        elif names:
            await self._set_aside(name, others)

    async def _set_aside(self, name: str, others: bool) -> None:
        """Give the directory another name. When too many are aside, the oldest goes, if another member has all that was
        acknowledged; raises OSError if none has."""
        asides = self._asides(name)
        while len(asides) >= ASIDES_MAX:
            if not others:
                raise OSError(
                    f"{self._root.shown(name)}: {len(asides)} logs were set aside already; remove those that are not"
                    " needed"
                )
            await self._remove_aside(asides.pop(0))
        aside = f"{name}.aside-{1 + max(map(_number, asides), default=-1)}"
        self._root.rename(name, aside)
        log.error("event=log_set_aside path=%s", self._root.shown(aside))

    def _asides(self, name: str) -> list[str]:
        """Logs of the volume that were set aside, oldest first."""
        prefix = f"{name}.aside-"
        found = [other for other in self._root.names() if other.removeprefix(prefix).isdigit()]
        return sorted((other for other in found if other.startswith(prefix)), key=_number)

    async def _remove_aside(self, aside: str) -> None:
        await self._root.directory(aside).remove_all()
        log.warning("event=aside_removed path=%s", self._root.shown(aside))


def _number(aside: str) -> int:
    return int(aside.rpartition("-")[2])


def _accepted(directory: Directory) -> str:
    try:
        return directory.read(ACCEPTED_FILE).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
