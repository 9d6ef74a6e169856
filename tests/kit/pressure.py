"""What a process holds, and clients that want it to hold more."""

import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DESCRIPTORS_WANTED = 4096
SETTLE_SECONDS_MAX = 40.0
STUCK_SECONDS = 0.2
PIECE_BYTES = 1 << 20
_LINGER_RESET = struct.pack("ii", 1, 0)


class Footprint:
    """Memory and descriptors of a process that may be looked at."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def forget_peak(self) -> None:
        """Measure `peak_bytes` from here on."""
        (self._folder / "clear_refs").write_text("5", encoding="ascii")

    def peak_bytes(self) -> int:
        """The most that was resident since `forget_peak`."""
        status = (self._folder / "status").read_text(encoding="ascii")
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(self._folder / "fd"))


class Crowd:
    """Connections to one port, closed together."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sockets: list[socket.socket] = []

    def join(self, *data: bytes) -> socket.socket:
        """One more that sends `data` as far as it is taken at once; what becomes of it is nobody's business here."""
        stranger = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.sockets.append(stranger)
        stranger.setblocking(False)
        self.push(stranger, b"".join(data))
        return stranger

    def push(self, stranger: socket.socket, data: bytes) -> None:
        """Send what is taken at once."""
        view = memoryview(data)
        try:
            while view:
                view = view[stranger.send(view) :]
        except OSError:
            pass

    def press(self, stranger: socket.socket, data: bytes) -> None:
        """Send until nothing more is taken for a while."""
        stranger.settimeout(STUCK_SECONDS)
        view = memoryview(data)
        try:
            while view:
                view = view[stranger.send(view[:PIECE_BYTES]) :]
        except OSError:
            pass

    def half_close(self, *data: bytes) -> None:
        """One more that sends, says that nothing follows, and stays."""
        stranger = self.join(*data)
        try:
            stranger.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Reset them all."""
        for stranger in self.sockets:
            try:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            except OSError:
                pass
            stranger.close()


@contextmanager
def crowd(port: int) -> Iterator[Crowd]:
    """A crowd that goes when the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS_WANTED)), hard))
    gathered = Crowd(port)
    try:
        yield gathered
    finally:
        gathered.close()


def eventually(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait until `condition` holds; fails with `what` was the case instead."""
    deadline_s = time.monotonic() + SETTLE_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline_s, what()
        os.sched_yield()
