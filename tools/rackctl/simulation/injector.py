"""Makes the faults of a plan happen to a world, within the budget, and mends everything at the end."""

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final

from head_node.cluster.states import VolumeState
from rackctl.simulation.budget import Budget
from rackctl.simulation.faults import ACTOR, OPERATORS, PRIMARY, Fault, Kind
from rackctl.simulation.loop import NOBODY
from rackctl.simulation.nodes import RETRY_SECONDS, Drive, HeadNode, Node, SledNode
from rackctl.simulation.operations import restorable
from rackctl.simulation.store import Backup
from rackctl.simulation.tenants import Tenant, Tenants
from spdk_bindings.faults import Operation, Rule
from spdk_bindings.nvme import Status

if TYPE_CHECKING:
    from rackctl.simulation.world import World

STEP_DELAY_S: Final = 0.02
"""How long at most after a step a fault that waits for it begins: within what the step leads to."""
CLOCK_READINGS_MAX: Final = 60
COMMIT_S: Final = 100e-6
"""About as long as a sync takes."""
DAY_MS: Final = 86_400_000
SECOND_FAULTS_FROM: Final = 10_000
"""Numbers of faults that follow from others."""


class Injector:
    """Makes faults happen to a world, and mends everything at the end."""

    def __init__(self, world: "World", tenants: Tenants, drawn: Collection[Kind]) -> None:
        """Second faults, which follow from a first one, are of kinds in `drawn` too."""
        self._world = world
        self._tenants = tenants
        self._drawn = drawn
        self._budget = Budget(world)
        self._nodes: dict[str, Node] = {node.name: node for node in world.nodes}
        self.begun: Counter[Kind] = Counter()
        self.refused: Counter[Kind] = Counter()
        self._due: list[asyncio.TimerHandle] = []
        self._waiting: list[Fault] = []
        self._at_step: dict[str, list[Callable[[], None]]] = {}
        """What a fault that has begun does when somebody takes a step."""
        self._volumes: dict[int, asyncio.Future[Tenant]] = {}
        self._backups: dict[int, Backup] = {}
        self._freezes: dict[int, asyncio.Task[None]] = {}
        self._revocations: dict[int, asyncio.Task[None]] = {}

    def schedule(self, faults: Sequence[Fault]) -> None:
        """Let each begin in its time."""
        loop = self._world.loop
        self._world.watchers.on_step = self._stepped
        for fault in faults:
            act = self._begin if fault.step is None else self._waiting.append
            self._due.append(loop.call_at(fault.at_s, act, fault, context=NOBODY))

    def mend(self) -> None:
        """End whatever is going on: links, clocks, disks, processes; drives stay damaged, and nothing more begins. What
        the operator has begun is done to its end."""
        for handle in self._due:
            handle.cancel()
        self._waiting.clear()
        self._at_step.clear()
        world = self._world
        for one in world.nodes:
            for other in world.nodes:
                world.network.heal(one.address, other.address)
        for node in world.nodes:
            node.clock.wall_offset_ms = 0
            node.clock.on_read = None
            node.resume()
            if node.ending:
                node.kill()
        at_work = [fault for fault in self._budget.active if fault.kind in OPERATORS]
        for fault in self._budget.active:
            if fault not in at_work:
                self._end(fault)
        for node in world.nodes:
            node.start()
        for fault in at_work:
            self._end(fault)

    def _stepped(self, step: str, process: str) -> None:
        """Somebody has taken a step: what waits for it begins a moment later."""
        actor = process.partition("#")[0]
        for act in self._at_step.pop(step, ()):
            act()
        for fault in [fault for fault in self._waiting if fault.step == step]:
            self._waiting.remove(fault)
            targets = tuple(actor if name == ACTOR else name for name in fault.targets)
            # Often within the first millisecond: most steps take no longer.
            delay_s = STEP_DELAY_S * self._world.stream(f"delay {fault.number}").random() ** 4
            loop = self._world.loop
            self._due.append(loop.call_later(delay_s, self._begin, replace(fault, targets=targets), context=NOBODY))

    def _begin(self, fault: Fault) -> None:
        random = self._world.stream(f"fault {fault.number}")
        fault = replace(fault, targets=tuple(self._named(name, random) for name in fault.targets))
        reason = self._budget.refusal(fault)
        if reason is not None:
            self.refused[fault.kind] += 1
            self._world.note("fault", f"{fault} not admitted: {reason}")
            return
        self.begun[fault.kind] += 1
        self._budget.begun(fault)
        self._world.note("fault", f"{fault} begins")
        _BEGIN[fault.kind](self, fault, random)
        self._later(fault.seconds, self._end, fault)

    def _end(self, fault: Fault) -> None:
        self._world.note("fault", f"{fault} ends")
        end = _END.get(fault.kind)
        if end is not None:
            end(self, fault)
        self._budget.ended(fault)

    def _later(self, seconds: float, act: Callable[..., None], *args: object) -> None:
        self._due.append(self._world.loop.call_later(seconds, act, *args, context=NOBODY))

    def _named(self, name: str, random: Random) -> str:
        if name != PRIMARY:
            return name
        heads = [head.name for head in self._world.heads]
        primaries = [record.primary for record in self._world.records() if record.primary is not None]
        found = self._world.name_of(random.choice(primaries)) if primaries else ""
        return found if found in heads else heads[0]

    # what each kind does

    def _targets(self, fault: Fault) -> list[Node]:
        return [self._nodes[name] for name in fault.targets] or self._world.nodes

    def _kill(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.kill()

    def _cut_power(self, fault: Fault, random: Random) -> None:
        """Now, or in the middle of the next commit of a head, which it tears."""
        heads = [node for node in self._targets(fault) if isinstance(node, HeadNode) and node.running]
        if not heads or random.random() < 0.3:
            self._cut_power_now(fault)
            return
        head = random.choice(heads)

        def begun() -> None:
            head.disk.on_commit = None
            delay_s = random.uniform(0.0, COMMIT_S) * head.sync_slowness
            self._world.loop.call_later(min(delay_s, fault.seconds / 2), self._cut_power_now, fault, context=NOBODY)

        head.disk.on_commit = begun

    def _cut_power_now(self, fault: Fault) -> None:
        if fault in self._budget.active:
            for node in self._targets(fault):
                node.power_cut()

    def _start(self, fault: Fault) -> None:
        for node in self._targets(fault):
            if isinstance(node, HeadNode):
                node.disk.on_commit = None
            node.start()

    def _start_again(self, fault: Fault) -> None:
        """What was told to end starts again, by its service manager, as soon as it has ended."""
        for node in self._targets(fault):
            if node.ending:
                self._later(RETRY_SECONDS, self._start_again, fault)
            else:
                node.start()

    def _pause(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.pause()

    def _resume(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.resume()

    def _stop_in_turn(self, fault: Fault, random: Random) -> None:
        """SIGSTOP between two instructions: right after the head has looked at its clock."""
        node = self._head(fault)
        left = random.randrange(1, CLOCK_READINGS_MAX)

        def read() -> None:
            nonlocal left
            left -= 1
            if not left and node.running:
                node.clock.on_read = None
                node.pause()

        node.clock.on_read = read

    def _end_stop(self, fault: Fault) -> None:
        node = self._head(fault)
        node.clock.on_read = None
        node.resume()

    def _terminate(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.terminate()

    def _pairs(self, fault: Fault) -> list[tuple[str, str]]:
        one = self._nodes[fault.targets[0]].address
        if fault.kind is Kind.ISOLATE:
            others = [node.address for node in self._world.nodes if node.address != one]
        else:
            others = [self._nodes[fault.targets[1]].address]
        there = [(one, other) for other in others]
        if fault.kind in (Kind.CUT, Kind.SLOW_LINK):
            return there
        return there + [(other, one) for one, other in there]

    def _cut(self, fault: Fault, random: Random) -> None:
        for source, target in self._pairs(fault):
            self._world.network.cut(source, target)

    def _ways(self, head: HeadNode, others: Sequence[Node], random: Random) -> list[tuple[str, str]]:
        """Both directions between a head and others, or one."""
        out = [(head.address, other.address) for other in others if other is not head]
        back = [(there, here) for here, there in out]
        return random.choice((out + back, out + back, out, back))

    def _blind(self, fault: Fault, random: Random) -> None:
        """Cut a head from everybody but its clients."""
        head, world = self._head(fault), self._world
        groups: tuple[Sequence[Node], ...] = (world.heads, world.sleds, [world.authority])
        for source, target in [pair for group in groups for pair in self._ways(head, group, random)]:
            world.network.cut(source, target)

    def _see(self, fault: Fault) -> None:
        head = self._head(fault)
        for other in self._world.nodes:
            self._world.network.heal(head.address, other.address)
            self._world.network.heal(other.address, head.address)

    def _revive(self, fault: Fault, random: Random) -> None:
        """Cut a head from everybody but its clients, and let it find the other heads again about when they have
        given it up and ask a slow authority for the next epoch: it still knows nothing of a successor."""
        head, world = self._head(fault), self._world
        others = [other for other in world.heads if other is not head]
        for node in (*others, *world.sleds, world.authority):
            world.network.cut(head.address, node.address)
            world.network.cut(node.address, head.address)
        slowness = random.choice((1.0, 300.0, 3000.0, 3000.0))
        to_authority = [(other.address, world.authority.address) for other in others]
        for pair in (*to_authority, *((there, here) for here, there in to_authority)):
            world.network.link(*pair).slowness = slowness

        def find() -> None:
            for other in others:
                world.network.heal(head.address, other.address)
                world.network.heal(other.address, head.address)

        if random.random() < 0.5:
            self._later(random.uniform(0.7, 1.6) * world.shape.ttl_ms / 1000, find)
        else:
            self._at_step[VolumeState.SEALED.value] = [find]
        # Only the question is slow: what follows the grant comes while what was promised meanwhile still binds.
        self._at_step[VolumeState.ATTACHING.value] = [self._hurry]

    def _hurry(self) -> None:
        for head in self._world.heads:
            for source, target in ((head, self._world.authority), (self._world.authority, head)):
                self._world.network.link(source.address, target.address).slowness = 1.0

    def _end_revival(self, fault: Fault) -> None:
        self._at_step.clear()
        self._see(fault)
        self._hurry()

    def _slow(self, fault: Fault, random: Random) -> None:
        for source, target in self._pairs(fault):
            link = self._world.network.link(source, target)
            link.slowness, link.bytes_per_s = random.choice((10.0, 100.0, 1000.0)), random.choice((1e9, 1e7, 1e6))

    def _heal(self, fault: Fault) -> None:
        for source, target in self._pairs(fault):
            self._world.network.heal(source, target)

    def _reset_connections(self, fault: Fault, random: Random) -> None:
        pair = {self._nodes[name].address for name in fault.targets}
        for endpoint in list(self._world.network.endpoints):
            if {endpoint.node, endpoint.peer_address[0]} == pair and random.random() < 0.7:
                endpoint.break_connection()

    def _jump(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            # Far below a credential's term, or nobody is served until the clocks have caught up.
            far_ms = self._world.shape.credential_term_ms // 5
            node.clock.wall_offset_ms += random.choice((-far_ms, -2_000, 2_000, far_ms))

    def _unjump(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.clock.wall_offset_ms = 0

    def _jump_a_day(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.clock.wall_offset_ms += random.choice((-DAY_MS, DAY_MS))

    def _be_busy(self, fault: Fault, random: Random) -> None:
        """Its one thread has much to compute, or gets little of a processor."""
        ttl_s = self._world.shape.ttl_ms / 1000
        turn_s, work_s = random.choice(((0.0, 0.2 * ttl_s), (0.0, 1.2 * ttl_s), (2e-4, 0.0), (2e-4, 0.05 * ttl_s)))
        for node in self._targets(fault):
            node.slow_down(turn_s, work_s)

    def _rest(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.slow_down(0.0, 0.0)

    def _use_up_descriptors(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            self._world.network.without_descriptors.add(node.address)
            if isinstance(node, HeadNode):
                node.disk.no_descriptors = True

    def _give_back_descriptors(self, fault: Fault) -> None:
        for node in self._targets(fault):
            self._world.network.without_descriptors.discard(node.address)
            if isinstance(node, HeadNode):
                node.disk.no_descriptors = False
            # Who ended because it could not open a file is started again.
            node.start()

    def _slow_log(self, fault: Fault, random: Random) -> None:
        self._head(fault).sync_slowness = random.choice((10.0, 300.0, 3000.0))

    def _fill_log(self, fault: Fault, random: Random) -> None:
        disk = self._head(fault).disk
        disk.capacity_bytes = disk.used_bytes()

    def _fail_log(self, fault: Fault, random: Random) -> None:
        disk = self._head(fault).disk
        disk.fail_commits, disk.clean_when_failed = True, fault.kind is Kind.LOG_SYNC_LOST

    def _fail_reads(self, fault: Fault, random: Random) -> None:
        """All of the log for a while, or some sectors for good."""
        disk = self._head(fault).disk
        if random.random() < 0.5:
            disk.fail_reads = True
            return
        segments = [content for path, content in sorted(disk.files.items()) if "/segment-" in path]
        for content in random.sample(segments, min(len(segments), 2)):
            used = range(min(len(content.durable), 1 << 20) // 4096)
            content.unreadable |= {lba for lba in random.sample(used, 20) if any(content.read(lba * 4096, 4096))}

    def _lie(self, fault: Fault, random: Random) -> None:
        self._head(fault).disk.lies = True

    def _fail_files(self, fault: Fault, random: Random) -> None:
        disk = self._head(fault).disk
        if fault.kind is Kind.LOG_FILES_FAIL:
            disk.fail_files = random.choice((errno.EIO, errno.ENOSPC, errno.EMFILE))
        else:
            most_s = random.choice((0.1, 1.0, 5.0))
            disk.files_slow_s = lambda: random.uniform(0.0, most_s)

    def _lose_tail(self, fault: Fault, random: Random) -> None:
        """The power of everything goes, and a disk that had lied about its last commits has lost them."""
        head = self._head(fault)
        for node in self._world.nodes:
            node.power_cut()
        for path in head.disk.lose_tails(random.randrange(1, 4)):
            self._world.note("fault", f"{head.name} has lost a commit of {path}")

    def _start_all(self, fault: Fault) -> None:
        """In any order: who lost its tail may be the first one."""
        nodes = list(self._world.nodes)
        random = self._world.stream(f"starts after {fault.number}")
        if random.random() < 0.5:
            self._head(fault).start()
        random.shuffle(nodes)
        for node in nodes:
            self._later(random.choice((0.0, random.uniform(0.0, 3.0))), node.start)

    def _restart_and_lose_power(self, fault: Fault) -> None:
        """Let the head trust the pages that were never written; then the power of everything goes, as soon as another
        fault may happen, and another head loses the end of its log with it (D1: one head and the power)."""
        self._mend_head(fault)
        random = self._world.stream(f"power after {fault.number}")
        others = [head.name for head in self._world.heads if head.name not in fault.targets]
        targets = (random.choice(others),) if Kind.LOG_TAIL_LOST in self._drawn else ()
        kind = Kind.LOG_TAIL_LOST if targets else Kind.RACK_POWER_LOSS
        number, at_s = fault.number + SECOND_FAULTS_FROM, self._world.loop.time() + random.uniform(0.3, 2.0)
        second = Fault(number, at_s, 0.1, kind, targets)
        self._due.append(self._world.loop.call_at(at_s, self._begin, second, context=NOBODY))

    def _cut_and_start(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.power_cut()
            if isinstance(node, HeadNode):
                self._mend_log(node)
            elif isinstance(node, SledNode):
                self._mend_sled(node)
            node.start()

    def _lie_as_drive(self, fault: Fault, random: Random) -> None:
        self._drive(fault, random).lying.lies = True

    def _wipe_log(self, fault: Fault, random: Random) -> None:
        head = self._head(fault)
        head.kill()
        head.disk.files.clear()

    def _rot_log(self, fault: Fault, random: Random) -> None:
        head = self._head(fault)
        head.kill()
        written = [content for _, content in sorted(head.disk.files.items()) if any(content.durable[:4096])]
        if written:
            content = random.choice(written)
            used = min(len(content.durable), 1 << 20)
            for _ in range(random.choice((1, 20))):
                content.durable[random.randrange(used)] ^= 1 << random.randrange(8)

    def _mend_head(self, fault: Fault) -> None:
        head = self._head(fault)
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
        for drive in self._sled(fault).drives:
            drive.errors.rules.clear()

    def _silence_drive(self, fault: Fault, random: Random) -> None:
        self._drive(fault, random).death.die(silent=True)

    def _take_drive(self, fault: Fault, random: Random) -> None:
        sled = self._sled(fault)
        sled.kill()
        self._drive(fault, random).present = False
        sled.start()

    def _restart_mended(self, fault: Fault) -> None:
        """A controller whose drive was silent or away, or that was confused, is restarted by its operator."""
        sled = self._sled(fault)
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

    def _confuse_sled(self, fault: Fault, random: Random) -> None:
        """The controller believes in an epoch that nobody was given, until it restarts (F6)."""
        subsystem = self._sled(fault).subsystem
        for state in () if subsystem is None else list(subsystem.volumes.values()):
            fence = state.fence
            if fence.epoch:
                state.retire_holder()
                fence.raise_to(fence.epoch + 1, 0, random.randbytes(32), fence.credential)

    def _lose_commit(self, fault: Fault, random: Random) -> None:
        self._world.authority.store.lose = random.choice(("before", "after"))

    # what the operator does

    def _revoke(self, fault: Fault, random: Random) -> None:
        head, world = self._head(fault), self._world
        first = random.choice(("nothing", "pause", "isolate"))
        if first == "pause":
            head.pause()
        elif first == "isolate":
            for node in (*world.heads, world.authority):
                world.network.cut(head.address, node.address)
                world.network.cut(node.address, head.address)
        # It finds the rack again, or awakes, as a head that is none any more.
        self._later(random.uniform(0.0, fault.seconds), self._see_again, head)
        self._revocations[fault.number] = world.operator.begin(world.operator.revoke(head), "revocation")

    def _see_again(self, head: HeadNode) -> None:
        head.resume()
        for node in self._world.nodes:
            self._world.network.heal(head.address, node.address)
            self._world.network.heal(node.address, head.address)

    def _replace(self, fault: Fault) -> None:
        head, revocation = self._head(fault), self._revocations.pop(fault.number)

        async def replaced() -> None:
            await asyncio.wait([revocation])
            self._see_again(head)
            await self._world.operator.replace(head)

        self._world.operator.begin(replaced(), "replacement")

    def _rotate(self, fault: Fault, random: Random) -> None:
        self._world.operator.begin(self._world.operator.rotate_keys(), "rotation")

    def _add_volume(self, fault: Fault, random: Random) -> None:
        made = self._volumes[fault.number] = self._world.loop.create_future()

        async def add() -> None:
            made.set_result(await self._tenants.add(f"guest-{fault.number}", 1))

        self._world.operator.begin(add(), "creation")

    def _remove_volume(self, fault: Fault) -> None:
        async def remove() -> None:
            tenant = await self._volumes.pop(fault.number)
            begun = sum(self.begun.values())
            records = [record for record in self._world.records() if record.volume == tenant.volume]
            # Heads that follow nobody now are not told, and keep the log on purpose.
            calm = not self._budget.active and all(map(self._world.redundant, records))
            await self._tenants.remove(tenant)
            tenant.removed_calmly = calm and sum(self.begun.values()) == begun

        self._world.operator.begin(remove(), "deletion")

    def _back_up(self, fault: Fault, random: Random) -> None:
        self._backups[fault.number] = self._world.authority.store.copy()

    def _restore(self, fault: Fault) -> None:
        backup = self._backups.pop(fault.number)
        if restorable(self._world, backup):
            self._world.operator.begin(self._world.operator.restore(backup), "restore")
        else:
            self._world.note("operator", "does not restore: other volumes are there by now")

    def _freeze(self, fault: Fault, random: Random) -> None:
        self._freezes[fault.number] = self._world.operator.begin(self._world.operator.freeze(), "freeze")

    def _thaw(self, fault: Fault) -> None:
        frozen = self._freezes.pop(fault.number)

        async def thaw() -> None:
            # An authority that hangs answers late: who recovers before it has frozen anything recovers nothing.
            await asyncio.wait([frozen])
            known = {record.volume: record for record in self._world.records()}
            await self._world.operator.recover(known)

        self._world.operator.begin(thaw(), "recovery")

    def _head(self, fault: Fault) -> HeadNode:
        node = self._nodes[fault.targets[0]]
        assert isinstance(node, HeadNode)
        return node

    def _drive(self, fault: Fault, random: Random) -> Drive:
        return random.choice(self._sled(fault).drives)

    def _sled(self, fault: Fault) -> SledNode:
        node = self._nodes[fault.targets[0]]
        assert isinstance(node, SledNode)
        return node


_BEGIN: Final[dict[Kind, Callable[[Injector, Fault, Random], None]]] = {
    Kind.KILL: Injector._kill,
    Kind.POWER_LOSS: Injector._cut_power,
    Kind.PAUSE: Injector._pause,
    Kind.STOP_IN_TURN: Injector._stop_in_turn,
    Kind.RESTART: Injector._terminate,
    Kind.RACK_POWER_LOSS: Injector._cut_power,
    Kind.CUT: Injector._cut,
    Kind.SPLIT: Injector._cut,
    Kind.ISOLATE: Injector._cut,
    Kind.BLIND: Injector._blind,
    Kind.REVIVE: Injector._revive,
    Kind.SLOW_LINK: Injector._slow,
    Kind.RESETS: Injector._reset_connections,
    Kind.WALL_JUMP: Injector._jump,
    Kind.DAY_JUMP: Injector._jump_a_day,
    Kind.BUSY: Injector._be_busy,
    Kind.NO_DESCRIPTORS: Injector._use_up_descriptors,
    Kind.SLOW_LOG: Injector._slow_log,
    Kind.LOG_FULL: Injector._fill_log,
    Kind.LOG_ERROR: Injector._fail_log,
    Kind.LOG_WIPE: Injector._wipe_log,
    Kind.LOG_ROT: Injector._rot_log,
    Kind.LOG_SYNC_LOST: Injector._fail_log,
    Kind.LOG_UNREADABLE: Injector._fail_reads,
    Kind.LOG_LIES: Injector._lie,
    Kind.LOG_TAIL_LOST: Injector._lose_tail,
    Kind.LOG_FILES_FAIL: Injector._fail_files,
    Kind.LOG_FILES_SLOW: Injector._fail_files,
    Kind.DRIVE_ERROR: Injector._fail_drive,
    Kind.DRIVE_SILENT: Injector._silence_drive,
    Kind.DRIVE_ROT: Injector._rot_drive,
    Kind.DRIVE_MISDIRECTS: Injector._misdirect,
    Kind.DRIVE_AWAY: Injector._take_drive,
    Kind.DRIVE_LIES: Injector._lie_as_drive,
    Kind.SLED_LIES: Injector._confuse_sled,
    Kind.STORE_UNCERTAIN: Injector._lose_commit,
    Kind.REVOKE: Injector._revoke,
    Kind.ROTATE_KEYS: Injector._rotate,
    Kind.VOLUME: Injector._add_volume,
    Kind.FREEZE: Injector._freeze,
    Kind.RESTORE: Injector._back_up,
}

_END: Final[dict[Kind, Callable[[Injector, Fault], None]]] = {
    Kind.KILL: Injector._start,
    Kind.POWER_LOSS: Injector._start,
    Kind.PAUSE: Injector._resume,
    Kind.STOP_IN_TURN: Injector._end_stop,
    Kind.RESTART: Injector._start_again,
    Kind.RACK_POWER_LOSS: Injector._start,
    Kind.CUT: Injector._heal,
    Kind.SPLIT: Injector._heal,
    Kind.ISOLATE: Injector._heal,
    Kind.BLIND: Injector._see,
    Kind.REVIVE: Injector._end_revival,
    Kind.SLOW_LINK: Injector._heal,
    Kind.WALL_JUMP: Injector._unjump,
    Kind.DAY_JUMP: Injector._unjump,
    Kind.BUSY: Injector._rest,
    Kind.NO_DESCRIPTORS: Injector._give_back_descriptors,
    Kind.SLOW_LOG: Injector._mend_head,
    Kind.LOG_FULL: Injector._mend_head,
    Kind.LOG_ERROR: Injector._mend_head,
    Kind.LOG_WIPE: Injector._mend_head,
    Kind.LOG_ROT: Injector._mend_head,
    Kind.LOG_SYNC_LOST: Injector._restart_and_lose_power,
    Kind.LOG_UNREADABLE: Injector._mend_head,
    Kind.LOG_LIES: Injector._cut_and_start,
    Kind.LOG_TAIL_LOST: Injector._start_all,
    Kind.LOG_FILES_FAIL: Injector._mend_head,
    Kind.LOG_FILES_SLOW: Injector._mend_head,
    Kind.DRIVE_ERROR: Injector._mend_drives,
    Kind.DRIVE_SILENT: Injector._restart_mended,
    Kind.DRIVE_AWAY: Injector._restart_mended,
    Kind.DRIVE_LIES: Injector._cut_and_start,
    Kind.SLED_LIES: Injector._restart_mended,
    Kind.REVOKE: Injector._replace,
    Kind.VOLUME: Injector._remove_volume,
    Kind.FREEZE: Injector._thaw,
    Kind.RESTORE: Injector._restore,
}
