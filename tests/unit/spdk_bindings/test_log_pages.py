"""Log pages as stock tools read them."""

from spdk_bindings import log_pages
from spdk_bindings.emulator import MemoryDevice


def test_the_error_log_has_room_for_64_entries_newest_first() -> None:
    entries = [log_pages.ErrorEntry(count, 1, 2, 0x4005, lba=99, nsid=3) for count in range(100, 0, -1)]
    page = log_pages.error_log(entries)
    assert len(page) == 64 * 64
    assert int.from_bytes(page[:8], "little") == 100
    assert int.from_bytes(page[12:14], "little") == 0x4005
    assert int.from_bytes(page[16:24], "little") == 99
    assert int.from_bytes(page[64:72], "little") == 99


def test_smart_sums_counters_and_shows_the_worst_gauge() -> None:
    good = MemoryDevice(8).smart() | {"host_write_commands": 3}
    bad = MemoryDevice(8).smart() | {"available_spare_percent": 7, "critical_warning": 1, "host_write_commands": 4}
    page = log_pages.smart_log([good, bad])
    assert len(page) == 512
    assert page[0] == 1
    assert page[3] == 7
    assert int.from_bytes(page[80:96], "little") == 7


def test_smart_without_devices_says_unreliable() -> None:
    assert log_pages.smart_log([])[0] == 0x04


def test_the_firmware_log_shows_slots() -> None:
    page = log_pages.firmware_log(2, {1: "0.1.0", 2: "0.2.0"})
    assert len(page) == 512
    assert page[0] == 2
    assert page[8:24] == b"0.1.0   0.2.0   "
    assert page[24:32] == bytes(8)


def test_effects_mark_what_is_supported() -> None:
    page = log_pages.effects_log({0x06: log_pages.EFFECTS_SUPPORTED}, {0x81: log_pages.EFFECTS_SUPPORTED | 2})
    assert len(page) == 4096
    assert page[4 * 6] == 1
    assert page[1024 + 4 * 0x81] == 3
    assert sum(page) == 4


def test_the_reservation_report_lists_the_controllers_of_registrants() -> None:
    entries = [
        log_pages.RegisteredController(9, b"HhHhHhHh" + b"A" * 8, 0x0102030405060708, True),
        log_pages.RegisteredController(0xFFFF, b"B" * 16, 7, False),
    ]
    short = log_pages.reservation_report(5, 3, False, entries, extended=False)
    assert short[:24] == bytes.fromhex("05000000 03 0200 0000 00") + bytes(14)
    assert short[24:48] == bytes.fromhex("0900 01 0000000000") + b"HhHhHhHh" + bytes.fromhex("0807060504030201")
    assert len(short) == 72
    extended = log_pages.reservation_report(5, 3, True, entries, extended=True)
    assert extended[:64] == bytes.fromhex("05000000 03 0200 0000 01") + bytes(54)
    assert extended[64:96] == bytes.fromhex("0900 01 0000000000 0807060504030201") + b"HhHhHhHh" + b"A" * 8
    assert extended[128:160] == bytes.fromhex("ffff 00 0000000000 0700000000000000") + b"B" * 16
    assert len(extended) == 192


def test_a_reservation_notice_is_64_bytes() -> None:
    page = log_pages.reservation_notice(0x0102, 3, 300, 1)
    assert page == bytes.fromhex("0201000000000000 03 ff 0000 01000000") + bytes(48)


def test_discovery_lists_tcp_subsystems() -> None:
    row = log_pages.discovery_row(1, log_pages.DiscoveryEntry("nqn.x", "127.0.0.1", 4420))
    page = log_pages.discovery_log(3, [row])
    assert len(page) == 2048
    assert int.from_bytes(page[8:16], "little") == 1
    entry = page[1024:]
    assert entry[:3] == bytes((3, 1, 2))
    assert entry[32:36] == b"4420"
    assert entry[256:262] == b"nqn.x\0"
    assert entry[512:521] == b"127.0.0.1"
