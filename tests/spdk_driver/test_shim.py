"""Runs the tests of the shim that are written in C under the compiler's sanitizers; each of them is a test here."""

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest
from kit.peers import require
from kit.spdk_drive import STUB

from spdk_bindings.spdk.build import NATIVE, SOURCES

PROGRAMS: Final = sorted(Path(__file__).parent.glob("shim_*_test.c"))
NAMES: Final = [
    (program, name)
    for program in PROGRAMS
    for name in re.findall(r"^    (?:TEST\(|\{\")(\w+)", program.read_text(encoding="utf-8"), re.MULTILINE)
]
SECONDS_MAX: Final = 60
_scratch: Final = tempfile.TemporaryDirectory(prefix="palisade-shim-")


@functools.cache
def compiled(program: Path, sanitizers: str) -> Path:
    """A program of tests, ready to run."""
    into = Path(_scratch.name) / f"{program.stem}-{sanitizers.replace(',', '-')}"
    sources = [program, STUB / "fake_spdk.c", *(NATIVE / name for name in SOURCES)]
    command = [
        require("gcc"), "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all", f"-I{STUB}", f"-I{NATIVE}", "-o", into, *sources, "-lpthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return into


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize(("program", "name"), NAMES, ids=[name for _, name in NAMES])
def test_the_shim(program: Path, name: str, sanitizers: str) -> None:
    """At fixed addresses: the thread sanitizer cannot do with all of those that a kernel makes up."""
    argv = [require("setarch"), "-R", compiled(program, sanitizers), name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stderr
