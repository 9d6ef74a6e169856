"""Keeps house: short files, telling names, no leftovers, no time or randomness but what is passed in."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.sources import ROOT, Source, package_sources, sources_of_tests

LINES_MAX = 600
NAMES_BANNED = ("utils", "util", "helpers", "helper", "common", "misc", "manager")
# Put together here so that this file does not trip over itself.
WORDS_BANNED = tuple(re.compile(rf"\b{left}{right}\b") for left, right in [("TO", "DO"), ("FIX", "ME"), ("X", "XX")])
TEXTS = ("*.py", "*.md", "*.toml", "Makefile", ".ci/run")
FOLDERS = ("spdk_bindings", "sled_controller", "head_node", "hw", "tools", "tests", "docs")

# Where everything must be able to run in a simulator: no clock, randomness, thread or file but what is passed in.
SIMULATED = ("sled_controller.", "head_node.volume.", "head_node.cluster.", "head_node.export.")
MODULES_NAKED = ("random", "secrets", "threading", "concurrent.futures", "multiprocessing", "socket.create_connection")
CALLS_NAKED = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "time.clock_gettime", "time.clock_gettime_ns", "time.sleep", "os.urandom", "os.getrandom", "uuid.uuid1",
    "uuid.uuid4", "datetime.datetime.now", "datetime.now", "asyncio.to_thread", "open", "io.open", "os.open",
}  # fmt: skip
METHODS_NAKED = {"run_in_executor"}
# The two places that ask the operating system on behalf of all others.
EXEMPT = {"sled_controller.environment", "head_node.files"}


def texts() -> Iterator[Path]:
    """Every file that people write and read."""
    for pattern in TEXTS:
        yield from ROOT.glob(pattern)
        for folder in FOLDERS:
            yield from (ROOT / folder).rglob(pattern)


def naked(source: Source) -> list[str]:
    """What in `source` reaches round the environment, as `file:line: name`."""
    found = []
    for line, name in source.imports():
        if any(name == banned or name.startswith(banned + ".") for banned in MODULES_NAKED) or name in CALLS_NAKED:
            found.append(f"{source.path.name}:{line}: imports {name}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS_NAKED or name.rpartition(".")[2] in METHODS_NAKED:
                found.append(f"{source.path.name}:{node.lineno}: calls {name}")
    return found


def entry_points() -> set[str]:
    """Modules that something outside the sources starts: console scripts and pytest's plugin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["scripts"].values(), *project["entry-points"]["pytest11"].values()]
    return {name.partition(":")[0] for name in named}


def is_program(source: Source) -> bool:
    """Whether it can be started with `python -m`."""
    return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in source.tree.body)


def test_no_file_is_longer_than_a_reader_likes() -> None:
    lengths = {
        source.shown: len(source.path.read_text(encoding="utf-8").splitlines())
        for source in (*package_sources(), *sources_of_tests())
    }
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


def test_no_module_is_named_after_nothing() -> None:
    vague = [
        source.shown
        for source in (*package_sources(), *sources_of_tests())
        if any(word in NAMES_BANNED for part in source.name.split(".") for word in part.split("_"))
    ]
    assert vague == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [source.shown for source in package_sources() if not ast.get_docstring(source.tree)]
    assert silent == []


def test_nothing_is_put_off_by_a_comment() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if any(word.search(line) for word in WORDS_BANNED)
    ]
    assert found == []


def test_no_module_is_dead() -> None:
    used = entry_points()
    for source in (*package_sources(), *sources_of_tests()):
        for _, name in source.imports():
            used.add(name)
            used.add(name.rpartition(".")[0])
    dead = [
        source.shown
        for source in package_sources()
        if source.name not in used and source.path.name != "__init__.py" and not is_program(source)
    ]
    assert dead == []


def test_no_clock_randomness_thread_or_file_but_what_is_passed_in() -> None:
    sources = [
        source for source in package_sources() if source.name.startswith(SIMULATED) and source.name not in EXEMPT
    ]
    assert sources
    assert [wrong for source in sources for wrong in naked(source)] == []


@pytest.mark.parametrize(
    "statement",
    [
        "import time\ntime.monotonic()",
        "from time import monotonic",
        "import random",
        "from concurrent.futures import ThreadPoolExecutor",
        "import os\nos.urandom(8)",
        "import uuid\nuuid.uuid4()",
        "with open('log') as file: pass",
        "loop.run_in_executor(None, print)",
    ],
)
def test_the_check_itself_sees_what_is_naked(statement: str) -> None:
    assert naked(Source("sled_controller.example", Path("example.py"), ast.parse(statement)))
