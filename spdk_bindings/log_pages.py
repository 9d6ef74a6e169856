"""Log pages and the reservation report, as stock tools read them (NVM Express Base 2.0, 5.16 and 7.5)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import islice
from typing import Final

from construct import Array, Bytes, Default, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from spdk_bindings.identify import U128, ascii_field

ERROR_ENTRIES_MAX: Final = 64
ERROR_ENTRY_BYTES: Final = 64
FIRMWARE_SLOTS: Final = 7
_REQUIREMENTS: Final = 0x04
"""TREQ of discovery records: flow control of submission queues can be disabled; a secure channel is "not specified", as
nvme-cli 2.3 connects to nothing that says "not required"."""
WARNING_DEGRADED: Final = 1 << 2  # critical warning: the subsystem's reliability is degraded
EFFECTS_SUPPORTED: Final = 1 << 0
EFFECTS_CHANGES_CONTENT: Final = 1 << 1
EFFECTS_CHANGES_INVENTORY: Final = 1 << 3

ERROR_FORMAT = Struct(
    "count" / Int64ul,
    "queue_id" / Int16ul,
    "cid" / Int16ul,
    "status" / Int16ul,
    "parameter" / Int16ul,
    "lba" / Int64ul,
    "nsid" / Int32ul,
    "vendor_page" / Default(Int8ul, 0),
    "transport" / Default(Int8ul, 3),
    Padding(2),
    "specific" / Int64ul,
    Padding(24),
)
"""One entry of the Error Information log (figure 204); transport 3 is TCP."""

SMART_FORMAT = Struct(
    "critical_warning" / Int8ul,
    "composite_temperature_kelvin" / Int16ul,
    "available_spare_percent" / Int8ul,
    "available_spare_threshold_percent" / Int8ul,
    "percentage_used" / Int8ul,
    Padding(26),
    "data_units_read" / U128,
    "data_units_written" / U128,
    "host_read_commands" / U128,
    "host_write_commands" / U128,
    "controller_busy_minutes" / U128,
    "power_cycles" / U128,
    "power_on_hours" / U128,
    "unsafe_shutdowns" / U128,
    "media_errors" / U128,
    "error_log_entries" / U128,
    Padding(512 - 192),
)
"""SMART / Health Information (figure 207). A data unit is 1000 times 512 bytes, rounded up."""

FIRMWARE_FORMAT = Struct("active" / Int8ul, Padding(7), "revisions" / Array(FIRMWARE_SLOTS, Bytes(8)), Padding(448))
"""Firmware Slot Information (figure 209): active slot in bits 2:0, next in 6:4."""

REPORT_HEADER_FORMAT = Struct(
    "generation" / Int32ul,
    "type" / Int8ul,
    "registered" / Int16ul,
    Padding(2),
    "persist" / Int8ul,
    Padding(14),
)
REPORT_ENTRY_FORMAT = Struct(
    "controller_id" / Int16ul, "status" / Int8ul, Padding(5), "host_id" / Bytes(8), "key" / Int64ul
)
REPORT_ENTRY_EXTENDED_FORMAT = Struct(
    "controller_id" / Int16ul, "status" / Int8ul, Padding(5), "key" / Int64ul, "host_id" / Bytes(16), Padding(32)
)

RESERVATION_NOTICE_FORMAT = Struct(
    "count" / Int64ul, "kind" / Int8ul, "further" / Int8ul, Padding(2), "nsid" / Int32ul, Padding(48)
)
"""Reservation Notification log (Base 2.0, 5.16.1.20)."""

DISCOVERY_HEADER_FORMAT = Struct("generation" / Int64ul, "records" / Int64ul, "format" / Int16ul, Padding(1024 - 18))
DISCOVERY_ENTRY_FORMAT = Struct(
    "transport" / Int8ul,
    "family" / Int8ul,
    "subtype" / Int8ul,
    "requirements" / Int8ul,
    "port_id" / Int16ul,
    "controller_id" / Int16ul,
    "admin_queue_entries" / Int16ul,
    "flags" / Int16ul,
    Padding(20),
    "service" / Bytes(32),
    Padding(192),
    "nqn" / Bytes(256),
    "address" / Bytes(256),
    "security" / Bytes(256),
)


ANA_HEADER_FORMAT = Struct("change_count" / Int64ul, "groups" / Int16ul, Padding(6))
ANA_GROUP_FORMAT = Struct(
    "group" / Int32ul,
    "namespaces" / Int32ul,
    "change_count" / Int64ul,
    "state" / Int8ul,
    Padding(15),
    "nsids" / Array(lambda context: context.namespaces, Int32ul),
)
"""Asymmetric Namespace Access log (Base 2.0, 5.16.1.13, figures 218 to 220)."""


class AnaState(IntEnum):
    """How well a controller reaches the namespaces of a group (Base 2.0, 8.1.1)."""

    OPTIMIZED = 0x01
    NON_OPTIMIZED = 0x02
    INACCESSIBLE = 0x03
    PERSISTENT_LOSS = 0x04
    CHANGE = 0x0F


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One failed command; `status` is the CQE's 16-bit field, `count` grows by one per error of the controller."""

    count: int
    queue_id: int
    cid: int
    status: int
    lba: int = 0
    nsid: int = 0
    parameter: int = 0xFFFF
    specific: int = 0


def error_log(newest_first: Iterable[ErrorEntry]) -> bytes:
    """The Error Information log (01h), at most 64 entries."""
    return b"".join(
        ERROR_FORMAT.build(
            {
                "count": entry.count,
                "queue_id": entry.queue_id,
                "cid": entry.cid,
                "status": entry.status,
                "parameter": entry.parameter,
                "lba": entry.lba,
                "nsid": entry.nsid,
                "specific": entry.specific,
            }
        )
        for entry in islice(newest_first, ERROR_ENTRIES_MAX)
    ).ljust(ERROR_ENTRY_BYTES * ERROR_ENTRIES_MAX, b"\0")


def data_units(count_bytes: int) -> int:
    """Bytes in units of 1000 times 512 bytes, rounded up."""
    return -(-count_bytes // 512_000)


def smart_log(devices: Iterable[Mapping[str, int]], *, lost: int = 0, error_log_entries: int = 0) -> bytes:
    """The SMART log (02h) of a sled: work summed over its devices, gauges and lifetimes by the worst of them.

    Each mapping is what `Device.smart` returns. Without devices, or with some `lost`, the log says that the sled is
    degraded. `error_log_entries` are those of the controller that is asked.
    """
    values = list(devices)
    worst = {
        "critical_warning": WARNING_DEGRADED if lost or not values else 0,
        "composite_temperature_kelvin": max((value["composite_temperature_kelvin"] for value in values), default=0),
        "available_spare_percent": min((value["available_spare_percent"] for value in values), default=0),
        "available_spare_threshold_percent": max(
            (value["available_spare_threshold_percent"] for value in values), default=0
        ),
        "percentage_used": max((value["percentage_used"] for value in values), default=0),
    }
    for value in values:
        worst["critical_warning"] |= value["critical_warning"]
    work = ("data_units_read", "data_units_written", "host_read_commands", "host_write_commands", "media_errors")
    lifetimes = ("controller_busy_minutes", "power_cycles", "power_on_hours", "unsafe_shutdowns")
    return bytes(
        SMART_FORMAT.build(
            worst
            | {name: sum(value[name] for value in values) for name in work}
            | {name: max((value[name] for value in values), default=0) for name in lifetimes}
            | {"error_log_entries": error_log_entries}
        )
    )


def firmware_log(active_slot: int, revisions: Mapping[int, str]) -> bytes:
    """The Firmware Slot log (03h): `revisions` by slot 1..7, up to 8 ASCII characters each; empty slots are zero."""
    slots = [
        ascii_field(revisions[slot], 8) if slot in revisions else bytes(8) for slot in range(1, FIRMWARE_SLOTS + 1)
    ]
    return bytes(FIRMWARE_FORMAT.build({"active": active_slot, "revisions": slots}))


def effects_log(admin: Mapping[int, int], io: Mapping[int, int]) -> bytes:
    """The Commands Supported and Effects log (05h) from opcode -> `EFFECTS_*` bits; unnamed is unsupported."""
    words = [admin.get(opcode, 0) for opcode in range(256)] + [io.get(opcode, 0) for opcode in range(256)]
    return b"".join(word.to_bytes(4, "little") for word in words).ljust(4096, b"\0")


def ana_log(change_count: int, group: int, state: AnaState, nsids: Sequence[int]) -> bytes:
    """The ANA log (0Ch) of one group; without `nsids` it is what is asked for by RGO."""
    header = ANA_HEADER_FORMAT.build({"change_count": change_count, "groups": 1})
    fields = {"group": group, "namespaces": len(nsids), "change_count": change_count, "state": state, "nsids": nsids}
    return bytes(header + ANA_GROUP_FORMAT.build(fields))


def supported_log(pages: Iterable[int]) -> bytes:
    """The Supported Log Pages log (00h): bit 0 of each page's word."""
    named = set(pages)
    return b"".join(int(page in named).to_bytes(4, "little") for page in range(256))


@dataclass(frozen=True, slots=True)
class RegisteredController:
    """A controller whose host is registered: `host_id` has 16 bytes, `key` 64 bits, `holds` the reservation or not."""

    controller_id: int
    host_id: bytes
    key: int
    holds: bool


def reservation_report(
    generation: int, kind: int, persist: bool, entries: Sequence[RegisteredController], *, extended: bool
) -> bytes:
    """Reservation Report: `generation` has 32 bits, `kind` is the type held or 0, `persist` is PTPLS.

    The short form has room for the first 8 bytes of a host identifier only.
    """
    header = REPORT_HEADER_FORMAT.build(
        {"generation": generation, "type": kind, "registered": len(entries), "persist": persist}
    )
    if extended:
        header = header.ljust(64, b"\0")
    form = REPORT_ENTRY_EXTENDED_FORMAT if extended else REPORT_ENTRY_FORMAT
    rows = [
        form.build(
            {
                "controller_id": entry.controller_id,
                "status": entry.holds,
                "host_id": entry.host_id if extended else entry.host_id[:8],
                "key": entry.key,
            }
        )
        for entry in entries
    ]
    return b"".join((header, *rows))


def reservation_notice(count: int, kind: int, further: int, nsid: int) -> bytes:
    """The Reservation Notification log (80h): notice number `count` (64 bits, from 1), `further` ones wait; all zero
    where there is none."""
    return bytes(
        RESERVATION_NOTICE_FORMAT.build({"count": count, "kind": kind, "further": min(further, 255), "nsid": nsid})
    )


DISCOVERY_ROWS_KEPT: Final = 4096  # of 1 KiB


@dataclass(frozen=True, slots=True)
class DiscoveryEntry:
    """A subsystem that can be connected to over TCP at `address`:`port`."""

    nqn: str
    address: str
    port: int
    ipv6: bool = False


@lru_cache(DISCOVERY_ROWS_KEPT)
def discovery_row(index: int, entry: DiscoveryEntry) -> bytes:
    """An entry as the Discovery log has it, with port id `index`. Kept: most are the same after a change."""
    return bytes(
        DISCOVERY_ENTRY_FORMAT.build(
            {
                "transport": 3,
                "family": 2 if entry.ipv6 else 1,
                "subtype": 2,
                "requirements": _REQUIREMENTS,
                "port_id": index,
                "controller_id": 0xFFFF,
                "admin_queue_entries": 32,
                "flags": 0,
                "service": ascii_field(str(entry.port), 32),
                "nqn": ascii_field(entry.nqn, 256, b"\0"),
                "address": ascii_field(entry.address, 256),
                "security": bytes(256),
            }
        )
    )


def discovery_log(generation: int, rows: Sequence[bytes]) -> bytes:
    """The Discovery log (70h; NVMe-oF 1.1, 5.4) of these `discovery_row`s: NVM subsystems over TCP without TLS."""
    header = DISCOVERY_HEADER_FORMAT.build({"generation": generation, "records": len(rows), "format": 0})
    return b"".join((header, *rows))
