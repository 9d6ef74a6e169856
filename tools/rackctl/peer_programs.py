"""The real programs that our exports must satisfy, and the Debian packages that bring them (`make peers`)."""

import os
import shutil
from pathlib import Path
from typing import Final

PACKAGES: Final = {
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdkit": "nbdkit",
    "nbd-client": "nbd-client",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "fio": "fio",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "sfdisk": "fdisk",
    "qemu-system-x86_64": "qemu-system-x86",
    "nvme": "nvme-cli",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "blkdiscard": "util-linux",
    "fstrim": "util-linux",
    "flock": "util-linux",
    "wipefs": "util-linux",
    "busybox": "busybox-static",
    "kmod": "kmod",
    "depmod": "kmod",
    "zstd": "zstd",
    "gzip": "gzip",
    "gcc": "gcc",
    "setarch": "util-linux",
    "mkenvimage": "u-boot-tools",
    "mkimage": "u-boot-tools",
    "dumpimage": "u-boot-tools",
    "dtc": "device-tree-compiler",
    "qemu-system-aarch64": "qemu-system-arm",
    "openssl": "openssl",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "apt-cache": "apt",
    "u-boot.bin": "u-boot-qemu",
}
UBOOT_ARM64: Final = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
SPDK: Final = ("nvmf_tgt", "bdevperf", "spdk_nvme_identify", "spdk_nvme_perf")
"""Of SPDK, which is no Debian package: whoever has built it puts its build/bin into PATH."""

# Where distributions keep what only administrators are thought to need.
_SYSTEM_PATHS: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """Where the program is, or None."""
    return shutil.which(program) or shutil.which(program, path=os.environ.get("PATH", "") + ":" + _SYSTEM_PATHS)


def missing(program: str) -> str:
    """What to tell whoever has not got it."""
    if program in SPDK:
        return f"{program} is not installed: build SPDK and put its build/bin into PATH"
    return f"{program} is not installed: apt-get install {PACKAGES[program]}, or make peers"
