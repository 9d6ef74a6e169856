"""What a controller answers to Identify: the 4096-byte structures of NVM Express Base 2.0, 5.17.

They are built once per connection or namespace, never per command, so construct does it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final
from uuid import UUID

from construct import Bytes, BytesInteger, Const, Default, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from spdk_bindings.device import BLOCK_BYTES
from spdk_bindings.nvme import NVME_VERSION

IDENTIFY_BYTES: Final = 4096
ACTIVE_NAMESPACES_MAX: Final = 1024
CONTROLLER_LIST_MAX: Final = 2047

CONTROLLER_IO: Final = 1
CONTROLLER_DISCOVERY: Final = 2

ONCS_COMPARE: Final = 1 << 0
ONCS_DATASET_MANAGEMENT: Final = 1 << 2
ONCS_WRITE_ZEROES: Final = 1 << 3
ONCS_FEATURE_SELECT: Final = 1 << 4
ONCS_RESERVATIONS: Final = 1 << 5
ONCS_VERIFY: Final = 1 << 7

OACS_FIRMWARE: Final = 1 << 2
FRMW_ONE_SLOT: Final = 0x03  # FRMW: one slot, read only
FRMW_TWO_SLOTS_AT_ONCE: Final = 0x14  # FRMW: two slots, none read only for good, activated without a reset by the host
FWUG_ANY: Final = 0xFF  # FWUG: firmware comes in pieces of any number of dwords, at any dword
LPA_EFFECTS: Final = 1 << 1
LPA_EXTENDED: Final = 1 << 2  # offsets, and 32 bits of length
LPA_SUPPORTED_PAGES: Final = 1 << 5

ANA_CAPABILITIES: Final = 1 << 0 | 1 << 2 | 1 << 4
"""ANACAP: optimized, inaccessible and change are reported. That the group of a namespace stays the same (bit 6) is
not said, though it is true: nvme-cli 2.3 reads the page without its namespaces then."""
ANA_GROUP: Final = 1

DEALLOCATED_READS_ZERO: Final = 0x01  # DLFEAT bits 2:0
WRITE_ZEROES_DEALLOCATES: Final = 0x08  # DLFEAT: the DEAC bit is heeded
RESERVED_FOR_EXCLUSIVE_ACCESS: Final = 0x05  # RESCAP: persistence, and that one type
ALL_RESERVATIONS: Final = 0xFF  # RESCAP: persistence, all six types, IEKEY as of NVM Express 1.3

_SHARED: Final = 0x03  # CMIC: the subsystem has several ports and several controllers
_REPORTS_ANA: Final = 0x08
_CACHE_PRESENT: Final = 0x05  # VWC: flush is for one namespace at a time
_NO_CACHE: Final = 0x06  # VWC: flush takes all namespaces at once, too

U128 = BytesInteger(16, swapped=True)

CONTROLLER_FORMAT = Struct(
    "vendor_id" / Int16ul,
    "subsystem_vendor_id" / Int16ul,
    "serial" / Bytes(20),
    "model" / Bytes(40),
    "firmware" / Bytes(8),
    "arbitration_burst" / Default(Int8ul, 0),
    "ieee" / Default(Bytes(3), bytes(3)),
    "multipath" / Int8ul,
    "max_transfer_log2_pages" / Int8ul,
    "controller_id" / Int16ul,
    "version" / Int32ul,
    "resume_latency_us" / Default(Int32ul, 0),
    "entry_latency_us" / Default(Int32ul, 0),
    "async_events" / Default(Int32ul, 0),
    "attributes" / Default(Int32ul, 0),
    Padding(11),
    "controller_type" / Int8ul,
    Padding(256 - 112),
    "admin_optional" / Default(Int16ul, 0),
    "abort_limit" / Default(Int8ul, 3),
    "async_event_limit" / Default(Int8ul, 3),
    "firmware_updates" / Default(Int8ul, FRMW_ONE_SLOT),
    "log_attributes" / Default(Int8ul, 0x06),
    "error_log_entries" / Default(Int8ul, 63),
    "power_states" / Default(Int8ul, 0),
    Padding(2),
    "warning_temperature_kelvin" / Default(Int16ul, 343),
    "critical_temperature_kelvin" / Default(Int16ul, 353),
    Padding(280 - 270),
    "total_capacity_bytes" / Default(U128, 0),
    "unallocated_capacity_bytes" / Default(U128, 0),
    Padding(319 - 312),
    "firmware_granularity_4k" / Default(Int8ul, 0),
    "keep_alive_100ms" / Int16ul,
    Padding(342 - 322),
    "ana_transition_s" / Default(Int8ul, 0),
    "ana_capabilities" / Default(Int8ul, 0),
    "ana_group_id_max" / Default(Int32ul, 0),
    "ana_groups" / Default(Int32ul, 0),
    Padding(512 - 352),
    "sqe_sizes" / Const(0x66, Int8ul),
    "cqe_sizes" / Const(0x44, Int8ul),
    "max_commands" / Int16ul,
    "namespaces_max" / Int32ul,
    "nvm_optional" / Int16ul,
    "fused" / Default(Int16ul, 0),
    "format_attributes" / Default(Int8ul, 0),
    "volatile_write_cache" / Int8ul,
    "atomic_write_normal" / Default(Int16ul, 0),
    "atomic_write_power_fail" / Default(Int16ul, 0),
    Padding(536 - 530),
    "sgl_support" / Int32ul,
    "namespaces_allowed" / Default(Int32ul, 0),
    Padding(768 - 544),
    "subsystem_nqn" / Bytes(256),
    Padding(1792 - 1024),
    "command_capsule_16b" / Int32ul,
    "response_capsule_16b" / Int32ul,
    "in_capsule_offset_16b" / Default(Int16ul, 0),
    "fabrics_attributes" / Default(Int8ul, 0),
    "sgl_descriptors_max" / Default(Int8ul, 1),
    "fabrics_optional" / Default(Int16ul, 0),
    Padding(2048 - 1806),
    "power_state_0" / Default(Bytes(32), (2500).to_bytes(2, "little") + bytes(30)),
    Padding(4096 - 2080),
)
"""Identify Controller data structure (figure 275); not every field has a name here, what has none is zero."""

NAMESPACE_FORMAT = Struct(
    "size_blocks" / Int64ul,
    "capacity_blocks" / Int64ul,
    "used_blocks" / Int64ul,
    "features" / Int8ul,
    "formats_last" / Const(0, Int8ul),
    "formatted" / Const(0, Int8ul),
    "metadata" / Const(0, Int8ul),
    "protection" / Const(0, Int8ul),
    "protection_set" / Const(0, Int8ul),
    "sharing" / Int8ul,
    "reservations" / Int8ul,
    "format_progress" / Const(0, Int8ul),
    "deallocate" / Int8ul,
    "atomic_write_normal" / Default(Int16ul, 0),
    "atomic_write_power_fail" / Default(Int16ul, 0),
    Padding(48 - 38),
    "capacity_bytes" / U128,
    Padding(92 - 64),
    "ana_group" / Default(Int32ul, 0),
    Padding(99 - 96),
    "attributes" / Default(Int8ul, 0),
    Padding(4),
    "nguid" / Bytes(16),
    "eui64" / Default(Bytes(8), bytes(8)),
    "metadata_bytes" / Const(0, Int16ul),
    "lba_log2_bytes" / Const(12, Int8ul),
    "performance" / Const(0, Int8ul),
    Padding(4096 - 132),
)
"""Identify Namespace data structure (NVM Command Set 1.0, figure 97)."""


@dataclass(frozen=True, slots=True)
class ControllerIdentity:
    """What the Identify Controller structure says of a controller.

    `max_transfer_bytes` is a power of two times 4096 (MDTS), `in_capsule_data_bytes` a multiple of 16 (IOCCSZ),
    `namespaces_max` the highest namespace id (NN), `namespaces_allowed` how many there may be (MNAN). `serial` has up
    to 20 ASCII characters, `model` 40, `firmware` 8. With `ana_transition_s` (ANATT) there is one ANA group.
    `takes_firmware` says that the firmware can be updated: two slots (FRMW), pieces of any size (FWUG).
    """

    serial: str
    model: str
    firmware: str
    subsystem_nqn: str
    controller_id: int
    max_transfer_bytes: int
    in_capsule_data_bytes: int
    max_commands: int
    namespaces_max: int
    total_capacity_bytes: int = 0
    unallocated_capacity_bytes: int = 0
    volatile_write_cache: bool = True
    async_events: int = 0
    ana_transition_s: int = 0
    namespaces_allowed: int = ACTIVE_NAMESPACES_MAX
    log_attributes: int = LPA_EFFECTS | LPA_EXTENDED
    discovery: bool = False
    takes_firmware: bool = False
    nvm_optional: int = ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES | ONCS_RESERVATIONS


def ascii_field(text: str, size: int, pad: bytes = b" ") -> bytes:
    """`text` as a fixed ASCII field, padded on the right; ValueError if it doesn't fit or isn't ASCII."""
    data = text.encode("ascii")
    if len(data) > size:
        raise ValueError(f"{text!r} is longer than {size} bytes")
    return data.ljust(size, pad)


def identify_controller(identity: ControllerIdentity) -> bytes:
    """The 4096 bytes of Identify Controller (CNS 01h)."""
    pages = identity.max_transfer_bytes // BLOCK_BYTES
    if pages < 1 or pages & (pages - 1) or identity.max_transfer_bytes % BLOCK_BYTES:
        raise ValueError(f"max_transfer_bytes must be a power of two times 4096, not {identity.max_transfer_bytes}")
    return bytes(
        CONTROLLER_FORMAT.build(
            {
                "vendor_id": 0,
                "subsystem_vendor_id": 0,
                "serial": ascii_field(identity.serial, 20),
                "model": ascii_field(identity.model, 40),
                "firmware": ascii_field(identity.firmware, 8),
                "multipath": _SHARED | (_REPORTS_ANA if identity.ana_transition_s else 0),
                "max_transfer_log2_pages": pages.bit_length() - 1,
                "controller_id": identity.controller_id,
                "version": NVME_VERSION,
                "async_events": identity.async_events,
                "attributes": 0x01,
                "admin_optional": OACS_FIRMWARE if identity.takes_firmware else 0,
                "firmware_updates": FRMW_TWO_SLOTS_AT_ONCE if identity.takes_firmware else FRMW_ONE_SLOT,
                "firmware_granularity_4k": FWUG_ANY if identity.takes_firmware else 0,
                "controller_type": CONTROLLER_DISCOVERY if identity.discovery else CONTROLLER_IO,
                "total_capacity_bytes": identity.total_capacity_bytes,
                "unallocated_capacity_bytes": identity.unallocated_capacity_bytes,
                "log_attributes": identity.log_attributes,
                "keep_alive_100ms": 10,
                "ana_transition_s": identity.ana_transition_s,
                "ana_capabilities": ANA_CAPABILITIES if identity.ana_transition_s else 0,
                "ana_group_id_max": ANA_GROUP if identity.ana_transition_s else 0,
                "ana_groups": ANA_GROUP if identity.ana_transition_s else 0,
                "max_commands": identity.max_commands,
                "namespaces_max": 0 if identity.discovery else identity.namespaces_max,
                "nvm_optional": 0 if identity.discovery else identity.nvm_optional,
                "volatile_write_cache": 0
                if identity.discovery
                else _CACHE_PRESENT
                if identity.volatile_write_cache
                else _NO_CACHE,
                "sgl_support": 0x0010_0001,
                "namespaces_allowed": 0 if identity.discovery else identity.namespaces_allowed,
                "subsystem_nqn": ascii_field(identity.subsystem_nqn, 256, b"\0"),
                "command_capsule_16b": (64 + identity.in_capsule_data_bytes) // 16,
                "response_capsule_16b": 1,
            }
        )
    )


@dataclass(frozen=True, slots=True)
class NamespaceIdentity:
    """What the Identify Namespace structure says: `blocks` of 4096 bytes, `used_blocks` of them in use as far as known.

    `reservations` is RESCAP; `deallocate` DLFEAT; `ana_group` 0 where no ANA is reported.
    """

    blocks: int
    uuid: UUID
    used_blocks: int
    reservations: int = 0
    deallocate: int = DEALLOCATED_READS_ZERO
    ana_group: int = 0


def identify_namespace(identity: NamespaceIdentity) -> bytes:
    """Identify Namespace (CNS 00h): 4096 bytes for shared blocks of 4096 bytes that read zero when deallocated."""
    return bytes(
        NAMESPACE_FORMAT.build(
            {
                "size_blocks": identity.blocks,
                "capacity_blocks": identity.blocks,
                "used_blocks": identity.used_blocks,
                "features": 0,
                "sharing": 0x01,
                "reservations": identity.reservations,
                "deallocate": identity.deallocate,
                "capacity_bytes": identity.blocks * BLOCK_BYTES,
                "ana_group": identity.ana_group,
                "nguid": identity.uuid.bytes,
            }
        )
    )


def inactive_namespace() -> bytes:
    """Identify Namespace of a namespace id that isn't active: all zero."""
    return bytes(IDENTIFY_BYTES)


def active_namespaces(nsids: Iterable[int], after: int) -> bytes:
    """Active Namespace ID list (CNS 02h): up to 1024 ids greater than `after`, ascending, zero filled."""
    chosen = nsmallest(ACTIVE_NAMESPACES_MAX, (nsid for nsid in nsids if nsid > after))
    return b"".join(nsid.to_bytes(4, "little") for nsid in chosen).ljust(IDENTIFY_BYTES, b"\0")


def namespace_descriptors(uuid: UUID) -> bytes:
    """Namespace Identification Descriptor list (CNS 03h): NGUID, UUID and the NVM command set."""
    nguid = bytes((2, 16, 0, 0)) + uuid.bytes
    identifier = bytes((3, 16, 0, 0)) + uuid.bytes
    command_set = bytes((4, 1, 0, 0, 0))
    return (nguid + identifier + command_set).ljust(IDENTIFY_BYTES, b"\0")


NVM_CONTROLLER_FORMAT = Struct(
    "verify_log2_pages" / Int8ul,
    "write_zeroes_log2_pages" / Int8ul,
    "write_uncorrectable_log2_pages" / Int8ul,
    "dataset_ranges_max" / Int8ul,
    "dataset_range_blocks_max" / Int32ul,
    "dataset_blocks_max" / Int64ul,
    Padding(4096 - 16),
)
"""I/O Command Set specific Identify Controller of the NVM command set (NVM Command Set 1.0, figure 101)."""


def nvm_identify_controller(verify_bytes_max: int, ranges_max: int) -> bytes:
    """Identify Controller (CNS 06h) of the NVM command set; a power of two times 4096, and ranges (0: 256)."""
    return bytes(
        NVM_CONTROLLER_FORMAT.build(
            {
                "verify_log2_pages": (verify_bytes_max // BLOCK_BYTES).bit_length() - 1,
                "write_zeroes_log2_pages": 0,
                "write_uncorrectable_log2_pages": 0,
                "dataset_ranges_max": ranges_max,
                "dataset_range_blocks_max": 0,
                "dataset_blocks_max": 0,
            }
        )
    )


INDEPENDENT_NAMESPACE_FORMAT = Struct(
    "features" / Int8ul,
    "sharing" / Int8ul,
    "reservations" / Int8ul,
    "format_progress" / Const(0, Int8ul),
    "ana_group" / Int32ul,
    "attributes" / Const(0, Int8ul),
    Padding(1),
    "nvm_set" / Const(0, Int16ul),
    "endurance_group" / Const(0, Int16ul),
    "state" / Const(1, Int8ul),  # ready
    Padding(4096 - 15),
)
"""I/O Command Set Independent Identify Namespace (Base 2.0, figure 280)."""


def independent_namespace(reservations: int, ana_group: int) -> bytes:
    """Identify Namespace (CNS 08h) of a shared namespace that is ready."""
    return bytes(
        INDEPENDENT_NAMESPACE_FORMAT.build(
            {"features": 0, "sharing": 0x01, "reservations": reservations, "ana_group": ana_group}
        )
    )


def controller_list(ids: Iterable[int], first: int) -> bytes:
    """Controller list (CNS 12h, 13h): up to 2047 ids from `first` on, ascending."""
    chosen = sorted(number for number in ids if number >= first)[:CONTROLLER_LIST_MAX]
    numbers = (len(chosen), *chosen)
    return b"".join(number.to_bytes(2, "little") for number in numbers).ljust(IDENTIFY_BYTES, b"\0")
