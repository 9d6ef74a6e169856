"""Runs programs that nobody here wrote, skipping the test by the Debian package's name when one is missing."""

import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
from rackctl import peer_programs

TIMEOUT_S: Final = 90.0
PATTERN_BYTES: Final = 1 << 20


def require(program: str) -> str:
    """Where the program is; skips the test when it is not installed."""
    found = peer_programs.find(program)
    if found is None:
        pytest.skip(peer_programs.missing(program))
    return found


def run(program: str, *arguments: str | Path, timeout_s: float = TIMEOUT_S) -> str:
    """Run a program to its successful end; what it printed on both outputs."""
    argv = [require(program), *map(str, arguments)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, text=True)
    assert done.returncode == 0, f"{' '.join(argv)} ended with status {done.returncode}:\n{done.stdout}"
    return done.stdout


def random_file(path: Path, size_bytes: int) -> Path:
    """A file whose blocks all differ, with a hole in it."""
    with path.open("wb") as file:
        file.write(os.urandom(size_bytes // 2))
        file.seek(size_bytes - size_bytes // 4)
        file.write(os.urandom(size_bytes // 4))
    return path


class QemuIo:
    """One `qemu-io` process that is given command after command, over one NBD connection that it renews itself."""

    PROMPT: Final = b"qemu-io> "

    def __init__(self, host: str, port: int, export: str, *, reconnect_delay_s: int) -> None:
        image = (
            f"driver=nbd,server.type=inet,server.host={host},server.port={port},export={export},"
            f"reconnect-delay={reconnect_delay_s}"
        )
        self._process = subprocess.Popen(
            [require("qemu-io"), "--image-opts", image, "--cache", "none"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._read_answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, command: str) -> None:
        """Give a command without waiting for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def finish(self) -> str:
        """Wait for the end of the command given by `start`; its output."""
        answer = self._read_answer()
        assert "failed" not in answer.lower(), answer
        assert "error" not in answer.lower(), answer
        return answer

    def command(self, command: str) -> str:
        """Give a command and wait for its end."""
        self.start(command)
        return self.finish()

    def _read_answer(self) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + TIMEOUT_S
        received = b""
        while not received.endswith(self.PROMPT):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 65536) if ready else b""
            assert part, f"qemu-io said nothing more than {received!r}"
            received += part
        return received.removesuffix(self.PROMPT).decode()
