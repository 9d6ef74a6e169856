"""Where the guest's kernel and programs come from: Debian packages, and what to say when one is missing."""

import fcntl
import re
import subprocess
from pathlib import Path
from typing import Final

from rackctl import peer_programs

KERNELS: Final = ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64")
"""Names that stand for the newest cloud kernel: nvme-tcp and native multipath, and no drivers of real machines. The
first is bookworm's name for 6.12."""
FETCH_SECONDS_MAX: Final = 120.0


class Missing(Exception):
    """Something is not installed and can't be had; the text names the package."""


def program(name: str) -> Path:
    """Where an installed program is; raises Missing."""
    found = peer_programs.find(name)
    if found is None:
        raise Missing(peer_programs.missing(name))
    return Path(found)


def libraries(*of: Path) -> list[Path]:
    """The shared libraries that programs are linked with, by the paths that they know; none when they are static."""
    said = subprocess.run(["ldd", *of], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return [Path(path) for path in dict.fromkeys(re.findall(r"(/\S+) \(0x", said))]


def kernel(cache: Path) -> Path:
    """The newest kernel package, as a file in `cache`; fetched by apt when none is there. Raises Missing.

    It is unpacked, never installed: this machine keeps the kernel and the boot loader that it has.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = sorted(cache.glob("linux-image-*.deb"))
        if kept:
            return kept[-1]
        name = _newest_kernel()
        fetched = subprocess.run(
            ["apt-get", "download", "-q", name],
            cwd=cache, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FETCH_SECONDS_MAX,
        )  # fmt: skip
        kept = sorted(cache.glob("linux-image-*.deb"))
        if not kept:
            raise Missing(f"the package {name} can't be fetched; make peers may help: {fetched.stdout.strip()}")
        return kept[-1]


def _newest_kernel() -> str:
    for name in KERNELS:
        said = subprocess.run(
            ["apt-cache", "depends", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        found = re.search(r"Depends: (linux-image-\S+)", said.stdout)
        if found is not None:
            return found[1]
    raise Missing(f"apt knows no package {' or '.join(KERNELS)}")
