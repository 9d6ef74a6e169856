"""What a host may cost before it has proved anything: which groups, computed where, in which order, how often."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from kit import host
from kit.dhchap import ONE_WAY, T_ID, controller_side, only
from kit.guarded import GuardedRig, host_handshake, receive, send
from kit.target import Wire

from sled_controller.environment import Environment
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import AuthState
from sled_controller.fabric.dhchap.messages import Explanation, Negotiate
from sled_controller.fabric.dhchap.terms import GROUP_CEILING
from sled_controller.fabric.exchanges import WAITING_OF_SOURCE_MAX, Exchanges
from sled_controller.fabric.target import QueueState
from spdk_bindings.nvme import Status

# --- which groups


@pytest.mark.parametrize("offered", [(5,), (4, 5), (0, 5)], ids=str)
def test_a_host_cannot_choose_a_group_above_the_ceiling(offered: tuple[int, ...]) -> None:
    controller = controller_side(ONE_WAY)
    controller.take(Negotiate(T_ID, 0, (1, 2, 3), offered).encode())
    assert controller.state is AuthState.FAILURE1
    assert controller.failure is not None
    assert controller.failure.explanation == Explanation.GROUP_NOT_USABLE


def test_groups_up_to_the_ceiling_are_taken_and_above_it_the_floor_alone() -> None:
    assert ONE_WAY.groups_taken == (GroupId.FFDHE2048, GroupId.FFDHE3072, GroupId.FFDHE4096)
    assert ONE_WAY.groups_taken[-1] is GROUP_CEILING
    assert only(ONE_WAY, HashId.SHA256, GroupId.FFDHE6144).groups_taken == (GroupId.FFDHE6144,)
    assert only(ONE_WAY, HashId.SHA256, GroupId.NULL).groups_taken[0] is GroupId.NULL


# --- where


class Held:
    """Exchanges that a test carries out."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Callable[[], None], Callable[[bool], None]]] = []

    def begin(self, source: str, work: Callable[[], None], done: Callable[[bool], None]) -> None:
        self.asked.append((source, work, done))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    exchanges = Held()
    monkeypatch.setattr(Exchanges, "begin", lambda self, *asked: exchanges.begin(*asked))
    return exchanges


def begun(rig: GuardedRig) -> tuple[Wire, bytes]:
    """A queue whose host says what it offers, which waits for an exchange."""
    wire = rig.connection()
    wire.connect()
    message = host_handshake().give()
    with pytest.raises(ValueError, match="unpack"):
        send(wire, message)  # no answer yet
    return wire, message


def test_an_exchange_is_carried_out_elsewhere_and_the_queue_waits_for_it(held: Held) -> None:
    rig = GuardedRig()
    wire, message = begun(rig)
    assert send(wire, message).status == Status.COMMAND_SEQUENCE_ERROR
    assert receive(wire).status == Status.COMMAND_SEQUENCE_ERROR
    ((source, work, done),) = held.asked
    assert source == "127.0.0.1"
    work()
    done(True)
    assert [answer.status for answer in wire.answers()] == [0]
    assert receive(wire).status == 0


def test_an_exchange_that_comes_too_late_changes_nothing(held: Held) -> None:
    rig = GuardedRig()
    wire, _ = begun(rig)
    wire.queue.lost("it left")
    ((_, work, done),) = held.asked
    work()
    done(True)
    assert rig.subsystem.hosts == {}


def test_a_host_that_finds_too_many_waiting_is_told_to_try_again(held: Held) -> None:
    rig = GuardedRig()
    wire, _ = begun(rig)
    held.asked[0][2](False)
    assert [answer.status for answer in wire.answers()] == [Status.COMMAND_INTERRUPTED]
    assert wire.queue.state is QueueState.CLOSING


def test_exchanges_run_in_a_thread_once_the_port_listens() -> None:
    async def scenario() -> None:
        exchanges, threads = Exchanges(Environment()), [threading.get_ident()]
        exchanges.begin("a", lambda: threads.append(threading.get_ident()), lambda done: None)
        exchanges.start()
        over = asyncio.Event()

        def done(was_done: bool) -> None:
            assert was_done
            threads.append(threading.get_ident())
            over.set()

        exchanges.begin("a", lambda: threads.append(threading.get_ident()), done)
        await over.wait()
        exchanges.close()
        loop, at_once, worker, told = threads
        assert loop == at_once == told != worker

    asyncio.run(scenario())


# --- in which order, how often


class Line:
    """Exchanges whose thread is held up until a test lets it go on."""

    def __init__(self) -> None:
        self.clock = host.FixedClock()
        self.exchanges = Exchanges(Environment(self.clock))
        self.exchanges.start()
        self.go_on = threading.Event()
        self.order: list[str] = []
        self.exchanges.begin("first", self.go_on.wait, lambda done: None)  # type: ignore[arg-type]

    def ask(self, source: str, name: str, done: Callable[[bool], None] = lambda done: None) -> None:
        self.exchanges.begin(source, partial(self.order.append, name), done)


def test_sources_take_turns_and_each_has_few_in_the_line() -> None:
    async def scenario() -> None:
        line, refused, over = Line(), [], asyncio.Event()
        for number in range(WAITING_OF_SOURCE_MAX + 5):
            line.ask("flood", f"flood-{number}", lambda done: None if done else refused.append(done))
        line.ask("host", "host", lambda done: over.set())
        line.go_on.set()
        await over.wait()
        line.exchanges.close()
        assert len(refused) == line.exchanges.refused == 5
        assert line.order[:2] == ["flood-0", "host"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("took_ns", "pause_s"), [(11_000_000, 0.011), (3600 * 10**9, 0.1)])
def test_exchanges_take_half_of_the_time_at_most_and_rest_no_longer_after_a_suspended_one(
    took_ns: int, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        loop, pauses = asyncio.get_running_loop(), []
        real = loop.call_later

        def call_later(delay: float, *call: object) -> asyncio.TimerHandle:
            pauses.append(delay)
            return real(0, *call)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_later", call_later)
        line, over = Line(), asyncio.Event()

        def work() -> None:
            line.clock.boot_ns += took_ns

        line.exchanges.begin("host", work, lambda done: None)
        line.ask("host", "next", lambda done: over.set())
        line.go_on.set()
        await over.wait()
        line.exchanges.close()
        assert pauses[:2] == [0, pytest.approx(pause_s)]

    asyncio.run(scenario())


def test_a_terms_floor_above_the_ceiling_is_what_the_operator_asked_for() -> None:
    terms = replace(ONE_WAY, group_floor=GroupId.FFDHE8192)
    controller = controller_side(terms)
    controller.take(Negotiate(T_ID, 0, (1,), (5,)).encode())
    assert (controller.state, controller.group_id) == (AuthState.CHALLENGE, GroupId.FFDHE8192)
