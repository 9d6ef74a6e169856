"""A device with a time limit per command: one that does not answer is reset, and given up when that does not help.

A command that is overdue may still take effect, so it is not answered before the device was reset (F3). Its status then
says that it was interrupted: another path or another shard may do. The other devices of the sled never wait for it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from spdk_bindings.device import PENDING, Buffer, Device, Done
from spdk_bindings.nvme import Status, status_name

log = logging.getLogger(__name__)

COMMAND_SECONDS_MAX: Final = 5.0
"""As long as a drain waits: a healthy drive that collects its garbage has answered by then."""
RESET_SECONDS_MAX: Final = 5.0
RESETS_MAX: Final = 3
RESETS_WITHIN_SECONDS: Final = 600.0
"""A device that needs so many resets in so short a time is unresponsive: each of them costs seconds of its volumes."""
LATE_SECONDS: Final = 0.5
"""A timer that fires so much later says that this process was stopped, not the device."""

_ABORTED: Final = int(Status.ABORT_REQUESTED)
_INTERRUPTED: Final = int(Status.COMMAND_INTERRUPTED)


class _Command:
    """A command that the device has not completed. Used again and again."""

    __slots__ = ("callback", "device", "done", "since_s")

    def __init__(self, device: "TimedDevice") -> None:
        self.device = device
        self.since_s = 0.0
        self.done: Done | None = None
        self.callback: Done = self._completed

    def _completed(self, status: int) -> None:
        done, self.done = self.done, None
        assert done is not None, "a device completes a command once"
        self.device.completed(self)
        done(_INTERRUPTED if status == _ABORTED and self.device.resetting else status)


class TimedDevice:
    """Passes every command on. `on_unresponsive(device, reason)` is called when resets do not help: take it offline."""

    def __init__(self, device: Device, seconds_max: float = COMMAND_SECONDS_MAX) -> None:
        """Made within a running loop; `close` closes `device`."""
        self.device = device
        self.block_count = device.block_count
        self.serial = device.serial
        self.model = device.model
        self.allocate = device.allocate
        self.smart = device.smart
        self.on_unresponsive: Callable[[TimedDevice, str], None] = lambda device, reason: None
        self.resetting = False
        self.reset_count = 0
        """Resets because of a command that was not answered."""
        self._seconds_max = seconds_max
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Command] = []
        self._outstanding: dict[_Command, None] = {}
        """Oldest first."""
        self._present_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._resets_s: deque[float] = deque()
        self._given_up = False

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        command = self._take(done)
        return self._given(command, self.device.read(lba, into, command.callback))

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        command = self._take(done)
        return self._given(command, self.device.write(lba, data, fua, command.callback))

    def flush(self, done: Done) -> int:
        command = self._take(done)
        return self._given(command, self.device.flush(command.callback))

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        command = self._take(done)
        return self._given(command, self.device.write_zeroes(lba, count, fua, command.callback))

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        command = self._take(done)
        return self._given(command, self.device.deallocate(lba, count, command.callback))

    def reset(self, done: Done) -> int:
        return self.device.reset(done)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.device.close()

    def completed(self, command: _Command) -> None:
        """The device has answered."""
        del self._outstanding[command]
        self._idle.append(command)

    def _take(self, done: Done) -> _Command:
        command = self._idle.pop() if self._idle else _Command(self)
        command.done = done
        return command

    def _given(self, command: _Command, status: int) -> int:
        if status != PENDING:
            self._idle.append(command)
            return status
        command.since_s = self._loop.time()
        self._outstanding[command] = None
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds_max, self._look)
        return status

    def _look(self) -> None:
        timer, self._timer = self._timer, None
        oldest = next(iter(self._outstanding), None)
        if oldest is None or self._given_up:
            return
        now_s = self._loop.time()
        if timer is not None and now_s > timer.when() + LATE_SECONDS:
            self._present_s = now_s
        due_s = max(oldest.since_s, self._present_s) + self._seconds_max
        if now_s < due_s:
            self._timer = self._loop.call_at(due_s, self._look)
            return
        self._begin_reset(now_s)

    def _begin_reset(self, now_s: float) -> None:
        resets_s = self._resets_s
        resets_s.append(now_s)
        if resets_s[0] < now_s - RESETS_WITHIN_SECONDS:
            resets_s.popleft()
        log.error("event=device_hangs serial=%s outstanding=%d", self.serial, len(self._outstanding))
        if len(resets_s) > RESETS_MAX:
            self._give_up(f"unresponsive: {len(resets_s)} times within {RESETS_WITHIN_SECONDS:.0f} s")
            return
        self.reset_count += 1
        self.resetting = True
        self._timer = self._loop.call_later(RESET_SECONDS_MAX, self._give_up, "unresponsive: a reset does not end")
        status = self.device.reset(self._was_reset)
        if status != PENDING:
            self._was_reset(status)

    def _was_reset(self, status: int) -> None:
        if self._given_up:
            return
        assert self._timer is not None
        self._timer.cancel()
        self._timer, self.resetting = None, False
        if status:
            self._give_up(f"unresponsive: a reset failed with {status_name(status)}")
        elif self._outstanding:
            # What was begun since, or a command that the reset should have ended and did not.
            self._timer = self._loop.call_later(self._seconds_max, self._look)

    def _give_up(self, reason: str) -> None:
        self._timer, self._given_up = None, True
        self.on_unresponsive(self, reason)
