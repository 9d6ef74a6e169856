"""A volume and other servers over NBD, by fio: qemu-nbd and nbdkit over plain files."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.jobs import NBD_JOBS, RUN_S, Job
from bench.report import Table, side_by_side
from rackctl import peer_programs
from rackctl.errors import RackError
from rackctl.ports import PortReservations

FILE_BYTES: Final = 512 << 20
_READY_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class NbdTarget:
    """Something with an NBD address, and a directory for what fio leaves behind."""

    name: str
    uri: str
    scratch: Path
    prefix: tuple[str, ...] = ()
    """Of the command that starts fio."""

    def run(self, job: Job) -> float:
        """Its result in the job's figure. Raises RackError."""
        return job.result(self._fio(job.fio, RUN_S + 60))

    def fill(self) -> None:
        """Write the whole range once, so that reads find data. Raises RackError."""
        self._fio(("--name=fill", "--rw=write", "--bs=1m", "--iodepth=4", "--refill_buffers"), 300)

    def _fio(self, options: Sequence[str], timeout_s: float) -> str:
        where = ("--ioengine=nbd", f"--uri={self.uri}", f"--size={FILE_BYTES}", f"--aux-path={self.scratch}")
        done = subprocess.run(
            [*self.prefix, program("fio"), *options, *where],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RackError(f"fio against {self.name} ended with status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout


def compare(ours: NbdTarget, rounds: int, ports: PortReservations, leave_out: Callable[[str], None]) -> Table:
    """A volume beside the other servers; raises RackError."""
    with _other_servers(ours.scratch, ports, leave_out) as others:
        targets = [ours, *others]
        for target in targets:
            target.fill()
        columns = {target.name: target.run for target in targets}
        return side_by_side("NBD under `fio --ioengine=nbd`", NBD_JOBS, columns, rounds)


@contextlib.contextmanager
def _other_servers(
    directory: Path, ports: PortReservations, leave_out: Callable[[str], None]
) -> Iterator[list[NbdTarget]]:
    """qemu-nbd with and without a write cache, and nbdkit, over plain files; what is missing is left out by name."""
    with contextlib.ExitStack() as stack:
        targets = []
        for cache in ("writeback", "writethrough"):
            if peer_programs.find("qemu-nbd") is None:
                leave_out(peer_programs.missing("qemu-nbd"))
                break
            image, port = empty_file(directory / f"qemu-{cache}.img"), ports.take()
            argv = [program("qemu-nbd"), "--format=raw", f"--cache={cache}", "--persistent", "--shared=4"]
            argv += ["--bind=127.0.0.1", f"--port={port}", "--export-name=data", str(image)]
            stack.enter_context(_serving(argv, port))
            targets.append(NbdTarget(f"qemu-nbd --cache={cache}", f"nbd://127.0.0.1:{port}/data", directory))
        if peer_programs.find("nbdkit") is None:
            leave_out(peer_programs.missing("nbdkit"))
        else:
            image, port = empty_file(directory / "nbdkit.img"), ports.take()
            argv = [program("nbdkit"), "--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", f"--port={port}"]
            stack.enter_context(_serving([*argv, "file", str(image)], port))
            targets.append(NbdTarget("nbdkit file", f"nbd://127.0.0.1:{port}/data", directory))
        yield targets


def program(name: str) -> str:
    """Where it is; raises RackError that names its package."""
    found = peer_programs.find(name)
    if found is None:
        raise RackError(peer_programs.missing(name))
    return found


def empty_file(path: Path) -> Path:
    """A sparse file of FILE_BYTES."""
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
