"""Faults of what keeps data: the log disks of heads, the drives of sleds."""

import errno
from collections.abc import Callable, Collection
from random import Random
from typing import Final

from rackctl.simulation.faults import Fault, Kind
from rackctl.simulation.loop import NOBODY
from rackctl.simulation.nodes import Drive, HeadNode, SledNode
from rackctl.simulation.site import Site
from spdk_bindings.faults import Operation, Rule
from spdk_bindings.nvme import Status

SECOND_FAULTS_FROM: Final = 10_000
"""Numbers of faults that follow from others."""


class MediaFaults:
    """Makes them, and mends what can be mended."""

    def __init__(self, site: Site, drawn: Collection[Kind], begin: Callable[[Fault], None]) -> None:
        """`begin` begins a second fault, of a kind in `drawn`, that follows from a first one."""
        self._site = site
        self._drawn = drawn
        self._begin = begin
        self.begins: dict[Kind, Callable[[Fault, Random], None]] = {
            Kind.SLOW_LOG: self._slow_log,
            Kind.LOG_FULL: self._fill_log,
            Kind.LOG_ERROR: self._fail_log,
            Kind.LOG_WIPE: self._wipe_log,
            Kind.LOG_ROT: self._rot_log,
            Kind.LOG_SYNC_LOST: self._fail_log,
            Kind.LOG_UNREADABLE: self._fail_reads,
            Kind.LOG_LIES: self._lie,
            Kind.LOG_TAIL_LOST: self._lose_tail,
            Kind.LOG_FILES_FAIL: self._fail_files,
            Kind.LOG_FILES_SLOW: self._fail_files,
            Kind.DRIVE_ERROR: self._fail_drive,
            Kind.DRIVE_SILENT: self._silence_drive,
            Kind.DRIVE_ROT: self._rot_drive,
            Kind.DRIVE_MISDIRECTS: self._misdirect,
            Kind.DRIVE_AWAY: self._take_drive,
            Kind.DRIVE_LIES: self._lie_as_drive,
            Kind.SLED_LIES: self._confuse_sled,
        }
        self.ends: dict[Kind, Callable[[Fault], None]] = {
            Kind.SLOW_LOG: self._mend_head,
            Kind.LOG_FULL: self._mend_head,
            Kind.LOG_ERROR: self._mend_head,
            Kind.LOG_WIPE: self._mend_head,
            Kind.LOG_ROT: self._mend_head,
            Kind.LOG_SYNC_LOST: self._restart_and_lose_power,
            Kind.LOG_UNREADABLE: self._mend_head,
            Kind.LOG_LIES: self._cut_and_start,
            Kind.LOG_TAIL_LOST: self._start_all,
            Kind.LOG_FILES_FAIL: self._mend_head,
            Kind.LOG_FILES_SLOW: self._mend_head,
            Kind.DRIVE_ERROR: self._mend_drives,
            Kind.DRIVE_SILENT: self._restart_mended,
            Kind.DRIVE_AWAY: self._restart_mended,
            Kind.DRIVE_LIES: self._cut_and_start,
            Kind.SLED_LIES: self._restart_mended,
        }

    def _confuse_sled(self, fault: Fault, random: Random) -> None:
        """The controller believes in an epoch that nobody was given, until it restarts (F6)."""
        subsystem = self._site.sled(fault).subsystem
        for state in () if subsystem is None else list(subsystem.volumes.values()):
            fence = state.fence
            if fence.epoch:
                state.retire_holder()
                fence.raise_to(fence.epoch + 1, 0, random.randbytes(32), fence.credential)

    def _slow_log(self, fault: Fault, random: Random) -> None:
        self._site.head(fault).sync_slowness = random.choice((10.0, 300.0, 3000.0))

    def _fill_log(self, fault: Fault, random: Random) -> None:
        disk = self._site.head(fault).disk
        disk.capacity_bytes = disk.used_bytes()

    def _fail_log(self, fault: Fault, random: Random) -> None:
        disk = self._site.head(fault).disk
        disk.fail_commits, disk.clean_when_failed = True, fault.kind is Kind.LOG_SYNC_LOST

    def _fail_reads(self, fault: Fault, random: Random) -> None:
        """All of the log for a while, or some sectors for good."""
        disk = self._site.head(fault).disk
        if random.random() < 0.5:
            disk.fail_reads = True
            return
        segments = [content for path, content in sorted(disk.files.items()) if "/segment-" in path]
        for content in random.sample(segments, min(len(segments), 2)):
            used = range(min(len(content.durable), 1 << 20) // 4096)
            content.unreadable |= {lba for lba in random.sample(used, 20) if any(content.read(lba * 4096, 4096))}

    def _lie(self, fault: Fault, random: Random) -> None:
        self._site.head(fault).disk.lies = True

    def _fail_files(self, fault: Fault, random: Random) -> None:
        disk = self._site.head(fault).disk
        if fault.kind is Kind.LOG_FILES_FAIL:
            disk.fail_files = random.choice((errno.EIO, errno.ENOSPC, errno.EMFILE))
        else:
            most_s = random.choice((0.1, 1.0, 5.0))
            disk.files_slow_s = lambda: random.uniform(0.0, most_s)

    def _lose_tail(self, fault: Fault, random: Random) -> None:
        """The power of everything goes, and a disk that had lied about its last commits has lost them."""
        head = self._site.head(fault)
        for node in self._site.world.nodes:
            node.power_cut()
        for path in head.disk.lose_tails(random.randrange(1, 4)):
            self._site.world.note("fault", f"{head.name} has lost a commit of {path}")

    def _start_all(self, fault: Fault) -> None:
        """In any order: who lost its tail may be the first one."""
        nodes = list(self._site.world.nodes)
        random = self._site.world.stream(f"starts after {fault.number}")
        if random.random() < 0.5:
            self._site.head(fault).start()
        random.shuffle(nodes)
        for node in nodes:
            self._site.later(random.choice((0.0, random.uniform(0.0, 3.0))), node.start)

    def _restart_and_lose_power(self, fault: Fault) -> None:
        """Let the head trust the pages that were never written; then the power of everything goes, as soon as another
        fault may happen, and another head loses the end of its log with it (D1: one head and the power)."""
        self._mend_head(fault)
        if self._site.closed:
            return
        random = self._site.world.stream(f"power after {fault.number}")
        others = [head.name for head in self._site.world.heads if head.name not in fault.targets]
        targets = (random.choice(others),) if Kind.LOG_TAIL_LOST in self._drawn else ()
        kind = Kind.LOG_TAIL_LOST if targets else Kind.RACK_POWER_LOSS
        number, at_s = fault.number + SECOND_FAULTS_FROM, self._site.world.loop.time() + random.uniform(0.3, 2.0)
        second = Fault(number, at_s, 0.1, kind, targets)
        self._site.due.append(self._site.world.loop.call_at(at_s, self._begin, second, context=NOBODY))

    def _cut_and_start(self, fault: Fault) -> None:
        for node in self._site.targets(fault):
            node.power_cut()
            if isinstance(node, HeadNode):
                self._mend_log(node)
            elif isinstance(node, SledNode):
                self._mend_sled(node)
            node.start()

    def _lie_as_drive(self, fault: Fault, random: Random) -> None:
        self._drive(fault, random).lying.lies = True

    def _wipe_log(self, fault: Fault, random: Random) -> None:
        head = self._site.head(fault)
        head.kill()
        head.disk.files.clear()

    def _rot_log(self, fault: Fault, random: Random) -> None:
        head = self._site.head(fault)
        head.kill()
        written = [content for _, content in sorted(head.disk.files.items()) if any(content.durable[:4096])]
        if written:
            content = random.choice(written)
            used = min(len(content.durable), 1 << 20)
            for _ in range(random.choice((1, 20))):
                content.durable[random.randrange(used)] ^= 1 << random.randrange(8)

    def _mend_head(self, fault: Fault) -> None:
        head = self._site.head(fault)
        self._mend_log(head)
        if fault.kind in (Kind.LOG_ERROR, Kind.LOG_SYNC_LOST, Kind.LOG_UNREADABLE):
            head.kill()
        head.start()

    def _mend_log(self, head: HeadNode) -> None:
        head.sync_slowness = 1.0
        disk = head.disk
        disk.capacity_bytes = 1 << 40
        disk.fail_commits = disk.clean_when_failed = disk.fail_reads = disk.lies = False
        disk.fail_files = disk.files_slow_s = None
        disk.settle()

    def _fail_drive(self, fault: Fault, random: Random) -> None:
        status = random.choice((Status.UNRECOVERED_READ_ERROR, Status.INTERNAL_ERROR))
        drive = self._drive(fault, random)
        first = random.randrange(drive.medium.block_count)
        drive.errors.rules.append(Rule(int(status), first, random.choice((1, 64, 4096)), (Operation.READ,)))

    def _mend_drives(self, fault: Fault) -> None:
        for drive in self._site.sled(fault).drives:
            drive.errors.rules.clear()

    def _silence_drive(self, fault: Fault, random: Random) -> None:
        self._drive(fault, random).death.die(silent=True)

    def _take_drive(self, fault: Fault, random: Random) -> None:
        sled = self._site.sled(fault)
        sled.kill()
        self._drive(fault, random).present = False
        sled.start()

    def _restart_mended(self, fault: Fault) -> None:
        """A controller whose drive was silent or away, or that was confused, is restarted by its operator."""
        sled = self._site.sled(fault)
        self._mend_sled(sled)
        sled.kill()
        sled.start()

    def _mend_sled(self, sled: SledNode) -> None:
        for drive in sled.drives:
            drive.errors.rules.clear()
            drive.death.revive()
            drive.lying.lies = False
            if not drive.present:
                drive.present = True
                sled.kill()

    def _rot_drive(self, fault: Fault, random: Random) -> None:
        drive = self._drive(fault, random)
        written = drive.data_blocks()
        for lba in random.sample(written, min(len(written), random.choice((1, 8, 200)))):
            drive.rot.rot(lba, random.randrange(4096), 1 << random.randrange(8))

    def _misdirect(self, fault: Fault, random: Random) -> None:
        drive = self._drive(fault, random)
        written = drive.data_blocks()
        for lba in random.sample(written, min(len(written), 4)):
            drive.misdirected.misdirect(lba, random.choice(written))

    def _drive(self, fault: Fault, random: Random) -> Drive:
        return random.choice(self._site.sled(fault).drives)
