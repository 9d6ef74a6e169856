"""One run: a rack, clients, rounds of faults with a rest behind each, every check, and the report."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from head_node.export.errors import ExportError
from head_node.volume.geometry import Geometry
from rackctl import peer_programs
from rackctl.chaos.findings import Findings, Promise
from rackctl.chaos.fio import VOLUME as FIO_VOLUME
from rackctl.chaos.fio import VOLUME_BYTES as FIO_VOLUME_BYTES
from rackctl.chaos.fio import FioBeside, Passes
from rackctl.chaos.growth import Growth
from rackctl.chaos.injector import Injector
from rackctl.chaos.load import Load
from rackctl.chaos.log_evidence import LogEvidence, read_logs
from rackctl.chaos.machine import Machine
from rackctl.chaos.plan import Kind, Nodes, Round, draw
from rackctl.chaos.report import Line, Report, Stall
from rackctl.chaos.rest import Rest
from rackctl.chaos.watch import RecordWatch
from rackctl.consistency import flushes, linearizability
from rackctl.consistency.epochs import EpochMonitor
from rackctl.consistency.history import Violation
from rackctl.consistency.history_file import HistoryFile
from rackctl.errors import ApiRefused, ApiUnreachable, NodeFailed, WaitedTooLong
from rackctl.evidence import engine_of_primary
from rackctl.interrupts import raise_if_interrupted, undisturbed
from rackctl.processes import ProcessIdentity, ProcessState, adopt_orphans, children, state_of
from rackctl.rack import Rack, RackSize
from rackctl.state import NodeKind

VOLUME: Final = "chaos"
VOLUME_BLOCKS: Final = 2048
"""Eight stripes of 4 + 2: small enough that clients meet and stripes are rewritten, large enough to be destaged."""
REST_SECONDS_MAX: Final = 60.0
"""Within this time after a round everything is as it was; a takeover and a resync take seconds."""
STALL_SECONDS_MAX: Final = 15.0
"""Ten times what a takeover takes on a quiet machine."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is asked to be."""

    seed: int
    minutes: float
    size: RackSize
    directory: Path
    denied: str | None
    """Why there are no namespaces, None: there are."""
    keep: bool
    """The directory stays; without it only when a promise was broken."""
    fio: bool
    """fio works beside our own clients, where it is installed."""
    history: HistoryFile | None = None
    """For all that clients did and saw."""

    @property
    def nodes(self) -> Nodes:
        """The names that the rack gives its nodes."""
        return Nodes.of(self.size)

    def __str__(self) -> str:
        where = "each node in a network namespace" if self.denied is None else f"links cut by proxies, as {self.denied}"
        return f"{self.size.heads} heads, {self.size.sleds} sleds; {where}"


def run(setting: Setting, tell: Callable[[str], None]) -> Report:
    """Run it; `tell` is called with each line of the timeline. Raises RackError when the rack cannot be made."""
    return _Run(setting, tell).main()


class _Run:
    """The director's work."""

    def __init__(self, setting: Setting, tell: Callable[[str], None]) -> None:
        self._setting = setting
        self._tell = tell
        self._begun_s = time.monotonic()
        rounds = draw(setting.seed, setting.minutes, setting.nodes)
        self._report = Report(setting.seed, setting.minutes, str(setting), rounds)
        self._findings = Findings()
        self._epochs = EpochMonitor()
        self._growth = Growth()
        self._started: set[ProcessIdentity] = set()
        self._rests = 0

    def main(self) -> Report:
        """All of it; whatever was started is stopped again."""
        setting, rounds = self._setting, self._report.rounds
        adopt_orphans()
        rack_directory = Rack.lay_out(setting.directory / "rack", setting.size)
        filled = {fault.targets[0] for one in rounds for fault in one.faults if fault.kind is Kind.DISK_FULL}
        machine = Machine(setting.directory, rack_directory, setting.nodes, setting.seed, setting.denied, filled=filled)
        try:
            self._rack_in(rack_directory, machine)
        except BaseException:
            machine.close(keep=setting.keep)
            raise
        self._report.seconds = time.monotonic() - self._begun_s
        machine.close(keep=setting.keep or not self._report.all_held)
        return self._report

    def _rack_in(self, directory: Path, machine: Machine) -> None:
        rack = Rack.create(directory, self._setting.size, sites=machine.site)
        try:
            with contextlib.ExitStack() as stack:
                self._work(rack, machine, stack)
        except (WaitedTooLong, NodeFailed, ApiUnreachable, ApiRefused) as error:
            self._findings.accuse(Promise.RESTORED, str(error))
        finally:
            self._remember(rack)
            undisturbed(rack.stop)
        self._check_left()
        self._judge(read_logs({node.name: rack.layout.log(node) for node in rack.state.nodes}))

    def _work(self, rack: Rack, machine: Machine, stack: contextlib.ExitStack) -> None:
        self._note("director", f"rack up in {rack.directory}")
        rack.create_volume(VOLUME, VOLUME_BLOCKS * 4096)
        rack.wait_members(VOLUME, self._setting.size.heads)
        watch = RecordWatch(
            rack, VOLUME, self._epochs, self._note, lambda error: self._findings.accuse(Promise.EPOCHS, str(error))
        )
        stack.callback(watch.close)
        heads = {node.name: (node.host, node.ports["nbd"]) for node in rack.state.of_kind(NodeKind.HEAD)}
        load = Load(
            VOLUME, VOLUME_BLOCKS, heads, self._setting.seed,
            lambda error: self._findings.accuse(Promise.WHOLE, str(error)),
        )  # fmt: skip
        if self._setting.history is not None:
            load.history.on_forgotten = self._setting.history.write
            stack.callback(self._setting.history.finish, load.history)
        stack.callback(load.close)
        passes = self._begin_fio(rack, stack)
        injector = Injector(rack, self._setting.nodes, machine, lambda: watch.members, self._note)
        stack.callback(self._tally, load, injector, watch, passes)
        for one in self._report.rounds:
            self._round(one, rack, load, injector)
            if self._findings.fatal.is_set():
                return
        self._succeed_each_other(rack, load)

    def _round(self, one: Round, rack: Rack, load: Load, injector: Injector) -> None:
        self._note("director", f"round {one.number}: {one.mix.name}, {len(one.faults)} faults in {one.seconds:.0f} s")
        load.begin(one.number)
        injector.run(one, Geometry().parity_shards, self._go_on)
        filled = {fault.targets[0] for fault in one.faults if fault.kind is Kind.DISK_FULL}
        for name in injector.start_dead():
            self._note("director", f"starts {name}, which has ended by itself")
            if name not in filled:  # a program that cannot write its own files says so and ends
                self._findings.accuse(Promise.ALIVE, f"{name} ended by itself in round {one.number}", fatal=False)
        self._rest(rack, f"after round {one.number}")
        self._end(load)
        self._read(rack, load)
        self._count_engine(rack)
        self._growth.look((node.name, node.process) for node in rack.state.nodes if node.process)
        self._remember(rack)

    def _succeed_each_other(self, rack: Rack, load: Load) -> None:
        """Kill each primary in turn: whoever succeeds it has everything."""
        for _ in self._setting.nodes.heads[1:]:
            if self._findings.fatal.is_set():
                return
            roles = rack.roles(VOLUME)
            assert roles.primary is not None
            self._note("director", f"kills {roles.primary}, which was read")
            rack.kill(roles.primary)
            rack.wait_epoch_above(VOLUME, roles.epoch)
            rack.wait_served(VOLUME)
            self._read(rack, load)
            rack.begin(roles.primary)
            self._rest(rack, "after a succession")
            self._remember(rack)

    def _count_engine(self, rack: Rack) -> None:
        """What the present primary has done since it was started: that stripes are written and computed shows that
        the load is more than the log's."""
        engine = engine_of_primary(rack, VOLUME)
        for count in ("stripes_written", "blocks_reconstructed"):
            shown = f"{count.replace('_', ' ')} by the primary of a rest, at most"
            self._report.counts[shown] = max(self._report.counts.get(shown, 0), int(engine.get(count, 0)))

    def _rest(self, rack: Rack, when: str) -> None:
        begun_s = time.monotonic()
        rest = Rest(rack, VOLUME, self._note)
        if rest.wait(REST_SECONDS_MAX, self._go_on):
            self._rests += 1
            self._note("director", f"the rack is at rest {time.monotonic() - begun_s:.1f} s {when}")
        elif not self._findings.fatal.is_set():
            self._findings.accuse(Promise.RESTORED, f"{when}, for {REST_SECONDS_MAX:.0f} s: {rest.missing}")

    def _end(self, load: Load) -> None:
        try:
            load.end()
        except (ExportError, TimeoutError, OSError) as error:
            self._findings.accuse(Promise.RESTORED, f"clients did not come to an end: {error!r}")

    def _read(self, rack: Rack, load: Load) -> None:
        """Read everything through each head that runs, check what was seen, and keep what matters of it."""
        if self._findings.fatal.is_set():
            return
        running = [node.name for node in rack.state.of_kind(NodeKind.HEAD) if node.state is ProcessState.RUNNING]
        for head in running:
            try:
                load.read_through(head)
            except Violation as violation:
                self._findings.accuse(Promise.WHOLE, f"read through {head}: {violation}")
            except (ExportError, OSError, TimeoutError) as error:
                self._findings.accuse(Promise.RESTORED, f"not everything can be read through {head}: {error!r}")
        try:
            flushes.check(load.history)
            linearizability.check(load.history)
        except Violation as violation:
            self._findings.accuse(Promise.LINEAR, str(violation))
            return
        load.history.forget()

    def _begin_fio(self, rack: Rack, stack: contextlib.ExitStack) -> Passes:
        fio = peer_programs.find("fio") if self._setting.fio else None
        if fio is None:
            self._note("director", "no fio beside the load" + (": it is not installed" if self._setting.fio else ""))
            return Passes()
        rack.create_volume(FIO_VOLUME, FIO_VOLUME_BYTES)
        uris = [rack.nbd_uri(FIO_VOLUME, name) for name in self._setting.nodes.heads]
        beside = FioBeside(
            fio, uris, str(self._setting.directory), lambda text: self._findings.accuse(Promise.VERIFIED, text)
        )
        stack.callback(beside.close)
        return beside.passes

    def _tally(self, load: Load, injector: Injector, watch: RecordWatch, passes: Passes) -> None:
        """What the load and the injector have seen, into the report."""
        report, tally = self._report, load.tally
        report.begun, report.refused, report.impossible = injector.begun, injector.refused, injector.impossible
        report.suspended = injector.suspended
        report.counts |= {
            "operations on blocks checked": load.history.forgotten + load.history.operations,
            "requests answered": tally.answered,
            "requests answered with an error": tally.errors,
            "connections made": tally.connections,
            "connections lost": tally.disconnections,
            "looks at the record": watch.polls,
            "passes of fio verified": passes.verified,
            "passes of fio verified again later": passes.verified_again,
            "passes of fio given up": passes.given_up,
        }
        quiet = injector.quiet
        for from_s, to_s in tally.stalls:
            promised = not any(begin_s < to_s and from_s < end_s for begin_s, end_s in quiet)
            report.stalls.append(Stall(from_s - self._begun_s, to_s - self._begun_s, promised))
            if promised and to_s - from_s > STALL_SECONDS_MAX:
                self._findings.accuse(Promise.SERVED, f"nobody was answered for {to_s - from_s:.1f} s", fatal=False)
        for at_s, why in tally.failures:
            if not any(begin_s <= at_s <= end_s + STALL_SECONDS_MAX for begin_s, end_s in quiet):
                self._findings.accuse(Promise.ANSWERED, f"{at_s - self._begun_s:.3f} s: {why}", fatal=False)

    def _remember(self, rack: Rack) -> None:
        self._started |= {node.process for node in rack.state.nodes if node.process}

    def _check_left(self) -> None:
        started = {process for process in self._started if state_of(process) is not ProcessState.GONE}
        left = sorted(process.pid for process in started.union(children()))
        if left:
            self._findings.accuse(Promise.CLEAN, f"pids {left} still run")

    def _judge(self, evidence: LogEvidence) -> None:
        for promise, found in (
            (Promise.LEADERS, evidence.wrong_leaders),
            (Promise.FENCES, evidence.wrong_fences),
            (Promise.SANE, evidence.lost),
            (Promise.SMALL, self._growth.grown),
        ):
            for text in found:
                self._findings.accuse(promise, text)
        counts, stalls = self._report.counts, self._report.stalls
        counts |= {"epochs served": len(evidence.leaders), "heads fenced off by a sled": len(evidence.fenced)}
        longest_s = max((stall.seconds for stall in stalls if stall.promised), default=0.0)
        promised = sum(stall.promised for stall in stalls)
        shown = {
            Promise.LINEAR: f"{counts.get('operations on blocks checked', 0)} operations on {VOLUME_BLOCKS} blocks",
            Promise.WHOLE: "every block read",
            Promise.EPOCHS: f"{counts.get('looks at the record', 0)} looks at the record",
            Promise.LEADERS: f"{len(evidence.leaders)} epochs in the logs",
            Promise.FENCES: f"{len(evidence.fenced)} times in the logs",
            Promise.RESTORED: f"{self._rests} rests",
            Promise.SERVED: f"longest of {promised} stalls: {longest_s:.2f} s",
            Promise.ANSWERED: f"{counts.get('requests answered', 0)} requests answered",
            Promise.ALIVE: f"{len(self._started)} processes",
            Promise.SANE: f"{evidence.lines} lines of {len(self._setting.nodes.all)} logs",
            Promise.SMALL: f"{self._growth.compared} processes compared between rests",
            Promise.VERIFIED: f"{counts.get('passes of fio verified', 0)} passes",
            Promise.CLEAN: f"{len(self._started)} processes are gone",
        }
        self._report.verdicts = [self._findings.verdict(promise, text) for promise, text in shown.items()]

    def _go_on(self) -> bool:
        raise_if_interrupted()
        return not self._findings.fatal.is_set()

    def _note(self, who: str, what: str) -> None:
        line = Line(time.monotonic() - self._begun_s, who, what)
        self._report.timeline.append(line)
        self._tell(str(line))
