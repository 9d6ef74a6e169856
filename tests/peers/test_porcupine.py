"""Porcupine, a linearizability checker that nobody here wrote, judges histories of ours; needs Go and its module."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rackctl.consistency.history_file import HistoryFile
from rackctl.simulation.run import simulate

SOURCE = Path(__file__).parent / "porcupine"
BUILD_SECONDS_MAX = 120


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built."""
    if shutil.which("go") is None:
        pytest.skip("needs go (Debian: golang-go)")
    folder = shutil.copytree(SOURCE, tmp_path_factory.mktemp("porcupine") / "source")
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    built = subprocess.run(
        ["go", "build", "-o", "judge", "."], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=BUILD_SECONDS_MAX, check=False,
    )  # fmt: skip
    if built.returncode:
        pytest.skip(f"needs the module github.com/anishathalye/porcupine: {built.stderr[-200:]}")
    return folder / "judge"


def test_porcupine_accepts_a_history_and_rejects_it_with_one_stale_read(judge: Path, tmp_path: Path) -> None:
    (name, history), *_ = simulate("3").histories.items()
    whole = tmp_path / f"{name}.jsonl"
    HistoryFile(whole).finish(history)
    assert subprocess.run([judge, whole], check=False, timeout=60).returncode == 0
    lines = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()]
    last = max((line for line in lines if line["kind"] == "read" and line["value"]), key=lambda line: line["call_ns"])
    last["value"] = 0
    stale = tmp_path / "stale.jsonl"
    stale.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert subprocess.run([judge, stale], check=False, timeout=60).returncode == 1
