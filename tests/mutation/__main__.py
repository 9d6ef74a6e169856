"""Break each rule in turn and see who notices: `make mutants`. Exit status 1 when a mutant survives."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sled_controller", "head_node", "spdk_bindings", "hw", "tools", "tests")
TEST_SECONDS_MAX = 300
HANGS = "simulator: does not end"
SEED_SECONDS_MAX = 10
"""Of one processor for a simulated rack, which takes about two: a run that takes more has a rack that hangs."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many the simulator may take (default 200)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the simulator (default 2)")
    parser.add_argument("names", nargs="*", help="mutants; all without any")
    arguments = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    survivors = []
    print(f"| {'mutant':<30} | caught by | seconds | rule |\n|{'-' * 32}|---|---|---|")
    for mutant in chosen:
        begun_s = time.perf_counter()
        caught = judge(mutant, arguments.seeds, arguments.jobs)
        if caught is None:
            survivors.append(mutant.name)
        seconds = time.perf_counter() - begun_s
        print(f"| {mutant.name:<30} | {caught or 'NOBODY'} | {seconds:.0f} | {mutant.rule} |", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors else 0


def judge(mutant: Mutant, seeds: int, jobs: int) -> str | None:
    """Who catches `mutant`: the simulator (with how many seeds) or a test; None: nobody."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "mutation"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for file, text, replacement in mutant.edits:
            source = (copy / file).read_text(encoding="utf-8")
            (copy / file).write_text(source.replace(text, replacement), encoding="utf-8")
        paths = os.pathsep.join([str(copy), str(copy / "tools"), str(copy / "hw")])
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        found = simulated(copy, environment, seeds, jobs) if mutant.simulated else None
        if found is None or found.startswith(HANGS):  # which a busy machine might be the cause of
            return tested(copy, environment, mutant.tests) or found
        return found


def simulated(copy: Path, environment: dict[str, str], seeds: int, jobs: int) -> str | None:
    """How the simulator caught it."""
    command = ["-m", "rackctl.simulation", "--seeds", str(seeds), "--jobs", str(jobs), "--first-failure"]
    seconds_max = SEED_SECONDS_MAX * seeds // jobs
    done = run(command, copy, environment, seconds_max)
    if done is None:
        return f"{HANGS} within {seconds_max} s"
    found = re.search(r"^seed (\d+) failed after .*?: (.{0,60})", done.stdout, re.MULTILINE)
    if found is not None:
        return f"simulator, {int(found[1]) + 1} seeds: {found[2]}"
    return None if done.returncode == 0 else f"simulator: {done.stderr.strip().splitlines()[-1][:60]}"


def tested(copy: Path, environment: dict[str, str], tests: Sequence[str]) -> str | None:
    """Which test caught it."""
    command = ["-m", "pytest", "-x", "-q", "--no-header", "-p", "no:randomly", *tests]
    done = run(command, copy, environment, TEST_SECONDS_MAX)
    if done is None:
        return f"test: does not end within {TEST_SECONDS_MAX} s"
    found = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::\w+)?)", done.stdout, re.MULTILINE)
    return None if done.returncode == 0 else f"test {found[1] if found else done.stdout.strip()[-60:]}"


def run(
    command: Sequence[str], copy: Path, environment: dict[str, str], seconds_max: int
) -> "subprocess.CompletedProcess[str] | None":
    """Run Python in the copy; None when it did not end in time, and is gone then with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


if __name__ == "__main__":
    sys.exit(main())
