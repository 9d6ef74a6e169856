"""The board's storage as provisioning lays it out: a partition table and two file systems where the board has `base`.

Partition 1 is what U-Boot boots, written once; partition 2, which is mounted as `/sled`, is what makes this board
itself. Slots and their state lie outside of both.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from construct import Array, Bytes, Const, Int8ul, Int32ul, Padding, Struct
from sled_board.board import Board

from rackctl.board.packages import Missing, program
from rackctl.errors import RackError

SECTOR_BYTES: Final = 512
OWN_BYTES: Final = 64 << 20
"""Of partition 2: an identity and a few settings, and the journal."""
_LINUX: Final = 0x83
_BOOTABLE: Final = 0x80
_NOT_BY_CYLINDERS: Final = b"\xfe\xff\xff"  # what says that only the sector numbers count
_MBR_ENTRIES: Final = 4
_ENTRY: Final = Struct(
    "status" / Int8ul,
    "first_chs" / Bytes(3),
    "kind" / Int8ul,
    "last_chs" / Bytes(3),
    "first" / Int32ul,
    "count" / Int32ul,
)
_MBR: Final = Struct(Padding(446), "entries" / Array(_MBR_ENTRIES, _ENTRY), Const(b"\x55\xaa"))
"""A master boot record, as in UEFI specification 2.10, table 5.1."""
_UNUSED: Final = {
    "status": 0, "kind": 0, "first": 0, "count": 0, "first_chs": bytes(3), "last_chs": bytes(3),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Content:
    """A file of a file system; `secret` is for root alone."""

    data: bytes
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Partition:
    """An ext4 file system at `offset`, `size` bytes long. `fixed`: never written, and plain enough for U-Boot."""

    label: str
    offset: int
    size: int
    fixed: bool
    files: Mapping[str, Content]


def layout(board: Board, base: Mapping[str, Content], own: Mapping[str, Content]) -> list[Partition]:
    """The two partitions; raises RackError where the board has too little room."""
    place = board.storage.base
    base_bytes = place.size - OWN_BYTES
    if sum(len(content.data) for content in base.values()) > base_bytes * 3 // 4:
        raise RackError(f"{board.name}: its place for a base system, {place.size} bytes, is too small for this one")
    return [
        Partition("base", place.offset, base_bytes, True, base),
        Partition("sled", place.offset + base_bytes, OWN_BYTES, False, own),
    ]


def is_blank(storage: Path) -> bool:
    """Whether nobody has laid anything out there yet."""
    with storage.open("rb") as file:
        return not any(file.read(SECTOR_BYTES))


def write_partitions(storage: Path, partitions: Sequence[Partition]) -> None:
    """Write the file systems, and the table last: a board that was not provisioned to the end boots nothing."""
    with TemporaryDirectory(dir=storage.parent) as scratch, storage.open("r+b") as disk:
        for partition in partitions:
            image = Path(scratch) / "image"
            _make(image, partition, Path(scratch) / partition.label)
            disk.seek(partition.offset)
            with image.open("rb") as made:
                shutil.copyfileobj(made, disk, 1 << 20)
            image.unlink()
        disk.seek(0)
        disk.write(_table(partitions))


def _table(partitions: Sequence[Partition]) -> bytes:
    entries: list[dict[str, Any]] = [
        {
            "status": _BOOTABLE if partition.fixed else 0, "kind": _LINUX,
            "first_chs": _NOT_BY_CYLINDERS, "last_chs": _NOT_BY_CYLINDERS,
            "first": partition.offset // SECTOR_BYTES, "count": partition.size // SECTOR_BYTES,
        }
        for partition in partitions
    ]  # fmt: skip
    entries += [_UNUSED] * (_MBR_ENTRIES - len(entries))
    return bytes(_MBR.build({"entries": entries}))


def _make(image: Path, partition: Partition, tree: Path) -> None:
    for name, content in partition.files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600 if content.secret else 0o644)
        path.write_bytes(content.data)
    # U-Boot 2023.01 reads ext4 without these.
    features = ["-O", "^has_journal,^metadata_csum,^64bit"] if partition.fixed else []
    done = subprocess.run(
        [program("mkfs.ext4"), "-q", "-L", partition.label, "-m", "0", *features, "-E", "root_owner=0:0", "-d", tree,
         image, f"{partition.size >> 10}k"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise Missing(f"mkfs.ext4 has made no file system: {done.stderr.strip()}")
