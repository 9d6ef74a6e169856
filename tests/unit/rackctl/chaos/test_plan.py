"""A seed draws the same rounds of faults everywhere."""

from rackctl.chaos.plan import (
    AUTHORITY,
    LEAD_SECONDS,
    MIXES,
    ORDERLY_SECONDS,
    PAIRS,
    ROUND_SECONDS,
    Kind,
    Nodes,
    draw,
)

NODES = Nodes(("head-0", "head-1"), tuple(f"sled-{number}" for number in range(6)))


def test_a_seed_is_one_plan() -> None:
    assert draw(7, 5, NODES) == draw(7, 5, NODES)
    assert draw(7, 5, NODES) != draw(8, 5, NODES)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert draw(7, 5, NODES)[:4] == draw(7, 2, NODES)


def test_minutes_are_minutes_under_faults() -> None:
    rounds = draw(1, 1.25, NODES)
    assert [one.seconds for one in rounds] == [ROUND_SECONDS, ROUND_SECONDS, 15.0]
    assert [one.number for one in rounds] == [0, 1, 2]
    (short,) = draw(1, 0.1, NODES)
    assert short.seconds == 6.0
    assert all(fault.at_s < 6.0 for fault in short.faults)


def test_faults_begin_in_order_within_their_round_and_are_numbered() -> None:
    for one in draw(3, 20, NODES):
        assert [fault.number for fault in one.faults] == list(range(len(one.faults)))
        assert [fault.at_s for fault in one.faults] == sorted(fault.at_s for fault in one.faults)
        assert all(LEAD_SECONDS <= fault.at_s < one.seconds and fault.seconds > 0 for fault in one.faults)


def test_every_kind_and_mix_comes_up_with_targets_that_fit_it() -> None:
    rounds = [one for seed in range(12) for one in draw(seed, 10, NODES)]
    faults = [fault for one in rounds for fault in one.faults]
    assert {one.mix.name for one in rounds} == {mix.name for mix in MIXES}
    assert {fault.kind for fault in faults} == set(Kind)
    for fault in faults:
        count = 0 if fault.kind in (Kind.KILL_ALL, Kind.PAUSE_ALL) else 2 if fault.kind in PAIRS else 1
        assert len(set(fault.targets)) == len(fault.targets) == count, fault
        assert set(fault.targets) <= set(NODES.all)
        assert bool(fault.amount) == (fault.kind in (Kind.WALL_JUMP, Kind.SLOW_LINK)), fault
        if fault.kind is Kind.DISK_FULL:
            assert fault.targets[0] not in NODES.sleds, "a full disk under an emulated drive is no fault of a drive"
        if fault.kind is Kind.TERMINATE:
            assert fault.seconds > ORDERLY_SECONDS
    assert {name for fault in faults for name in fault.targets} == set(NODES.all)
    assert AUTHORITY in NODES.all
