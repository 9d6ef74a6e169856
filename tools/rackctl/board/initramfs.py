"""What a kernel unpacks into its first file system, from contents by path."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from rackctl.board.cpio import Archive, Writable

FOLDERS: Final = ("bin", "dev", "etc", "lib", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin")
ACCOUNTS: Final = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/group": b"root:x:0:\n", "etc/mtab": b"",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contents:
    """Files and symbolic links by their paths without a leading slash; `init` is the first program, a script.

    The paths in `executable` are of `files`.
    """

    init: bytes
    files: Mapping[str, bytes]
    links: Mapping[str, str] = field(default_factory=dict)
    executable: Collection[str] = ()


def write_initramfs(out: Writable, contents: Contents) -> None:
    """Write the archive; the same contents give the same bytes."""
    archive = Archive(out)
    files = {**contents.files, **ACCOUNTS}
    folders = set(FOLDERS)
    for path in (*files, *contents.links):
        folders |= {str(parent) for parent in PurePosixPath(path).parents}
    for folder in sorted(folders - {"."}):
        archive.folder(folder)
    # The kernel opens it for the first process before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.file("init", contents.init, executable=True)
    for path, data in sorted(files.items()):
        archive.file(path, data, executable=path in contents.executable)
    for path, target in sorted(contents.links.items()):
        archive.link(path, target)
    archive.end()
