"""Makes the faults of a plan happen to a world, within the budget, and mends everything at the end."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final

from head_node.cluster.states import VolumeState
from rackctl.simulation.actions import OperatorActions
from rackctl.simulation.faults import ACTOR, OPERATORS, PRIMARY, Fault, Kind
from rackctl.simulation.loop import NOBODY
from rackctl.simulation.media import MediaFaults
from rackctl.simulation.nodes import RETRY_SECONDS, HeadNode, Node
from rackctl.simulation.site import Site
from rackctl.simulation.tenants import Tenants

if TYPE_CHECKING:
    from rackctl.simulation.world import World

STEP_DELAY_S: Final = 0.02
"""How long at most after a step a fault that waits for it begins: within what the step leads to."""
CLOCK_READINGS_MAX: Final = 60
COMMIT_S: Final = 100e-6
"""About as long as a sync takes."""
DAY_MS: Final = 86_400_000


class Injector:
    """Makes faults happen to a world, and mends everything at the end."""

    def __init__(self, world: "World", tenants: Tenants, drawn: Collection[Kind]) -> None:
        """Second faults, which follow from a first one, are of kinds in `drawn` too."""
        self._site = Site(world)
        self.begun: Counter[Kind] = Counter()
        self.refused: Counter[Kind] = Counter()
        self._waiting: list[Fault] = []
        self._at_step: dict[str, list[Callable[[], None]]] = {}
        """What a fault that has begun does when somebody takes a step."""
        media = MediaFaults(self._site, drawn, self._begin)
        actions = OperatorActions(self._site, tenants, self.begun)
        self._begins: dict[Kind, Callable[[Fault, Random], None]] = {
            **media.begins,
            **actions.begins,
            Kind.KILL: self._kill,
            Kind.SLEDS_AWAY: self._kill,
            Kind.POWER_LOSS: self._cut_power,
            Kind.PAUSE: self._pause,
            Kind.STOP_IN_TURN: self._stop_in_turn,
            Kind.RESTART: self._terminate,
            Kind.RACK_POWER_LOSS: self._cut_power,
            Kind.CUT: self._cut,
            Kind.SPLIT: self._cut,
            Kind.ISOLATE: self._cut,
            Kind.BLIND: self._blind,
            Kind.REVIVE: self._revive,
            Kind.SLOW_LINK: self._slow,
            Kind.RESETS: self._reset_connections,
            Kind.WALL_JUMP: self._jump,
            Kind.DAY_JUMP: self._jump_a_day,
            Kind.BUSY: self._be_busy,
            Kind.NO_DESCRIPTORS: self._use_up_descriptors,
            Kind.STORE_UNCERTAIN: self._lose_commit,
        }
        self._ends: dict[Kind, Callable[[Fault], None]] = {
            **media.ends,
            **actions.ends,
            Kind.KILL: self._start,
            Kind.SLEDS_AWAY: self._start,
            Kind.POWER_LOSS: self._start,
            Kind.PAUSE: self._resume,
            Kind.STOP_IN_TURN: self._end_stop,
            Kind.RESTART: self._start_again,
            Kind.RACK_POWER_LOSS: self._start,
            Kind.CUT: self._heal,
            Kind.SPLIT: self._heal,
            Kind.ISOLATE: self._heal,
            Kind.BLIND: self._see,
            Kind.REVIVE: self._end_revival,
            Kind.SLOW_LINK: self._heal,
            Kind.WALL_JUMP: self._unjump,
            Kind.DAY_JUMP: self._unjump,
            Kind.BUSY: self._rest,
            Kind.NO_DESCRIPTORS: self._give_back_descriptors,
        }

    def schedule(self, faults: Sequence[Fault]) -> None:
        """Let each begin in its time."""
        loop = self._site.world.loop
        self._site.world.watchers.on_step = self._stepped
        for fault in faults:
            act = self._begin if fault.step is None else self._waiting.append
            self._site.due.append(loop.call_at(fault.at_s, act, fault, context=NOBODY))

    def mend(self) -> None:
        """End whatever is going on: links, clocks, disks, processes; drives stay damaged, and nothing more begins. What
        the operator has begun is done to its end."""
        self._site.close()
        self._waiting.clear()
        self._at_step.clear()
        world = self._site.world
        for one in world.nodes:
            for other in world.nodes:
                world.network.heal(one.address, other.address)
        for node in world.nodes:
            node.clock.wall_offset_ms = 0
            node.clock.on_read = None
            node.resume()
            if node.ending:
                node.kill()
        at_work = [fault for fault in self._site.budget.active if fault.kind in OPERATORS]
        for fault in self._site.budget.active:
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
            delay_s = STEP_DELAY_S * self._site.world.stream(f"delay {fault.number}").random() ** 4
            loop = self._site.world.loop
            self._site.due.append(
                loop.call_later(delay_s, self._begin, replace(fault, targets=targets), context=NOBODY)
            )

    def _begin(self, fault: Fault) -> None:
        random = self._site.world.stream(f"fault {fault.number}")
        fault = replace(fault, targets=tuple(self._named(name, random) for name in fault.targets))
        reason = self._site.budget.refusal(fault)
        if reason is not None:
            self.refused[fault.kind] += 1
            self._site.world.note("fault", f"{fault} not admitted: {reason}")
            return
        self.begun[fault.kind] += 1
        self._site.budget.begun(fault)
        self._site.world.note("fault", f"{fault} begins")
        self._begins[fault.kind](fault, random)
        self._site.later(fault.seconds, self._end, fault)

    def _end(self, fault: Fault) -> None:
        self._site.world.note("fault", f"{fault} ends")
        end = self._ends.get(fault.kind)
        if end is not None:
            end(fault)
        self._site.budget.ended(fault)

    def _named(self, name: str, random: Random) -> str:
        if name != PRIMARY:
            return name
        heads = [head.name for head in self._site.world.heads]
        primaries = [record.primary for record in self._site.world.records() if record.primary is not None]
        found = self._site.world.name_of(random.choice(primaries)) if primaries else ""
        return found if found in heads else heads[0]

    def _kill(self, fault: Fault, random: Random) -> None:
        for node in self._site.targets(fault):
            node.kill()

    def _cut_power(self, fault: Fault, random: Random) -> None:
        """Now, or in the middle of the next commit of a head, which it tears."""
        heads = [node for node in self._site.targets(fault) if isinstance(node, HeadNode) and node.running]
        if not heads or random.random() < 0.3:
            self._cut_power_now(fault)
            return
        head = random.choice(heads)

        def begun() -> None:
            head.disk.on_commit = None
            delay_s = random.uniform(0.0, COMMIT_S) * head.sync_slowness
            self._site.world.loop.call_later(
                min(delay_s, fault.seconds / 2), self._cut_power_now, fault, context=NOBODY
            )

        head.disk.on_commit = begun

    def _cut_power_now(self, fault: Fault) -> None:
        if fault in self._site.budget.active:
            for node in self._site.targets(fault):
                node.power_cut()

    def _start(self, fault: Fault) -> None:
        for node in self._site.targets(fault):
            if isinstance(node, HeadNode):
                node.disk.on_commit = None
            node.start()

    def _start_again(self, fault: Fault) -> None:
        """What was told to end starts again, by its service manager, as soon as it has ended."""
        for node in self._site.targets(fault):
            if node.ending:
                self._site.later(RETRY_SECONDS, self._start_again, fault)
            else:
                node.start()

    def _pause(self, fault: Fault, random: Random) -> None:
        for node in self._site.targets(fault):
            node.pause()

    def _resume(self, fault: Fault) -> None:
        for node in self._site.targets(fault):
            node.resume()

    def _stop_in_turn(self, fault: Fault, random: Random) -> None:
        """SIGSTOP between two instructions: right after the head has looked at its clock."""
        node = self._site.head(fault)
        left = random.randrange(1, CLOCK_READINGS_MAX)

        def read() -> None:
            nonlocal left
            left -= 1
            if not left and node.running:
                node.clock.on_read = None
                node.pause()

        node.clock.on_read = read

    def _end_stop(self, fault: Fault) -> None:
        node = self._site.head(fault)
        node.clock.on_read = None
        node.resume()

    def _terminate(self, fault: Fault, random: Random) -> None:
        for node in self._site.targets(fault):
            node.terminate()

    def _pairs(self, fault: Fault) -> list[tuple[str, str]]:
        one = self._site.nodes[fault.targets[0]].address
        if fault.kind is Kind.ISOLATE:
            others = [node.address for node in self._site.world.nodes if node.address != one]
        else:
            others = [self._site.nodes[fault.targets[1]].address]
        there = [(one, other) for other in others]
        if fault.kind in (Kind.CUT, Kind.SLOW_LINK):
            return there
        return there + [(other, one) for one, other in there]

    def _cut(self, fault: Fault, random: Random) -> None:
        for source, target in self._pairs(fault):
            self._site.world.network.cut(source, target)

    def _ways(self, head: HeadNode, others: Sequence[Node], random: Random) -> list[tuple[str, str]]:
        """Both directions between a head and others, or one."""
        out = [(head.address, other.address) for other in others if other is not head]
        back = [(there, here) for here, there in out]
        return random.choice((out + back, out + back, out, back))

    def _blind(self, fault: Fault, random: Random) -> None:
        """Cut a head from everybody but its clients."""
        head, world = self._site.head(fault), self._site.world
        groups: tuple[Sequence[Node], ...] = (world.heads, world.sleds, [world.authority])
        for source, target in [pair for group in groups for pair in self._ways(head, group, random)]:
            world.network.cut(source, target)

    def _see(self, fault: Fault) -> None:
        head = self._site.head(fault)
        for other in self._site.world.nodes:
            self._site.world.network.heal(head.address, other.address)
            self._site.world.network.heal(other.address, head.address)

    def _revive(self, fault: Fault, random: Random) -> None:
        """Cut a head from everybody but its clients, and let it find the other heads again about when they have
        given it up and ask a slow authority for the next epoch: it still knows nothing of a successor."""
        head, world = self._site.head(fault), self._site.world
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
            self._site.later(random.uniform(0.7, 1.6) * world.shape.ttl_ms / 1000, find)
        else:
            self._at_step[VolumeState.SEALED.value] = [find]
        # Only the question is slow: what follows the grant comes while what was promised meanwhile still binds.
        self._at_step[VolumeState.ATTACHING.value] = [self._hurry]

    def _hurry(self) -> None:
        for head in self._site.world.heads:
            for source, target in ((head, self._site.world.authority), (self._site.world.authority, head)):
                self._site.world.network.link(source.address, target.address).slowness = 1.0

    def _end_revival(self, fault: Fault) -> None:
        self._at_step.clear()
        self._see(fault)
        self._hurry()

    def _slow(self, fault: Fault, random: Random) -> None:
        for source, target in self._pairs(fault):
            link = self._site.world.network.link(source, target)
            link.slowness, link.bytes_per_s = random.choice((10.0, 100.0, 1000.0)), random.choice((1e9, 1e7, 1e6))

    def _heal(self, fault: Fault) -> None:
        for source, target in self._pairs(fault):
            self._site.world.network.heal(source, target)

    def _reset_connections(self, fault: Fault, random: Random) -> None:
        pair = {self._site.nodes[name].address for name in fault.targets}
        for endpoint in list(self._site.world.network.endpoints):
            if {endpoint.node, endpoint.peer_address[0]} == pair and random.random() < 0.7:
                endpoint.break_connection()

    def _jump(self, fault: Fault, random: Random) -> None:
        for node in self._site.targets(fault):
            # Far below a credential's term, or nobody is served until the clocks have caught up.
            far_ms = self._site.world.shape.credential_term_ms // 5
            node.clock.wall_offset_ms += random.choice((-far_ms, -2_000, 2_000, far_ms))

    def _unjump(self, fault: Fault) -> None:
        for node in self._site.targets(fault):
            node.clock.wall_offset_ms = 0

    def _jump_a_day(self, fault: Fault, random: Random) -> None:
        for node in self._site.targets(fault):
            node.clock.wall_offset_ms += random.choice((-DAY_MS, DAY_MS))

    def _be_busy(self, fault: Fault, random: Random) -> None:
        """Its one thread has much to compute, or gets little of a processor."""
        ttl_s = self._site.world.shape.ttl_ms / 1000
        turn_s, work_s = random.choice(((0.0, 0.2 * ttl_s), (0.0, 1.2 * ttl_s), (2e-4, 0.0), (2e-4, 0.05 * ttl_s)))
        for node in self._site.targets(fault):
            node.slow_down(turn_s, work_s)

    def _rest(self, fault: Fault) -> None:
        for node in self._site.targets(fault):
            node.slow_down(0.0, 0.0)

    def _use_up_descriptors(self, fault: Fault, random: Random) -> None:
        for node in self._site.targets(fault):
            self._site.world.network.without_descriptors.add(node.address)
            if isinstance(node, HeadNode):
                node.disk.no_descriptors = True

    def _give_back_descriptors(self, fault: Fault) -> None:
        for node in self._site.targets(fault):
            self._site.world.network.without_descriptors.discard(node.address)
            if isinstance(node, HeadNode):
                node.disk.no_descriptors = False
            # Who ended because it could not open a file is started again.
            node.start()

    def _lose_commit(self, fault: Fault, random: Random) -> None:
        self._site.world.authority.store.lose = random.choice(("before", "after"))
