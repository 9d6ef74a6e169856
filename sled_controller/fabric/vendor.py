"""The data of the vendor commands and log pages, for client and target alike; the commands are in docs/wire-protocol.md."""

from dataclasses import dataclass
from struct import Struct
from typing import Final
from uuid import UUID

from construct import Bytes, Const, Int16ul, Int32ul, Int64ul
from construct import Struct as Layout

from spdk_bindings.device import Buffer

LOG_FENCE: Final = 0xC0  # by slot: the signed credential that raised the fence; zeroes when there is none
LOG_NAMESPACES: Final = 0xC1  # entries in ascending nsid, an nsid of 0 ends them
LOG_STATUS: Final = 0xC2

CONTROL_FUA: Final = 1

NAMESPACE_ENTRY_LAYOUT: Final = Layout(
    "nsid" / Int32ul,
    "column" / Int16ul,
    "zero" / Const(0, Int16ul),
    "blocks" / Int64ul,
    "volume" / Bytes(16),
)
NAMESPACE_ENTRY: Final = Struct("<IHHQ16s")

# The opening of LOG_STATUS; counters follow.
STATUS_LAYOUT: Final = Layout(
    "boot_counter" / Int64ul, "key_set_version" / Int64ul, "sled_time_ms" / Int64ul, "uptime_ms" / Int64ul
)
STATUS: Final = Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class NamespaceEntry:
    """One namespace of a sled: column `column` of `volume`, `blocks` of 4096 bytes."""

    nsid: int
    column: int
    blocks: int
    volume: UUID

    def encode(self) -> bytes:
        """The 32 bytes of this entry in LOG_NAMESPACES."""
        return NAMESPACE_ENTRY.pack(self.nsid, self.column, 0, self.blocks, self.volume.bytes)


def parse_namespaces(page: Buffer) -> list[NamespaceEntry]:
    """The entries of a LOG_NAMESPACES page, up to its end or the first nsid 0."""
    entries = []
    whole = len(page) - len(page) % NAMESPACE_ENTRY.size
    for nsid, column, _, blocks, volume in NAMESPACE_ENTRY.iter_unpack(memoryview(page)[:whole]):
        if nsid == 0:
            break
        entries.append(NamespaceEntry(nsid, column, blocks, UUID(bytes=volume)))
    return entries
