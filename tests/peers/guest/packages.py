"""Where the guest's kernel and programs come from: a Debian package, and this machine."""

import re
import subprocess
from pathlib import Path
from typing import Final

from rackctl.board.packages import Missing, Packages, program

__all__ = ["Missing", "kernel", "libraries", "program"]

KERNELS: Final = ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64")
"""Names that stand for the newest cloud kernel: nvme-tcp and native multipath, and no drivers of real machines. The
first is bookworm's name for 6.12."""


def libraries(*of: Path) -> list[Path]:
    """The shared libraries that programs are linked with, by the paths that they know; none when they are static."""
    said = subprocess.run(["ldd", *of], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return [Path(path) for path in dict.fromkeys(re.findall(r"(/\S+) \(0x", said))]


def kernel(cache: Path) -> Path:
    """The newest kernel package, as a file in `cache`; fetched by apt when none is there. Raises Missing.

    It is unpacked, never installed: this machine keeps the kernel and the boot loader that it has.
    """
    return Packages(cache).kernel(KERNELS)
