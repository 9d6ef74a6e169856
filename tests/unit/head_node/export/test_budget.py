"""The memory that NBD clients share: who waits for whom, who never does, and who has to go."""

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.transmission import Bench, ok, request

from head_node.export.budget import OWN_BYTES, PACE_BYTES_MIN, PACE_SECONDS, MemoryBudget
from head_node.export.nbd_protocol import Command

K4 = 4096
LARGE = 32 << 20


def two_clients() -> tuple[MemoryBudget, Bench, Bench]:
    """Of a budget that holds one request of the maximum payload and no other large one."""
    budget = MemoryBudget(common_bytes=LARGE)
    return budget, Bench(size=64 << 20, budget=budget), Bench(size=64 << 20, budget=budget)


def test_a_client_within_its_share_waits_for_nobody() -> None:
    _, greedy, modest = two_clients()
    greedy.volume.hold = True
    greedy.ask(request(Command.WRITE, 0, LARGE, data=bytes(5)))
    for _ in range(3):
        assert modest.ask(request(Command.WRITE, 0, data=bytes(OWN_BYTES))) == ok()
        assert modest.ask(request(Command.READ, 0, OWN_BYTES)) == ok() + bytes(OWN_BYTES)


def test_a_large_request_waits_until_another_client_gives_back_what_it_holds() -> None:
    budget, first, second = two_clients()
    first.volume.hold = True
    first.ask(request(Command.WRITE, 0, data=bytes(LARGE)))
    assert budget.held_bytes == LARGE
    assert second.ask(request(Command.READ, 0, LARGE)) == b""
    assert second.core.stalled
    first.volume.release()
    assert first.output() == ok()
    assert second.output() == ok() + bytes(LARGE)
    assert (budget.held_bytes, budget.free_bytes) == (0, LARGE)


def test_nobody_overtakes_a_large_request_that_waits() -> None:
    budget, first, large = two_clients()
    other = Bench(size=64 << 20, budget=budget)
    first.volume.hold = True
    first.ask(request(Command.READ, 0, LARGE // 2), request(Command.READ, 0, LARGE // 4))
    assert large.ask(request(Command.READ, 0, LARGE)) == b""
    assert other.ask(request(Command.READ, 0, LARGE // 8)) == b"", "it would fit, but another one was first"
    held, first.volume.held = first.volume.held, []
    held[0]()
    assert (large.wakes, other.wakes) == (0, 0)
    held[1]()
    first.output()
    assert large.output() == ok() + bytes(LARGE)
    assert other.output() == ok() + bytes(LARGE // 8)


def test_what_was_granted_is_not_lent_again_before_it_is_used() -> None:
    _, first, second = two_clients()
    third = Bench(size=64 << 20, budget=first.budget)
    for client in (first, second):
        client.volume.hold = True
        client.ask(request(Command.WRITE, 0, data=bytes(LARGE // 2)))
    assert first.ask(request(Command.READ, 0, LARGE // 2, cookie=9)) == b""
    second.volume.release()
    second.output()
    assert first.wakes == 1
    first.volume.held.pop()()
    assert third.ask(request(Command.READ, 0, LARGE)) == b""
    first.core.resume()
    assert first.core.in_flight == 1


def test_replies_count_until_the_client_has_read_them() -> None:
    budget, reader, other = two_clients()
    reader.unsent = LARGE
    reader.ask(request(Command.READ, 0, LARGE))
    assert budget.held_bytes == LARGE
    assert other.ask(request(Command.READ, 0, LARGE)) == b""
    reader.unsent = 1
    budget.look(0.0)
    assert other.wakes == 0, "the last byte may keep all the others in memory"
    reader.unsent = 0
    budget.look(0.1)
    assert other.output() == ok() + bytes(LARGE)


def test_a_client_that_keeps_others_waiting_has_to_go() -> None:
    budget, slow, other = two_clients()
    slow.ask(request(Command.WRITE, 0, LARGE, data=bytes(5)))
    assert other.ask(request(Command.READ, 0, LARGE)) == b""
    budget.look(0.0)
    slow.core.feed(bytes(PACE_BYTES_MIN))
    budget.look(PACE_SECONDS)
    assert not slow.evicted, "it is slow, but not too slow"
    budget.look(2 * PACE_SECONDS)
    assert "others wait" in slow.evicted
    assert slow.counters.evicted == 1
    assert other.output() == ok() + bytes(LARGE)


def test_a_client_that_never_reads_stays_as_long_as_nobody_waits() -> None:
    budget, silent, other = two_clients()
    silent.unsent = LARGE
    silent.ask(request(Command.READ, 0, LARGE))
    for second in range(0, 100, 2):
        budget.look(second)
    assert not silent.evicted
    assert other.ask(request(Command.READ, 0, LARGE)) == b""
    budget.look(100)
    assert not silent.evicted, "its time counts from when somebody waits"
    budget.look(100 + PACE_SECONDS)
    assert silent.evicted


def test_a_client_that_waits_for_the_volume_is_never_too_slow() -> None:
    budget, waiting, other = two_clients()
    waiting.volume.hold = True
    waiting.ask(request(Command.WRITE, 0, data=bytes(LARGE)))
    other.ask(request(Command.READ, 0, LARGE))
    for second in range(0, 100, 2):
        budget.look(second)
    assert not waiting.evicted


def test_a_client_that_leaves_gives_back_what_it_holds_and_waits_no_more() -> None:
    budget, first, second = two_clients()
    first.volume.hold = True
    first.ask(request(Command.WRITE, 0, data=bytes(LARGE)))
    second.ask(request(Command.READ, 0, LARGE))
    second.core.drop()
    first.core.drop()
    first.volume.release()
    assert (budget.free_bytes, len(budget.accounts), len(budget.waiting)) == (LARGE, 0, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["read", "write", "part", "release", "send", "drop"]),
            st.integers(1, 40),
        ),
        max_size=40,
    )
)
def test_however_clients_come_and_go_the_budget_holds_and_is_whole_at_the_end(
    steps: list[tuple[int, str, int]],
) -> None:
    common = 48 * K4
    budget = MemoryBudget(own_bytes=16 * K4, common_bytes=common)
    clients = [Bench(structured=bool(n % 2), size=1 << 20, budget=budget) for n in range(4)]
    for client in clients:
        client.volume.hold = True
    for who, what, blocks in steps:
        client = clients[who]
        length = blocks * K4
        # A turn ends with its output: a grant to a client whose turn has not ended would wake nobody.
        if what == "read":
            client.ask(request(Command.READ, 0, length))
        elif what == "write":
            client.ask(request(Command.WRITE, 0, data=bytes(length)))
        elif what == "part":
            client.ask(request(Command.WRITE, 0, length, data=b"abc"))
        elif what == "release":
            client.volume.release()
            client.volume.hold = True
            client.unsent = len(client.output())
        elif what == "send":
            client.unsent = 0
            budget.look(0.0)
        else:
            client.core.drop()
        assert 0 <= budget.free_bytes <= common
        assert budget.free_bytes + sum(account.limit - budget.own_bytes for account in budget.accounts) == common
        assert all(account.held <= account.limit for account in budget.accounts)
    for client in clients:
        client.unsent = 0
    for _ in range(200):
        budget.look(0.0)
        for client in clients:
            # Also one whose turn has come only now: it gets memory for a payload that nobody will send.
            if client.core.owes_payload():
                client.core.drop()
            client.volume.release()
            client.output()
    assert not budget.waiting, "nobody keeps anything, and somebody still waits"
    for client in clients:
        client.core.drop()
    assert (budget.free_bytes, len(budget.accounts)) == (common, 0)
