"""Everything that the volume engine and the file layer raise, each with what the caller can do about it."""


class VolumeError(Exception):
    """Base of all errors of a volume engine."""


class DirectoryLocked(VolumeError):
    """Another process holds this log directory: end it, or wait for it; never break the lock (F4)."""


class LogMissing(VolumeError):
    """There is no log in this directory (new, or wiped): make one with a new log id and join as a newcomer (F5)."""


class LogForeign(VolumeError):
    """A file belongs to another log or volume (swapped directory): put the right one back or start empty."""


class LogCorrupt(VolumeError):
    """Stored bytes are rotten where they must not be: this member resyncs in full from another one."""

    def __init__(self, file: str, offset: int, reason: str) -> None:
        super().__init__(f"{file}: byte {offset}: {reason}")
        self.file = file
        self.offset = offset
        self.reason = reason


class LogRotten(LogCorrupt):
    """Records that were durable do not verify any more. Nothing of them is handed on; a primary puts what it has in
    memory into stripes and drops the segment, then the member that needed them gets a full resync."""

    def __init__(self, file: str, offset: int, reason: str, sequence: int, last_opnum: int) -> None:
        super().__init__(file, offset, reason)
        self.sequence = sequence
        self.last_opnum = last_opnum


class LogDamaged(LogCorrupt):
    """The log has lost data that exists nowhere else here; an operator may accept exactly that loss by its code."""


class LogFailed(VolumeError):
    """A log write or sync failed. Final: service and membership end here, nobody retries (design: write path)."""


class LogHangs(LogFailed):
    """The disk of a log answers nothing at all. Nothing of it is waited for any more: mend the disk, restart the
    head. The directory stays locked until then, because what was asked of the disk may still happen."""


class NoDescriptors(VolumeError):
    """A volume's log is not opened because this process would run out of descriptors: raise its hard limit."""

    def __init__(self, limit: int, used: int, wanted: int) -> None:
        super().__init__(
            f"no descriptors left for another volume: {used} of {limit} are open and a volume takes up to {wanted}; "
            "raise the hard limit of open files of head-node (ulimit -Hn, LimitNOFILE) and start it again"
        )


class LogFull(VolumeError):
    """No room for a log record and none can be made: wait for destage, or give the disk more room."""


class BatchMalformed(VolumeError):
    """Bytes received as log records do not parse or do not verify: drop the link and fetch them again."""


class StaleEpoch(VolumeError):
    """Records of an epoch below the highest one seen: their sender is no longer primary (F5)."""

    def __init__(self, epoch: int, highest_epoch: int) -> None:
        super().__init__(f"epoch {epoch} is below {highest_epoch}, the highest seen")
        self.epoch = epoch
        self.highest_epoch = highest_epoch


class LogDiverged(VolumeError):
    """Records do not continue this log: compare epoch histories, truncate, fetch again; below `committed` resync."""


class WrongRole(VolumeError):
    """The call needs another role (primary or follower) than the engine has now."""


class VolumeStopped(VolumeError):
    """The engine is closed, failed, or stepped down; what was waited for will not happen here."""


class NoSpace(VolumeError):
    """Not one stripe slot is free and compaction cannot free any: give the columns more blocks."""


class NotEnoughColumns(VolumeError):
    """Fewer columns are available than a stripe needs: bring sleds back; writes stay in the log meanwhile."""


class ColumnHangs(VolumeError):
    """A column leaves commands unanswered while its association lives: it is away until it answers, and what was given
    up may still be carried out (F3)."""


class BlockUnreadable(VolumeError):
    """A block cannot be read or reconstructed with the CRC that the map has for it (D2): reported as EIO."""

    def __init__(self, lba: int, reason: str) -> None:
        super().__init__(f"block {lba} is unreadable: {reason}")
        self.lba = lba
        self.reason = reason


class BlockFenced(BlockUnreadable):
    """Sleds refuse reads of this epoch or attach, which says nothing about the block: never answered, asked again if
    the volume is still ours (F6)."""


class BlockAway(BlockUnreadable):
    """Too few shards of a block can be reached now: it may come back with the `columns` that did not give theirs.
    Wait for one of them, and ask again; `moment` says that all of them are attached, so that only time may help."""

    def __init__(self, lba: int, reason: str, columns: frozenset[int], *, moment: bool) -> None:
        super().__init__(lba, reason)
        self.columns = columns
        self.moment = moment


class BlockLost(BlockUnreadable):
    """An operator has declared this block lost: it is an error until it is written or trimmed."""
