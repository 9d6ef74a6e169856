"""Compile the shim against the SPDK that pkg-config finds: `python -m spdk_bindings.spdk.build`.

The result lies beside this file and is loaded by `native.py`. SPDK 24.05 is the oldest that is supported.
"""

import argparse
import contextlib
import io
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spdk_bindings.spdk.errors import BuildError

PACKAGE: Final = Path(__file__).parent
NATIVE: Final = PACKAGE / "native"
MODULE: Final = "spdk_bindings.spdk._native"
SOURCES: Final = ("environment.c", "drive.c", "reactor.c", "commands.c", "controller.c", "attach.c")
SPDK_PACKAGES: Final = ("spdk_nvme", "spdk_env_dpdk", "spdk_syslibs")
OLDEST: Final = "24.05"
PRELUDE: Final = '#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n#include "interface.h"\n'
FLAGS: Final = ("-shared", "-fPIC", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function")


def output() -> Path:
    """Where the shim of this Python lies, or will."""
    return PACKAGE / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


@dataclass(frozen=True, slots=True)
class Spdk:
    """Arguments of the compiler that find SPDK's headers, and that link SPDK."""

    compiling: Sequence[str]
    linking: Sequence[str]


def installed() -> Spdk:
    """The SPDK that pkg-config finds. Raises BuildError."""
    return Spdk(_pkg_config("--cflags", *SPDK_PACKAGES), link_flags(_pkg_config("--libs", "--static", *SPDK_PACKAGES)))


def build(into: Path | None = None, spdk: Spdk | None = None) -> Path:
    """Make the shim over `spdk`, or what is installed; where it is. Raises BuildError."""
    into = into or output()
    compiler = _found("cc", "apt-get install gcc libc6-dev")
    spdk = spdk or installed()
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        raise BuildError(f"Python.h is not in {python}: apt-get install python3-dev")
    with tempfile.TemporaryDirectory(prefix=".shim-", dir=into.parent) as scratch:
        made, generated = Path(scratch) / into.name, Path(scratch) / "binding.c"
        _generate(generated)
        sources = [str(generated), *(str(NATIVE / name) for name in SOURCES)]
        _run([
            compiler, *FLAGS, f"-I{NATIVE}", f"-I{python}", *spdk.compiling, "-o", str(made), *sources, *spdk.linking,
        ])  # fmt: skip
        made.replace(into)  # at once: a program that has the former one open keeps it
    return into


def link_flags(found: Sequence[str]) -> list[str]:
    """What pkg-config says, in the form that works for static libraries too.

    SPDK's transports and sockets register themselves, so that their archives must be linked whole; system libraries
    must not, and a linker that drops libraries which seem unused must be told not to.
    """
    unique = list(dict.fromkeys(found))
    whole = [flag for flag in unique if flag.startswith(("-lspdk_", "-lrte_"))]
    paths = [flag for flag in unique if flag.startswith("-L")]
    rest = [flag for flag in unique if flag not in whole and flag not in paths]
    runtime = [f"-Wl,-rpath,{flag[2:]}" for flag in paths]
    return [
        *paths, *runtime, "-Wl,--no-as-needed", "-Wl,--whole-archive", *whole, "-Wl,--no-whole-archive", *rest,
    ]  # fmt: skip


def _generate(into: Path) -> None:
    try:
        from cffi import FFI
    except ImportError:
        raise BuildError("cffi is not installed: pip install 'palisade[spdk]'") from None
    ffi = FFI()
    ffi.cdef((NATIVE / "interface.h").read_text(encoding="utf-8"))
    ffi.set_source(MODULE, PRELUDE)
    with contextlib.redirect_stdout(io.StringIO()):
        ffi.emit_c_code(str(into))


def _found(program: str, remedy: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise BuildError(f"{program} is not installed: {remedy}")
    return path


def _pkg_config(*arguments: str) -> list[str]:
    program = _found("pkg-config", "apt-get install pkg-config")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"pkg-config does not find SPDK: {done.stderr.strip()}\n"
            f"Install SPDK {OLDEST} or newer (./configure && make && make install) and put its lib/pkgconfig into "
            "PKG_CONFIG_PATH."
        )
    return shlex.split(done.stdout)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"the compiler refused the shim:\n{done.stderr.strip()}\n(the command was: {shlex.join(command)})"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Build, say where it is; 2 with the reason when it can't be."""
    argparse.ArgumentParser(prog="python -m spdk_bindings.spdk.build", description=__doc__).parse_args(argv)
    try:
        print(build())
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
