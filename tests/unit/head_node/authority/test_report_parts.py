"""A report of any length arrives; a head that reports is alive, whatever becomes of what it says."""

import json
from typing import Any
from uuid import UUID

import pytest
from kit.authority import Kit, run

from head_node.api.wrapping import BODY_BYTES_MAX
from head_node.authority.report_parts import PART_BYTES_MAX, PARTS_MAX, Assembly, split
from head_node.authority.volumes import VOLUMES_MAX


def status_of(volumes: int) -> dict[str, Any]:
    """About what a head says, with as much about each volume."""
    names = [str(UUID(int=number)) for number in range(volumes)]
    return {
        "ready": True,
        "sleds": {"a": {"reachable": True}},
        "volumes": {name: {"state": "serving", "reason": "x" * 1300} for name in names},
        "nvme": {"hosts": 3, "volumes": {name: {"access": "optimized", "why": "y" * 200} for name in names}},
        "events": [{"kind": "stepped-down"}],
    }


def new_id() -> str:
    return "id"


def test_a_short_report_goes_as_it_is() -> None:
    assert split(status_of(10), new_id) == [status_of(10)]
    assert Assembly().take(status_of(10)) == status_of(10)


@pytest.mark.parametrize("volumes", [200, 778, VOLUMES_MAX])
def test_a_long_report_comes_whole_in_parts_that_are_bounded(volumes: int) -> None:
    parts = split(status_of(volumes), new_id)
    assert 1 < len(parts) <= PARTS_MAX
    assert all(len(json.dumps(part)) < PART_BYTES_MAX + 4096 <= BODY_BYTES_MAX for part in parts)
    assembly = Assembly()
    assert [assembly.take(part) for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert assembly.take(parts[-1]) == status_of(volumes)


def test_parts_of_a_report_that_was_cut_off_are_not_mixed_with_the_next() -> None:
    first, second = split(status_of(300), lambda: "one"), split(status_of(301), lambda: "two")
    assembly = Assembly()
    for part in first[:-1]:
        assert assembly.take(part) is None
    assert [assembly.take(part) for part in second][-1] == status_of(301)
    assert assembly.take(first[-1]) is None


@pytest.mark.parametrize(
    "named",
    [{"id": 1, "number": 0, "of": 2}, {"id": "x", "number": 2, "of": 2}, {"id": "x", "number": 0, "of": 1000}, {}],
)
def test_nonsense_is_no_part(named: dict[str, Any]) -> None:
    assert Assembly().take({"part": named, "volumes": {}}) is None


def test_a_head_with_more_volumes_than_fit_into_a_request_is_live_and_says_what_it_does() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        assert len(json.dumps(status_of(1500))) > 2 * BODY_BYTES_MAX
        await head.client.report(status_of(1500))
        assert kit.authority.reports.is_live(head.id)
        said = kit.authority.reports.report(head.id)
        assert said is not None
        assert said.status == {key: value for key, value in status_of(1500).items() if key != "events"}
        assert kit.authority.reports.events(0)[-1].kind == "stepped-down"

    run(scenario)


def test_a_head_of_whose_report_only_a_part_has_come_is_live() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        reports = kit.authority.reports
        reports.add_report(head.id, {"volumes": {"v": {"state": "serving"}}})
        kit.clock.advance(60_000)
        assert not reports.is_live(head.id)
        reports.add_report(head.id, split(status_of(300), new_id)[0])
        assert reports.is_live(head.id)
        known = reports.report(head.id)
        assert known is not None
        assert known.status == {"volumes": {"v": {"state": "serving"}}}  # what it said last

    run(scenario)


@pytest.mark.parametrize("said", [{"volumes": 5}, {"nvme": [1]}, {"nvme": {"volumes": None}}])
def test_parts_that_contradict_each_other_are_no_error_of_the_authority(said: dict[str, Any]) -> None:
    assembly = Assembly()
    assert assembly.take(said | {"part": {"id": "a", "number": 0, "of": 2}}) is None
    second = {"volumes": {"v": {"role": "primary"}}, "nvme": {"volumes": {"v": {"hosts": 1}}}}
    whole = assembly.take(second | {"part": {"id": "a", "number": 1, "of": 2}})
    assert whole == second
