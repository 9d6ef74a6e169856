"""A client that nobody here wrote: fio(1) writes a volume of its own beside the load and verifies it, again and again.

Every pass writes another pattern, so that what is older than the pass before is wrong. fio does not reconnect: a pass
that loses its head is given up, and proves nothing.
"""

import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

VOLUME: Final = "fio"
VOLUME_BYTES: Final = 16 << 20
BLOCK_BYTES: Final = 16 << 10
DEPTH: Final = 8
IOPS_MAX: Final = 200
"""So that most cores are left to the rack and the other clients; a pass takes five seconds."""
PAUSE_SECONDS: Final = 0.5
"""Before the next pass when one found no head."""
PASS_SECONDS_MAX: Final = 60.0
"""A pass that takes longer waits for a head that is frozen; it is ended."""
STOP_SECONDS_MAX: Final = 15.0
SAID_BYTES_MAX: Final = 256 << 10
"""fio that has lost its head may say so without end; it is ended then."""
_WRONG: Final = re.compile(r"verify failed|bad magic|got pattern|bad header|Bad bits")


@dataclass(slots=True)
class Passes:
    """How many passes were written and verified, verified again later, and given up."""

    verified: int = 0
    verified_again: int = 0
    given_up: int = 0


class FioBeside:
    """Runs fio in a thread until `close`. What fio finds wrong is passed to `accuse`."""

    def __init__(self, fio: str, uris: Sequence[str], scratch: str, accuse: Callable[[str], None]) -> None:
        """`uris` are the volume at every head; passes take turns."""
        self.passes = Passes()
        self._fio = fio
        self._uris = list(uris)
        self._scratch = scratch
        self._accuse = accuse
        self._child: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fio", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it. Safe to call again."""
        self._stop.set()
        child = self._child
        if child is not None:
            child.kill()
        self._thread.join(STOP_SECONDS_MAX)

    def _run(self) -> None:
        written: int | None = None
        number = 0
        while not self._stop.is_set():
            uri = self._uris[number % len(self._uris)]
            if written is not None and self._pass(uri, written, "--verify_only"):
                self.passes.verified_again += 1
            number += 1
            if self._pass(uri, number, "--do_verify=1"):
                written = number
                self.passes.verified += 1
            else:
                written = None
                self._stop.wait(PAUSE_SECONDS)

    def _pass(self, uri: str, number: int, what: str) -> bool:
        """Whether fio was content. A pass that was given up is not."""
        argv = [
            self._fio, "--name=chaos", "--thread", "--ioengine=nbd", f"--uri={uri}", f"--size={VOLUME_BYTES}",
            "--rw=randwrite", f"--bs={BLOCK_BYTES}", f"--iodepth={DEPTH}", f"--rate_iops={IOPS_MAX}",
            "--verify=pattern", f"--verify_pattern=0x{number:08x}%o", "--verify_fatal=1", "--verify_state_save=0",
            f"--randseed={number}",            f"--aux-path={self._scratch}", what,
        ]  # fmt: skip
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self._scratch) as child:
            self._child = child
            if self._stop.is_set():
                child.kill()
            said = _listen(child)
            self._child = None
        if _WRONG.search(said):
            self._accuse(f"pass {number} through {uri}, {what}: {said.strip()[-2000:]}")
        elif child.returncode:
            self.passes.given_up += 1
        return child.returncode == 0


def _listen(child: "subprocess.Popen[bytes]") -> str:
    """What a child says until it ends; one that says too much, or takes too long, is ended."""
    assert child.stdout is not None
    late = threading.Timer(PASS_SECONDS_MAX, child.kill)
    late.start()
    try:
        said = child.stdout.read(SAID_BYTES_MAX)
        child.kill()  # it has closed its output, or filled it
        child.stdout.close()
    finally:
        late.cancel()
    return said.decode(errors="replace")
