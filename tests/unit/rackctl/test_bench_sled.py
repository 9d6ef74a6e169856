"""The sled benchmark runs and its figures add up; how fast is not asked here."""

from pathlib import Path

from rackctl.bench_sled import measure


def test_a_short_run_gives_every_figure(tmp_path: Path) -> None:
    result = measure(runs=1, count=400, folder=tmp_path)
    median = result["median"]
    for depth in (1, 32):
        assert median[f"write_depth{depth}_iops"] > 0
        assert median[f"write_depth{depth}_unchecked_iops"] > 0
    assert median["flush_after_1_write_ms"] > 0
    assert result["all"]["write_depth32_iops"] == [median["write_depth32_iops"]]
    assert result["verification_cost_percent"] < 100
