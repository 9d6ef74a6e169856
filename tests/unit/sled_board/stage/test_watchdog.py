"""The hardware watchdog by Linux's interface, which a file and a played ioctl stand in for."""

import fcntl
from pathlib import Path

import pytest
from sled_board.stage.watchdog import Watchdog

CARD_RESET, POWER_UNDER = 0x20, 0x10


@pytest.mark.parametrize(
    ("status", "has_reset"), [(0, False), (CARD_RESET, True), (CARD_RESET | POWER_UNDER, True), (POWER_UNDER, False)]
)
def test_who_ended_the_last_run_is_in_the_boot_status(
    status: int, has_reset: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(fd: int, request: int, into: bytearray) -> int:
        assert request == (2 << 30 | 4 << 16 | ord("W") << 8 | 2)  # _IOR('W', 2, int) of linux/watchdog.h
        into[:] = status.to_bytes(4, "little")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    device = tmp_path / "watchdog"
    device.touch()
    assert Watchdog(device).has_reset_the_board is has_reset


def test_a_driver_that_does_not_know_has_not_reset_the_board(tmp_path: Path) -> None:
    device = tmp_path / "watchdog"
    device.touch()
    assert Watchdog(device).has_reset_the_board is False  # ENOTTY
    assert Watchdog(None).has_reset_the_board is False


def test_it_is_petted_and_let_go_of_for_good(tmp_path: Path) -> None:
    device = tmp_path / "watchdog"
    device.touch()
    watchdog = Watchdog(device)
    watchdog.pet()
    watchdog.pet()
    watchdog.close()
    watchdog.close()
    watchdog.pet()
    assert device.read_bytes() == b"\0\0V"
