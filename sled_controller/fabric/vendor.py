"""Commands as the head sends them: SQEs without CID, SGL and MAC, and the rows of the namespace table.

What each field means is in docs/wire-protocol.md; layouts are those of `spdk_bindings.nvme`.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final
from uuid import UUID

from construct import Int64ul
from construct import Struct as Layout

from spdk_bindings.device import Buffer
from spdk_bindings.nvme import NAMESPACE_ENTRY as NAMESPACE_ENTRY
from spdk_bindings.nvme import (
    PROPERTY_BYTES,
    PROPERTY_SQE,
    SGL_FLAGS,
    SQE,
    VENDOR_SQE,
    AdminOpcode,
    FabricsType,
    IdentifyCns,
    LogPage,
    Property,
)

# The opening of log page C2h; uptime and counters follow.
STATUS_LAYOUT: Final = Layout("boot_counter" / Int64ul, "key_set_version" / Int64ul, "sled_time_ms" / Int64ul)
STATUS: Final = Struct("<QQQ")

_NO_SGL: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class NamespaceEntry:
    """One namespace of a sled: column `column` of `volume`, `blocks` of 4096 bytes."""

    nsid: int
    column: int
    blocks: int
    volume: UUID

    def encode(self) -> bytes:
        """The 32 bytes of this row in log page C1h."""
        return NAMESPACE_ENTRY.pack(self.nsid, self.column, 0, self.blocks, self.volume.bytes)


def parse_namespaces(page: Buffer) -> list[NamespaceEntry]:
    """The rows of a piece of log page C1h, up to its end or the first nsid 0."""
    entries = []
    whole = len(page) - len(page) % NAMESPACE_ENTRY.size
    for nsid, column, _, blocks, volume in NAMESPACE_ENTRY.iter_unpack(memoryview(page)[:whole]):
        if nsid == 0:
            break
        entries.append(NamespaceEntry(nsid, column, blocks, UUID(bytes=volume)))
    return entries


def vendor_sqe(
    opcode: int, *, nsid: int = 0, slot: int = 0, nlb: int = 0, control: int = 0, slba: int = 0
) -> bytearray:
    """A vendor command; `nlb` is 0's based where it counts blocks."""
    return bytearray(VENDOR_SQE.pack(opcode, SGL_FLAGS, 0, nsid, slot, nlb, control, 0, _NO_SGL, slba, _NO_SGL))


def property_get(which: Property) -> bytearray:
    """Property Get."""
    wide = PROPERTY_BYTES[which] == 8
    return bytearray(
        PROPERTY_SQE.pack(AdminOpcode.FABRICS, SGL_FLAGS, 0, FabricsType.PROPERTY_GET, wide, which, 0)
    )  # fmt: skip


def property_set(which: Property, value: int) -> bytearray:
    """Property Set."""
    wide = PROPERTY_BYTES[which] == 8
    return bytearray(
        PROPERTY_SQE.pack(AdminOpcode.FABRICS, SGL_FLAGS, 0, FabricsType.PROPERTY_SET, wide, which, value)
    )  # fmt: skip


def identify_controller() -> bytearray:
    """Identify, CNS 01h: 4096 bytes of answer."""
    return _standard(AdminOpcode.IDENTIFY, IdentifyCns.CONTROLLER)


def keep_alive() -> bytearray:
    """Keep Alive."""
    return _standard(AdminOpcode.KEEP_ALIVE)


def get_log_page(page: LogPage, length: int, *, offset: int = 0, specific: int = 0) -> bytearray:
    """Get Log Page of `length` bytes (a multiple of 4) from `offset`; `specific` is the log specific identifier."""
    dwords = length // 4 - 1
    return _standard(
        AdminOpcode.GET_LOG_PAGE, page | (dwords & 0xFFFF) << 16, dwords >> 16 | specific << 16,
        offset & 0xFFFFFFFF, offset >> 32,
    )  # fmt: skip


def _standard(opcode: AdminOpcode, cdw10: int = 0, cdw11: int = 0, cdw12: int = 0, cdw13: int = 0) -> bytearray:
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, 0, 0, 0, 0, _NO_SGL, cdw10, cdw11, cdw12, cdw13, 0, 0))
