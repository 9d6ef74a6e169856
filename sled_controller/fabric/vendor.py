"""What the vendor commands carry in their fields and data: the agreement between client and target.

All of them use the vendor SQE (`pdu.VENDOR_SQE`); fields not named here are zero. MAC'd commands count on their queue.

| command          | MAC | fields                                   | data to the sled  | result                        |
|------------------|-----|------------------------------------------|-------------------|-------------------------------|
| SESSION_RECEIVE  | no  |                                          |                   | 160 bytes: the sled's hello   |
| SESSION_SEND     | no  |                                          | 144 bytes: reply  |                               |
| ATTACH           | yes | slba = attach number                     | 160: credential   | DW0 = slot                    |
| RECEIPT          | yes | slot                                     |                   | 160 bytes: the receipt        |
| KEYSET_UPDATE    | yes |                                          | 736: key set      |                               |
| NAMESPACE_CREATE | yes | slot, slba = blocks, nlb = column        |                   | DW0 = nsid                    |
| NAMESPACE_DELETE | yes | slot, nsid                               |                   |                               |
| DETACH           | yes | slot                                     |                   |                               |
| I/O              | yes | slot, nsid, slba, nlb 0's based, control | in capsule or R2T | C2HData for READ              |

FENCED_OFF answers with the sled's epoch in DW0 (low) and DW1 (high), SUPERSEDED too. Log pages are read with the
standard Get Log Page, the slot in the log specific identifier (CDW11 bits 31:16); a page ends in zeroes.
"""

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

# The opening of LOG_STATUS; counters may follow.
STATUS_LAYOUT: Final = Layout("boot_counter" / Int64ul, "key_set_version" / Int64ul, "sled_time_ms" / Int64ul)
STATUS: Final = Struct("<QQQ")


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
