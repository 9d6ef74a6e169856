"""Sizes as people write them: `1GiB`, `512M`, `4096`."""

import re
from typing import Final

from rackctl.errors import SizeInvalid

BLOCK_BYTES: Final = 4096
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_FORM: Final = re.compile(r"(\d{1,20})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """The size in bytes; units are powers of 1024. Raises SizeInvalid unless it is a positive multiple of 4096."""
    found = _FORM.fullmatch(text.strip())
    if not found:
        raise SizeInvalid(f"{text!r} is not a size: write for example 1GiB, 512MiB or a number of bytes")
    size_bytes = int(found[1]) * _UNITS[found[2].lower()]
    if size_bytes <= 0 or size_bytes % BLOCK_BYTES:
        raise SizeInvalid(f"{text!r} is not a positive multiple of {BLOCK_BYTES} bytes")
    return size_bytes


def show_size(size_bytes: int) -> str:
    """The shortest exact way to write it."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} B"
