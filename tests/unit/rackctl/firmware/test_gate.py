"""The gate opens when a rack has been whole for a while, by reports that are newer than the last change."""

from typing import Any

import pytest
from rackctl.errors import ApiRefused, ApiUnreachable
from rackctl.firmware.gate import Gate, GateClosed, problems

HEADS = ["head-a", "head-b"]


def volume(**changes: Any) -> dict[str, Any]:
    record = {
        "name": "data", "state": "active", "primary": "head-a", "heads": HEADS,
        "current": [{"head": head} for head in HEADS],
        "health": {
            "primary_live": True, "serving": True, "stopped": "",
            "reports": {"head-a": {"engine": {"columns_missing": 0}}, "head-b": {"engine": {"columns_missing": None}}},
        },
    }  # fmt: skip
    health = {**record["health"], **changes.pop("health", {})}  # type: ignore[dict-item]
    return {**record, **changes, "health": health}


def nodes(reported_ms: int = 1000, reachable: bool | None = True) -> dict[str, Any]:
    heads = [
        {"id": head, "name": head, "live": True, "revoked": False, "reported_ms": reported_ms} for head in HEADS
    ]  # fmt: skip
    return {"heads": heads, "sleds": [{"name": "sled-0", "reachable": reachable}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "frozen"}, "volume data is frozen"),
        ({"health": {"primary_live": False}}, "volume data is not served"),
        ({"health": {"serving": False}}, "volume data is not served"),
        ({"health": {"stopped": "1 of 2 members"}}, "volume data is stopped: 1 of 2 members"),
        ({"current": [{"head": "head-a"}]}, "volume data has 1 of 2 heads"),
        ({"health": {"reports": {"head-a": {"engine": {"columns_missing": 1}}}}}, "volume data lacks columns: 1"),
        ({"health": {"reports": {}}}, "volume data lacks columns: its primary says nothing"),
        ({"primary": None}, "volume data lacks columns: its primary says nothing"),
    ],
)
def test_a_volume_that_is_not_whole_closes_the_gate(changes: dict[str, Any], said: str) -> None:
    assert problems([volume()], nodes()) == []
    assert problems([volume(), volume(**changes)], nodes()) == [said]


def test_a_sled_that_nobody_reaches_closes_the_gate() -> None:
    assert problems([], nodes(reachable=False)) == ["sled sled-0 is not reachable"]
    assert problems([], nodes(reachable=None)) == []  # no volume is there that would use it


def test_an_authority_that_refuses_closes_the_gate() -> None:
    class Busy:
        def nodes(self) -> dict[str, Any]:
            raise ApiRefused(503, "the store is busy", "")

        def volumes(self) -> list[dict[str, Any]]:
            raise AssertionError

    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    gate = Gate(Busy(), 1.0, 10.0, lambda: now_s, sleep)
    gate.mark()
    with pytest.raises(GateClosed, match="the store is busy"):
        gate.wait()


class FakeApi:
    """Answers in turn; the last one again and again. Time passes when it is asked."""

    def __init__(self, *answers: tuple[list[dict[str, Any]], dict[str, Any]] | None) -> None:
        self._answers = list(answers)
        self.now_s = 0.0

    def nodes(self) -> dict[str, Any]:
        if len(self._answers) > 1:
            self._now = self._answers.pop(0)
        else:
            self._now = self._answers[0]
        if self._now is None:
            raise ApiUnreachable("the authority does not answer")
        return self._now[1]

    def volumes(self) -> list[dict[str, Any]]:
        assert self._now is not None
        return self._now[0]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def gate(self, settle_s: float = 1.0, timeout_s: float = 10.0) -> Gate:
        return Gate(self, settle_s, timeout_s, lambda: self.now_s, self.sleep)


WELL = ([volume()], nodes(2000))
ILL = ([volume(health={"serving": False})], nodes(2000))


def test_it_opens_once_all_has_been_well_without_a_break() -> None:
    api = FakeApi(ILL, WELL, WELL, ILL, WELL)
    api.gate().wait()
    assert 1.7 < api.now_s < 2.1  # four looks, and then a whole second


def test_reports_from_before_the_change_do_not_count() -> None:
    old = ([volume()], nodes(1000))
    api = FakeApi(old, old, old, WELL)
    gate = api.gate(settle_s=0.1)
    gate.mark()
    gate.wait()
    assert api.now_s == pytest.approx(0.6)


def test_an_authority_that_is_away_for_a_while_is_waited_for() -> None:
    api = FakeApi(None, None, WELL)
    gate = api.gate(settle_s=0.1)
    gate.mark()
    gate.wait()


def test_it_says_what_is_wrong_when_time_is_up() -> None:
    with pytest.raises(GateClosed, match="not healthy after 10 s: volume data is not served"):
        FakeApi(ILL).gate().wait()
    with pytest.raises(GateClosed, match="the authority does not answer"):
        FakeApi(None).gate().wait()
    with pytest.raises(GateClosed, match="was not for long enough"):
        FakeApi(WELL).gate(settle_s=11.0).wait()
