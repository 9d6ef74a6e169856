"""An asyncio event loop on virtual time, shared by all processes of a simulated rack.

Production code runs on it unchanged: it is a `BaseEventLoop` whose clock moves only when nothing is left to do, and
whose sockets are those of a simulated `Network`. Every callback belongs to the process in whose context it was
scheduled (tasks, timers and futures inherit contexts by themselves), which is what lets one process be stopped,
killed or restarted while the others go on.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from rackctl.simulation.network import Network

T = TypeVar("T")

TURN_SECONDS: Final = 1e-6
"""What one turn of the loop costs, so that a process which polls without sleeping does not stop the world's time."""

NS: Final = 1_000_000_000


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set: the simulated world has come to an end before its work was done."""


class ProcessState(Enum):
    """The life of a process."""

    RUNNING = auto()
    PAUSED = auto()
    DEAD = auto()


class Process:
    """One run of a program on a node: what it scheduled is held while it is paused and dropped once it is dead."""

    def __init__(self, loop: "SimulationLoop", node: str, name: str) -> None:
        self.loop = loop
        self.node = node
        self.name = name
        self.state = ProcessState.RUNNING
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.busy_until_s = 0.0
        """Until then it computes: what falls due waits, and its clock says so already."""
        self.turn_cost_s = 0.0
        """What each callback costs, on a processor that has more to do than this."""
        self.work_cost_s = 0.0
        """What one encoding, application or decoding costs."""
        self._held: list[asyncio.Handle] = []
        self._deferred: list[asyncio.Handle] = []

    @property
    def running(self) -> bool:
        return self.state is ProcessState.RUNNING

    @property
    def dead(self) -> bool:
        return self.state is ProcessState.DEAD

    @property
    def now_s(self) -> float:
        """The moment that its own instructions have reached."""
        return max(self.loop.time(), self.busy_until_s)

    def work(self, seconds: float) -> None:
        """Compute for a while."""
        self.busy_until_s = self.now_s + seconds

    @property
    def computing(self) -> bool:
        """Whether what falls due now has to wait."""
        return bool(self._deferred) or self.busy_until_s > self.loop.time()

    def defer(self, handle: asyncio.Handle) -> None:
        """Called by the loop with what is due while the process computes."""
        if not self._deferred:
            self.loop.call_at(self.busy_until_s, self._go_on, context=NOBODY)
        self._deferred.append(handle)

    def _go_on(self) -> None:
        deferred, self._deferred = self._deferred, []
        self.loop.push(deferred)

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Have `callback` run in the process, in a later turn."""
        self.loop.call_soon(callback, *args, context=self.context)

    def spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> "asyncio.Task[T]":
        """Start a task of the process."""
        return self.loop.create_task(work, name=name, context=self.context.copy())

    def pause(self) -> None:
        """SIGSTOP: nothing of it runs, its sockets stay open."""
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.PAUSED
            self._held, self._deferred = self._deferred, []

    def resume(self) -> None:
        """SIGCONT: everything that fell due meanwhile is done now, in the order in which it fell due."""
        if self.state is ProcessState.PAUSED:
            self.state = ProcessState.RUNNING
            self.loop.push(self._held)
            self._held = []

    def kill(self) -> None:
        """SIGKILL: not one instruction more. Its tasks are kept, lest the collector runs their `finally` clauses."""
        self.state = ProcessState.DEAD
        self._held.clear()
        self._deferred.clear()
        self.loop.bury(self)

    def hold(self, handle: asyncio.Handle) -> None:
        """Called by the loop with what is due while the process does not run."""
        if self.state is ProcessState.PAUSED:
            self._held.append(handle)


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")

NOBODY: Final = contextvars.Context()
"""The context of kernels, wires and drives: what runs in it belongs to no process."""


class SimulationLoop(asyncio.BaseEventLoop):
    """See the module. `random` decides in which order processes have their turns, `network` what a socket is."""

    _ready: "deque[asyncio.Handle]"
    _stopping: bool
    network: "Network"

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._now_s = 0.0
        self._graveyard: list[Process] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self.turns = 0
        self.errors: list[dict[str, Any]] = []
        """What the processes' tasks and callbacks raised and nobody caught."""
        self.set_task_factory(_task_of_process)  # type: ignore[arg-type]
        self.set_exception_handler(_keep_error)

    def time(self) -> float:
        """Virtual seconds since the world began."""
        return self._now_s

    @property
    def now_ns(self) -> int:
        """Virtual nanoseconds since the world began."""
        return round(self._now_s * NS)

    def push(self, handles: list[asyncio.Handle]) -> None:
        """Make handles ready again."""
        self._ready.extend(handles)

    def bury(self, process: Process) -> None:
        """Keep a dead process' tasks until `close`."""
        self._graveyard.append(process)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's, but timers of the same moment go off in the order in which they were set."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self._timers_set, timer))
        self._timers_set += 1
        return timer

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if ready:
            self._now_s += TURN_SECONDS
        elif timers:
            self._now_s = max(self._now_s, timers[0][0])
        elif not self._stopping:
            raise Stuck(f"nothing is left to do at {self._now_s:.6f} s")
        while timers and timers[0][0] <= self._now_s:
            ready.append(heapq.heappop(timers)[2])
        self.turns += 1
        if len(ready) == 1:
            self._turn(ready.popleft())
        else:
            self._turns_of_processes()

    def _turns_of_processes(self) -> None:
        """Each process has one turn of its own loop, in random order; the order within a process is asyncio's."""
        turns: dict[Process | None, list[asyncio.Handle]] = {}
        ready = self._ready
        for _ in range(len(ready)):
            handle = ready.popleft()
            turns.setdefault(handle._context.get(PROCESS), []).append(handle)  # type: ignore[attr-defined]
        order = list(turns)
        if len(order) > 1:
            self._random.shuffle(order)
        for process in order:
            for handle in turns[process]:
                self._turn(handle)

    def _turn(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is None:
            handle._run()
        elif process.state is not ProcessState.RUNNING:
            process.hold(handle)
        elif process.computing:
            process.defer(handle)
        else:
            handle._run()
            if process.turn_cost_s:
                process.work(process.turn_cost_s)

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """Connect to a simulated server."""
        return await self.network.connect(protocol_factory, (host, port))

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """Listen at a simulated address."""
        return self.network.listen(protocol_factory, (host, port))

    def close(self) -> None:
        """Close the coroutines of whoever is left without a word, then the loop."""
        left = dict.fromkeys(task for process in self._graveyard for task in process.tasks)
        for task in (*left, *asyncio.all_tasks(self)):
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close_quietly(task.get_coro())
        self._graveyard.clear()
        self._ready.clear()
        self._timers.clear()
        super().close()


def _close_quietly(coroutine: Any) -> None:
    try:
        coroutine.close()
    except BaseException:  # its process is dead: nobody hears it
        return


def _task_of_process(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T],
    *,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> "asyncio.Task[T]":
    task = asyncio.Task(work, loop=loop, name=name, context=context)
    process = PROCESS.get(None) if context is None else context.get(PROCESS)
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(process.tasks.pop, context=process.context)
    return task


def _keep_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimulationLoop)
    loop.errors.append(context)
