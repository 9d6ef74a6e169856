"""What U-Boot's commands print, as values. All raise ConsoleError with the output where it is something else."""

import re
from typing import Final

from sled_board.errors import ConsoleError
from sled_board.uboot.dialogue import shown

_CRC: Final = re.compile(r"crc32 for ([0-9a-f]+) \.\.\. ([0-9a-f]+) ==> ([0-9a-f]{8})$", re.MULTILINE)
_RELEASE: Final = re.compile(r"^U-Boot (\d{4}\.\d{2})", re.MULTILINE)
_ROW: Final = re.compile(r"([0-9a-f]{8,16}): ((?:[0-9a-f]{2} ){1,16})")
ROW_BYTES: Final = 16


def crc_of(output: str, address: int, size: int) -> int:
    """The CRC-32 that `crc32 ADDRESS SIZE` printed."""
    found = _CRC.search(output)
    if found is None or (int(found[1], 16), int(found[2], 16)) != (address, address + size - 1):
        raise ConsoleError(f"crc32 printed something else; {shown(output.encode())}")
    return int(found[3], 16)


def memory_of(output: str, address: int, size: int) -> bytes:
    """The bytes that `md.b ADDRESS SIZE` printed."""
    data = b""
    for row in output.splitlines():
        found = _ROW.match(row)
        if found is None or int(found[1], 16) != address + len(data):
            raise ConsoleError(f"md.b printed something else: the line is noisy; {shown(row.encode())}")
        data += bytes.fromhex(found[2])
    if len(data) != size:
        raise ConsoleError(f"md.b printed {len(data)} bytes of {size}")
    return data


def release_of(output: str) -> str:
    """The release that `version` printed, as `2023.01`."""
    found = _RELEASE.search(output)
    if found is None:
        raise ConsoleError(f"version names no release of U-Boot; {shown(output.encode())}")
    return found[1]
