"""What may be broken at once, and what is not promised meanwhile."""

import pytest
from rackctl.chaos.budget import Budget, Suspended
from rackctl.chaos.plan import Fault, Kind, Nodes

NODES = Nodes(("head-0", "head-1"), tuple(f"sled-{number}" for number in range(6)))
EVERYBODY = NODES.heads


def fault(kind: Kind, *targets: str) -> Fault:
    return Fault(0, 1.0, 1.0, kind, targets)


def budget(*, storm: bool = False, lacking: tuple[str, ...] = ()) -> Budget:
    return Budget(NODES, 2, lambda _: None, storm=storm, lacking=lacking)


def test_one_head_may_fail_and_the_other_only_when_the_first_is_a_member_again() -> None:
    rules, first, second = budget(), fault(Kind.KILL, "head-0"), fault(Kind.PAUSE, "head-1")
    assert rules.refusal(first, EVERYBODY) is None
    rules.begun(first)
    assert rules.refusal(second, EVERYBODY) is not None
    rules.ended(first)
    assert rules.refusal(second, ("head-1",)) == "not every head is a member"
    assert rules.refusal(second, EVERYBODY) is None


def test_a_head_and_the_authority_that_its_successor_needs_do_not_fail_together() -> None:
    rules, first = budget(), fault(Kind.ISOLATE, "authority")
    rules.begun(first)
    assert rules.refusal(fault(Kind.KILL, "head-0"), EVERYBODY) == f"{first} is under way"
    assert rules.refusal(fault(Kind.SPLIT, "head-0", "head-1"), EVERYBODY) == f"{first} is under way"


def test_as_many_sleds_as_there_are_parity_shards_may_be_away_besides() -> None:
    rules = budget()
    for one in (fault(Kind.KILL, "head-0"), fault(Kind.KILL, "sled-0"), fault(Kind.CUT, "sled-1", "head-1")):
        assert rules.refusal(one, EVERYBODY) is None
        rules.begun(one)
    assert rules.refusal(fault(Kind.PAUSE, "sled-2"), EVERYBODY) == "sled-0 sled-1 sled-2 would be away at once"


def test_service_is_promised_until_another_sled_may_have_to_make_up_for_what_stripes_lack() -> None:
    rules, first, second = budget(), fault(Kind.KILL, "sled-0"), fault(Kind.KILL, "sled-1")
    rules.begun(first)
    rules.begun(second)
    assert rules.suspended == frozenset()
    rules.ended(first)
    rules.begun(fault(Kind.KILL, "sled-2"))
    assert rules.suspended == {Suspended.SERVICE}


def test_what_lacks_from_former_rounds_counts() -> None:
    rules = budget(lacking=("sled-5",))
    rules.begun(fault(Kind.KILL, "sled-0"))
    assert rules.suspended == frozenset()
    rules.begun(fault(Kind.KILL, "sled-1"))
    assert rules.suspended == {Suspended.SERVICE}
    assert rules.lacking == {"sled-0", "sled-1", "sled-5"}


@pytest.mark.parametrize("kind", [Kind.SLOW_LINK, Kind.DISK_FULL, Kind.WALL_JUMP])
def test_what_keeps_clients_waiting_suspends_service_while_it_lasts(kind: Kind) -> None:
    rules, one = budget(), fault(kind, "head-0")
    rules.begun(one)
    assert Suspended.SERVICE in rules.suspended
    assert (Suspended.TIME in rules.suspended) == (kind is Kind.WALL_JUMP)
    rules.ended(one)
    assert rules.suspended == frozenset()


def test_in_a_storm_all_may_fail_and_no_service_is_promised() -> None:
    rules = budget(storm=True)
    assert rules.suspended == {Suspended.SERVICE}
    for name in NODES.all:
        assert rules.refusal(fault(Kind.KILL, name), ()) is None
        rules.begun(fault(Kind.KILL, name))


def test_a_process_suffers_one_thing_at_a_time() -> None:
    rules = budget(storm=True)
    rules.begun(fault(Kind.PAUSE, "sled-0"))
    assert rules.refusal(fault(Kind.KILL, "sled-0"), EVERYBODY) is not None
    assert rules.refusal(fault(Kind.KILL_ALL), EVERYBODY) is not None
    assert rules.refusal(fault(Kind.KILL, "sled-1"), EVERYBODY) is None
    assert rules.refusal(fault(Kind.ISOLATE, "sled-0"), EVERYBODY) is None


def test_no_link_is_cut_twice() -> None:
    rules = budget(storm=True)
    rules.begun(fault(Kind.ISOLATE, "head-0"))
    assert rules.refusal(fault(Kind.CUT, "sled-0", "head-0"), EVERYBODY) is not None
    assert rules.refusal(fault(Kind.CUT, "sled-0", "head-1"), EVERYBODY) is None
    assert rules.refusal(fault(Kind.ISOLATE, "sled-0"), EVERYBODY) is not None
    assert rules.refusal(fault(Kind.VANISH, "sled-0"), EVERYBODY) is not None


def test_what_the_machine_does_not_permit_is_refused_even_in_a_storm() -> None:
    rules = Budget(NODES, 2, lambda one: "no namespaces" if one.kind is Kind.CUT else None, storm=True)
    assert rules.refusal(fault(Kind.CUT, "head-0", "head-1"), EVERYBODY) == "no namespaces"
    assert rules.refusal(fault(Kind.KILL, "head-0"), EVERYBODY) is None


def test_a_flood_takes_nothing_away_and_meets_every_other_fault() -> None:
    rules = budget()
    for name in ("head-0", "sled-0", "sled-1", "sled-2", "authority"):
        flood = fault(Kind.FLOOD, name)
        assert rules.refusal(flood, EVERYBODY) is None
        rules.begun(flood)
    assert rules.refusal(fault(Kind.KILL, "head-0"), EVERYBODY) is None
    assert rules.refusal(fault(Kind.FLOOD, "head-0"), EVERYBODY) is not None, "one at a time at each node"
    assert Suspended.SERVICE in rules.suspended
    assert not rules.lacking
