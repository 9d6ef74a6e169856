"""What heads may say happened, and what one that lies cannot do with it."""

import ast
import json

import pytest
from kit.authority import Kit, run
from kit.sources import package_sources

from head_node.authority.head_events import KINDS, checked
from head_node.authority.reports import EVENTS_MAX, EVENTS_PER_HEAD_MAX, HEADS_MAX, Reports
from sled_controller.environment import Environment

VOLUME = "6f1c0a44-6c4e-4f8e-9d69-0a3f2f0f8a11"
FENCED = {"kind": "fenced-off", "volume": VOLUME, "sled": VOLUME, "stale_epoch": 1, "current_epoch": 2}
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202ereversed\r\n\x9bALL IS WELL"


def test_one_heads_events_wash_out_no_others() -> None:
    async def scenario(kit: Kit) -> None:
        victim, flooding = await kit.enrolled("head-1"), await kit.enrolled("head-2")
        own = (await kit.operator.get("/v1/events")).json()["events"]
        await victim.client.report({"events": [FENCED]})
        for _ in range(2 * EVENTS_MAX // 64):
            await flooding.client.report({"events": [FENCED] * 64})
        events = (await kit.operator.get("/v1/events")).json()["events"]
        assert [event for event in events if "token" in event or event["kind"] == "head-enrolled"] == own
        assert [event["kind"] for event in events if event.get("head") == str(victim.id)].count("fenced-off") == 1
        assert [event["kind"] for event in events].count("fenced-off") == EVENTS_PER_HEAD_MAX + 1
        assert [event["sequence"] for event in events] == sorted(event["sequence"] for event in events)

    run(scenario)


@pytest.mark.parametrize(
    "kind",
    [
        *("takeover", "head-revoked", "volume-frozen", "fenced-now", "keys-rotated", "operator-token-created"),
        *("something", "fenced-off\x1b[2J", "", 7, None, ["fenced-off"], {}),
    ],
)
def test_a_head_says_nothing_in_the_authoritys_words_nor_in_its_own(kind: object) -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        before = (await kit.operator.get("/v1/events")).json()
        await head.client.report({"events": [{"kind": kind, "volume": VOLUME}, kind]})
        assert (await kit.operator.get("/v1/events")).json() == before

    run(scenario)


@pytest.mark.parametrize(
    "field",
    [
        *({"volume": "x"}, {"sled": ["unhashable"]}, {"sled": VOLUME.upper()}, {"slow_head": None}, {"epoch": 1 << 64}),
        *({"why": {"nested": 1}}, {"heads": ["x"] * 17}, {"heads": [["x"]]}, {"a b": 1}, {"x\x1b": 1}, {"n" * 33: 1}),
        *({"epoch": 1e400}, {f"f{number}": 1 for number in range(17)}, {"detail": "x" * 4096}),
    ],
)
def test_an_event_with_a_value_of_another_shape_is_refused(field: dict[str, object]) -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        before = (await kit.operator.get("/v1/events")).json()
        await head.client._call("PUT", "/v1/heads/self/status", {"events": [{"kind": "stepped-down", **field}]})
        assert (await kit.operator.get("/v1/events")).json() == before

    run(scenario)


def test_control_characters_of_a_head_reach_no_terminal() -> None:
    found = checked({"kind": "stepped-down", "volume": VOLUME, "detail": ESCAPES, "heads": [ESCAPES]})
    assert found is not None
    kind, fields = found
    assert kind == "stepped-down"
    for text in (fields["detail"], *fields["heads"]):
        assert "ALL IS WELL" in text
        assert text.isprintable()


def test_what_the_authority_says_of_an_event_is_its_own() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        await head.client.report({"events": [FENCED | {"head": "head-0", "sequence": 0, "time_ms": 0}]})
        (event,) = [one for one in kit.authority.reports.events(0) if one.kind == "fenced-off"]
        assert (event.fields["head"], event.time_ms) == (str(head.id), kit.clock.wall_ms())

    run(scenario)


def test_heads_that_come_and_go_leave_a_bounded_number_of_rings() -> None:
    env = Environment()
    reports = Reports(env)
    heads = [env.new_uuid() for _ in range(2 * HEADS_MAX)]
    for head in heads:
        reports.add_report(head, {"events": [FENCED]})
        reports.forget(head)
    assert [event.fields["head"] for event in reports.events(0)] == [str(head) for head in heads[HEADS_MAX:]]


def test_every_kind_that_a_head_notes_is_on_the_list_and_no_other() -> None:
    """A new kind takes a line there; one that is gone leaves none."""
    noted: set[str] = set()
    for source in package_sources():
        if source.name.startswith("head_node.cluster."):
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".note", "self._note")):
                    noted |= _kinds(node)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "kind":
                    noted |= _texts(node.value)
    assert noted == KINDS, json.dumps(sorted(noted ^ KINDS))


def _kinds(call: ast.Call) -> set[str]:
    return _texts(call.args[0]) if len(call.args) == 2 else set()


def _texts(node: ast.AST) -> set[str]:
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
