"""The report says what happened and what held, to people and to programs."""

from collections import Counter
from xml.etree import ElementTree

from rackctl.account import Verdict
from rackctl.chaos.budget import Suspended
from rackctl.chaos.findings import Findings, Promise
from rackctl.chaos.plan import Kind, Nodes, draw
from rackctl.chaos.report import Line, Report, Stall

NODES = Nodes(("head-0", "head-1"), tuple(f"sled-{number}" for number in range(6)))


def a_report(*verdicts: Verdict) -> Report:
    return Report(
        7, 2.0, "2 heads, 6 sleds", draw(7, 2.0, NODES), begun=Counter({Kind.KILL: 3}),
        refused=Counter({Kind.PAUSE: 1}), impossible=Counter({Kind.CUT: 4}), suspended={Suspended.SERVICE},
        timeline=[Line(1.5, "fault", "#0 kill head-0 begins")], counts={"requests answered": 4711},
        stalls=[Stall(3.0, 4.25, promised=True), Stall(5.0, 9.0, promised=False)], verdicts=list(verdicts),
        seconds=99.0,
    )  # fmt: skip


KEPT = Verdict("kept", True, "4711 requests")
BROKEN = Verdict("broken", False, "block 7 is torn\nand so is \x00 block 8")


def test_a_run_held_only_if_something_was_judged_and_all_of_it_held() -> None:
    assert a_report(KEPT).all_held
    assert not a_report(KEPT, BROKEN).all_held
    assert not a_report().all_held


def test_the_text_has_faults_timeline_counts_stalls_verdicts_and_how_to_replay() -> None:
    text = a_report(KEPT).as_text()
    for part in (
        "1.500 s  fault      #0 kill head-0 begins", "rackctl chaos --seed 7 --minutes 2", "requests answered", "4711",
        "4.00 s", "suspended", "1.25 s", "promised", Suspended.SERVICE, "every promise was kept",
    ):  # fmt: skip
        assert part in text, part
    assert [line.split() for line in text.splitlines() if line.startswith(("kill ", "pause ", "cut "))] == [
        ["kill", "3", "0", "0"], ["pause", "0", "1", "0"], ["cut", "0", "0", "4"],
    ]  # fmt: skip


def test_the_text_quotes_in_full_what_speaks_against_a_promise() -> None:
    text = a_report(KEPT, BROKEN).as_text()
    assert "block 7 is torn\nand so is" in text
    assert text.endswith("A PROMISE WAS BROKEN\n")


def test_junit_has_a_case_for_each_promise_and_can_be_parsed() -> None:
    root = ElementTree.fromstring(a_report(KEPT, BROKEN).as_junit())
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("time")) == ("2", "1", "99.000")
    kept, broken = suite.findall("testcase")
    assert (kept.get("name"), kept.find("failure")) == ("kept", None)
    failure = broken.find("failure")
    assert failure is not None
    assert failure.text == "block 7 is torn\nand so is ? block 8"
    assert "rackctl chaos --seed 7" in (suite.findtext("system-out") or "")
    assert {one.get("name"): one.get("value") for one in suite.iter("property")}["seed"] == "7"


def test_a_promise_is_kept_until_something_speaks_against_it() -> None:
    findings = Findings()
    assert findings.verdict(Promise.CLEAN, "9 processes are gone") == Verdict(
        Promise.CLEAN.value, True, "9 processes are gone"
    )
    findings.accuse(Promise.SERVED, "nobody was answered for 17 s", fatal=False)
    assert not findings.fatal.is_set()
    findings.accuse(Promise.CLEAN, "pids [7] still run")
    assert findings.fatal.is_set()
    assert findings.verdict(Promise.CLEAN, "") == Verdict(Promise.CLEAN.value, False, "pids [7] still run")
