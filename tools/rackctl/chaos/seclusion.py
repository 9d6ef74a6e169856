"""A network and mounts of our own: Linux namespaces, as far as the machine permits them.

The program starts itself again behind unshare(1), as root or, where users may make namespaces, as root of a namespace.
Its network is a router; each node has a network namespace with one cable to it. What is made in there, mounts included,
ends with the last process in there, however that ends (namespaces(7)).
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sled_board.durable import open_own

from rackctl.errors import RackError

MARK: Final = "RACKCTL_SECLUSION"
"""Says in the environment of a program that it has been started within."""
NAMESPACES: Final = Path("/run/netns")
"""Where ip-netns(8) keeps them; /run is a tmpfs of our own."""
RULE: Final = "100"
"""Preference of the rules that cut: before the table `main`."""
PROBE_SECONDS_MAX: Final = 20.0
FILL_TRIES_MAX: Final = 100
_INSIDE: Final = """
mount -t tmpfs -o mode=755 tmpfs /run
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
"""
_PROBE: Final = """
ip netns add probe
ip link add probe type veth peer name eth0 netns probe
ip rule add from 192.0.2.1 to 192.0.2.2 pref 100 blackhole
nsenter --net=/run/netns/probe true
"""


def seclude(argv: Sequence[str]) -> str | None:
    """Start the program again within, unless it is there or may not be there.

    Returns None when it is, and why it is not otherwise.
    """
    said = os.environ.pop(MARK, None)
    if said is not None:
        subprocess.run(["sh", "-ec", _INSIDE], check=True)
        return None
    missing = [program for program in ("unshare", "nsenter", "ip", "tc") if not shutil.which(program)]
    if missing:
        return f"no {' and no '.join(missing)} (Debian: util-linux, iproute2)"
    unshare = ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--"]
    probe = subprocess.run(
        [*unshare, "sh", "-ec", _INSIDE + _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS_MAX
    )
    if probe.returncode == 0:
        os.execvpe(unshare[0], [*unshare, sys.executable, *argv], {**os.environ, MARK: "yes"})
    return f"this machine permits no namespaces: {' '.join(probe.stderr.split())}"


class Network:
    """One namespace for each node, a router in between. Every method raises RackError."""

    def __init__(self, names: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        for name, number in self._numbers.items():
            self._plug(name, number)

    def address(self, name: str) -> str:
        """Where a node is."""
        return f"10.77.{self._numbers[name]}.2"

    def prefix(self, name: str) -> tuple[str, ...]:
        """What runs the command behind it in a node's namespace."""
        return ("nsenter", f"--net={NAMESPACES / name}", "--")

    def cut(self, source: str, target: str, *, silently: bool = True) -> None:
        """Let nothing that `source` sends reach `target`; a router that is not silent tells the sender so."""
        action = "blackhole" if silently else "unreachable"
        _ip("rule", "add", *self._between(source, target), action)

    def heal(self, source: str, target: str) -> None:
        """Undo one `cut`."""
        _ip("rule", "del", *self._between(source, target))

    def slow(self, name: str, bytes_per_s: int) -> None:
        """Let what is sent to a node come slowly, with a short queue in front."""
        rate = ("tbf", "rate", f"{bytes_per_s * 8}bit", "burst", "16k", "latency", "200ms")
        _run("tc", "qdisc", "replace", "dev", self._cable(name), "root", *rate)

    def quicken(self, name: str) -> None:
        """Undo `slow`."""
        _run("tc", "qdisc", "del", "dev", self._cable(name), "root")

    def _between(self, source: str, target: str) -> tuple[str, ...]:
        return ("from", self.address(source), "to", self.address(target), "pref", RULE)

    def _cable(self, name: str) -> str:
        return f"node{self._numbers[name]}"

    def _plug(self, name: str, number: int) -> None:
        cable = self._cable(name)
        _ip("netns", "add", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"10.77.{number}.1/30", "dev", cable)
        _ip("link", "set", cable, "up")
        for arguments in (
            ("address", "add", f"10.77.{number}.2/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", f"10.77.{number}.1"),
        ):
            _ip("-n", name, *arguments)


class SmallDisk:
    """A file system of bounded size over a directory, gone with our mounts."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        """Raises RackError."""
        directory.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(directory))
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self) -> None:
        """Leave no room at all, or next to none when somebody else gives some back meanwhile."""
        with os.fdopen(open_own(self._filler, os.O_RDWR | os.O_CREAT | os.O_TRUNC), "wb") as file:
            for _ in range(FILL_TRIES_MAX):
                found = os.statvfs(self.directory)
                if not found.f_bavail:
                    return
                with contextlib.suppress(OSError):  # somebody else has taken a part of it meanwhile
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), found.f_bavail * found.f_frsize)

    def clear(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Take the file system away; with `keep` its files stay, where they were. Raises RackError."""
        kept = self.directory.with_name(self.directory.name + ".kept")
        if keep:
            self.clear()
            _run("cp", "--archive", "--sparse=always", str(self.directory), str(kept))
        _run("umount", str(self.directory))
        if keep:
            self.directory.rmdir()
            kept.rename(self.directory)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RackError(f"{' '.join(argv)}: {done.stderr.strip()}")
