"""When a silent sled counts as gone."""

from sled_controller.fabric.liveness import Liveness


def started() -> Liveness:
    liveness = Liveness(silence_s=2.0, command_s=10.0)
    liveness.start(100.0)
    return liveness


def ticks(liveness: Liveness, until_s: float, heard_s: float, *oldest_s: float | None) -> str:
    """Judge every half second up to `until_s`; the first verdict."""
    now_s = liveness._last_tick_s
    while now_s < until_s:
        now_s += 0.5
        if verdict := liveness.judge(now_s, heard_s, *oldest_s):
            return verdict
    return ""


def test_a_sled_that_was_heard_lately_is_alive() -> None:
    assert ticks(started(), 102.0, 100.5, None) == ""


def test_silence_is_the_end() -> None:
    assert ticks(started(), 103.0, 100.0, None) == "silent for 2.5 s"


def test_a_command_without_an_answer_is_the_end_although_the_sled_speaks() -> None:
    liveness = started()
    for tick in range(1, 21):
        now_s = 100.0 + tick / 2
        assert liveness.judge(now_s, now_s, None, 100.0) == ""
    assert liveness.judge(110.5, 110.5, None, 100.0) == "a command is unanswered for 10.5 s"


def test_after_our_own_pause_the_sled_gets_its_time_again() -> None:
    liveness = started()
    assert liveness.judge(400.0, 100.0, 99.0) == ""
    assert ticks(liveness, 401.5, 100.0, 99.0) == ""
    assert ticks(liveness, 403.0, 100.0, 99.0) == "silent for 2.5 s"
