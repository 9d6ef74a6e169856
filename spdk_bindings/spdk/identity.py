"""What Identify says of a drive, as far as the driver cares (Base 2.0, 5.17; NVM Command Set 1.0, 4.1.5)."""

from dataclasses import dataclass
from typing import Self

_FORMATS_OFFSET = 128
_READS_ZERO = 1
_WRITE_ZEROES_DEALLOCATES = 1 << 3
_ONCS_OFFSET = 520
_WRITE_ZEROES = 1 << 3


@dataclass(frozen=True, slots=True)
class LbaFormat:
    """One way in which a namespace can be formatted; `performance` is the controller's rank, 0 the best."""

    index: int
    block_bytes: int
    metadata_bytes: int
    performance: int


@dataclass(frozen=True, slots=True)
class Identity:
    """A controller and one of its namespaces.

    `deallocated_reads_zero` and `write_zeroes_deallocates` are bits of DLFEAT, `has_write_zeroes` one of ONCS.
    """

    serial: str
    model: str
    firmware: str
    nsid: int
    block_count: int
    format: LbaFormat
    formats: tuple[LbaFormat, ...]
    deallocated_reads_zero: bool
    write_zeroes_deallocates: bool
    has_write_zeroes: bool

    @classmethod
    def parse(cls, nsid: int, controller: bytes, namespace: bytes) -> Self:
        """From the two structures of 4096 bytes."""
        count = namespace[25] + 1
        formats = tuple(_format(namespace, index) for index in range(min(count, 64)))
        current = namespace[26] & 0x0F | (namespace[26] & 0x60) >> 1
        return cls(
            serial=_text(controller[4:24]),
            model=_text(controller[24:64]),
            firmware=_text(controller[64:72]),
            nsid=nsid,
            block_count=int.from_bytes(namespace[0:8], "little"),
            format=formats[current] if current < count else _format(namespace, 0),
            formats=formats,
            deallocated_reads_zero=namespace[33] & 0x07 == _READS_ZERO,
            write_zeroes_deallocates=bool(namespace[33] & _WRITE_ZEROES_DEALLOCATES),
            has_write_zeroes=bool(controller[_ONCS_OFFSET] & _WRITE_ZEROES),
        )

    def best_format(self, block_bytes: int) -> LbaFormat | None:
        """The fastest format with blocks of that size and no metadata; None where there is none."""
        fitting = [one for one in self.formats if one.block_bytes == block_bytes and not one.metadata_bytes]
        return min(fitting, key=lambda one: one.performance, default=None)


def _format(namespace: bytes, index: int) -> LbaFormat:
    at = _FORMATS_OFFSET + 4 * index
    metadata = int.from_bytes(namespace[at : at + 2], "little")
    return LbaFormat(index, 1 << namespace[at + 2], metadata, namespace[at + 3] & 3)


def _text(field: bytes) -> str:
    return field.decode("ascii", "replace").strip("\0 ")
