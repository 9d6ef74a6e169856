"""The sled benchmark runs and its figures add up; how fast is not asked here."""

from pathlib import Path

from bench.sled import measure


def test_a_short_run_gives_every_figure(tmp_path: Path) -> None:
    median = measure(runs=1, count=400, folder=tmp_path)
    for depth in (1, 32):
        assert median[f"write_depth{depth}_iops"] > 0
        assert median[f"write_depth{depth}_unchecked_iops"] > 0
    assert median["flush_after_1_write_ms"] > 0
    assert median["verification_cost_percent"] < 100
