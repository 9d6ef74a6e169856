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

PROGRAM: Final = Path(__file__).with_name("shim_test.c")
NAMES: Final = re.findall(r"^    (?:TEST\(|\{\")(\w+)", PROGRAM.read_text(encoding="utf-8"), re.MULTILINE)
SECONDS_MAX: Final = 60
_scratch: Final = tempfile.TemporaryDirectory(prefix="palisade-shim-")


@functools.cache
def program(sanitizers: str) -> Path:
    """The tests, compiled."""
    into = Path(_scratch.name) / sanitizers.replace(",", "-")
    sources = [PROGRAM, STUB / "fake_spdk.c", *(NATIVE / name for name in SOURCES)]
    command = [
        require("gcc"), "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all", f"-I{STUB}", f"-I{NATIVE}", "-o", into, *sources, "-lpthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return into


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("name", NAMES)
def test_the_shim(name: str, sanitizers: str) -> None:
    """At fixed addresses: the thread sanitizer cannot do with all of those that a kernel makes up."""
    argv = [require("setarch"), "-R", program(sanitizers), name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stderr
