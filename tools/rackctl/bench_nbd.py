"""The same fio jobs over NBD against servers that are not ours, side by side with a volume of a rack."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rackctl import peer_programs
from rackctl.errors import RackError
from rackctl.ports import PortReservations

FILE_BYTES: Final = 512 << 20
RUN_S: Final = 2
_READY_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Workload:
    """One fio job. `figure` is what its result is counted in."""

    name: str
    options: tuple[str, ...]
    figure: str


WORKLOADS: Final = (
    Workload("4 KiB random write, depth 32", ("--rw=randwrite", "--bs=4k", "--iodepth=32"), "IOPS"),
    Workload("4 KiB random write, depth 1", ("--rw=randwrite", "--bs=4k", "--iodepth=1"), "IOPS"),
    Workload("4 KiB random read, depth 32", ("--rw=randread", "--bs=4k", "--iodepth=32"), "IOPS"),
    Workload("1 MiB sequential write, depth 4", ("--rw=write", "--bs=1m", "--iodepth=4"), "MiB/s"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Something with an NBD address."""

    name: str
    uri: str


def fio(target: Target, workload: Workload, directory: Path) -> float:
    """Run one job for RUN_S seconds; its result in the workload's figure. Raises RackError."""
    argv = [
        *(_program("fio"), "--name=bench", "--ioengine=nbd", f"--uri={target.uri}", f"--size={FILE_BYTES}"),
        *("--time_based", f"--runtime={RUN_S}", "--randrepeat=0", "--norandommap", "--output-format=json"),
        *(f"--aux-path={directory}", *workload.options),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S + 60)
    if done.returncode:
        raise RackError(f"fio against {target.name} ended with status {done.returncode}: {done.stdout}{done.stderr}")
    # fio puts notes in front of its JSON.
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["read"] if "read" in workload.options[0] else job["write"]
    return float(side["bw_bytes"]) / (1 << 20) if workload.figure == "MiB/s" else float(side["iops"])


def fill(target: Target, directory: Path) -> None:
    """Write the whole range once, so that reads find data."""
    argv = [
        *(_program("fio"), "--name=fill", "--ioengine=nbd", f"--uri={target.uri}", f"--size={FILE_BYTES}"),
        *("--rw=write", "--bs=1m", "--iodepth=4", "--refill_buffers", f"--aux-path={directory}"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RackError(f"fio against {target.name} ended with status {done.returncode}: {done.stdout}{done.stderr}")


@contextlib.contextmanager
def other_servers(directory: Path, ports: PortReservations, say: Callable[[str], None]) -> Iterator[list[Target]]:
    """qemu-nbd with and without a write cache, and nbdkit, over plain files; what is missing is left out by name."""
    with contextlib.ExitStack() as stack:
        targets = []
        for cache in ("writeback", "writethrough"):
            if peer_programs.find("qemu-nbd") is None:
                say(peer_programs.missing("qemu-nbd"))
                break
            image, port = _file(directory / f"qemu-{cache}.img"), ports.take()
            argv = [_program("qemu-nbd"), "--format=raw", f"--cache={cache}", "--persistent", "--shared=4"]
            argv += ["--bind=127.0.0.1", f"--port={port}", "--export-name=data", str(image)]
            stack.enter_context(_serving(argv, port))
            targets.append(Target(f"qemu-nbd --cache={cache}", f"nbd://127.0.0.1:{port}/data"))
        if peer_programs.find("nbdkit") is None:
            say(peer_programs.missing("nbdkit"))
        else:
            image, port = _file(directory / "nbdkit.img"), ports.take()
            argv = [_program("nbdkit"), "--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", f"--port={port}"]
            stack.enter_context(_serving([*argv, "file", str(image)], port))
            targets.append(Target("nbdkit file", f"nbd://127.0.0.1:{port}/data"))
        yield targets


def _program(name: str) -> str:
    found = peer_programs.find(name)
    if found is None:
        raise RackError(peer_programs.missing(name))
    return found


def _file(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(FILE_BYTES)
    return path


@contextlib.contextmanager
def _serving(argv: Sequence[str], port: int) -> Iterator[None]:
    """A server for the length of a `with` block, entered when it listens."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True) as server:
        try:
            deadline = time.monotonic() + _READY_TIMEOUT_S
            while not _listens(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RackError(f"{argv[0]}: does not listen on port {port}")
                time.sleep(0.01)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def _listens(port: int) -> bool:
    """Whether the kernel has a listening socket there; connecting would count as a client."""
    wanted = f"{port:04X}"
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(":" + wanted) and fields[3] == "0A":
            return True
    return False
