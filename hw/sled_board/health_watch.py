"""Listening to a board that starts: what its stage says of the firmware on the console (docs/firmware-slots.md)."""

import re
from typing import Final

from sled_board.errors import BoardSilent, FirmwareUnhealthy
from sled_board.flash_events import Reported
from sled_board.slots import Slot
from sled_board.uboot.dialogue import Dialogue, shown

STAGE: Final = re.compile(r"stage: event=(\w+)((?: \w+=[!-~]+)*)")
LINE_BYTES_MAX: Final = 4096
_SLOTS: Final = tuple(slot.value for slot in Slot)


class HealthWatch(Dialogue):
    """Until the stage says that the image `image_id` is healthy; `slot` is then where it runs. `take` gives its lines.

    Raises FirmwareUnhealthy once the board has given the image up, and BoardSilent after `patience_s`.
    """

    def __init__(self, image_id: str, *, patience_s: float) -> None:
        super().__init__()
        self._image_id = image_id
        self._patience_s = patience_s
        self._line = bytearray()
        self._reports: list[Reported] = []
        self._started = False
        self.slot = Slot.A

    def take(self) -> list[Reported]:
        """What the stage has said since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def start(self, now_s: float) -> bytes:
        self.deadline_s = now_s + self._patience_s
        return b""

    def receive(self, data: bytes, now_s: float) -> bytes:
        self.seen += data
        del self.seen[:-LINE_BYTES_MAX]
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest[-LINE_BYTES_MAX:])
        for line in lines:
            if not self.done:
                self._read(line.decode("ascii", "replace").strip())
        return b""

    def expire(self, now_s: float) -> bytes:
        raise BoardSilent(f"no report of the firmware's health within {self._patience_s:g} s; {shown(self.seen)}")

    def _read(self, line: str) -> None:
        found = STAGE.search(line)
        if found is None:
            return
        fields = tuple((key, value) for key, _, value in (word.partition("=") for word in found[2].split()))
        self._reports.append(Reported(found[1], fields))
        self._judge(found[1], dict(fields), line)

    def _judge(self, event: str, fields: dict[str, str], line: str) -> None:
        ours = fields.get("image") == self._image_id
        if event == "healthy" and ours and fields.get("slot") in _SLOTS:
            self.slot = Slot(fields["slot"])
            self.done = True
        elif event == "recovery":
            raise FirmwareUnhealthy(f"the board has nothing left to start and waits for help: {line}")
        elif event == "unhealthy" and ours:
            raise FirmwareUnhealthy(f"the firmware failed its health checks and the board goes back: {line}")
        elif event == "starting":
            if not ours:
                what = "gave the new firmware up and started" if self._started else "did not start it but"
                raise FirmwareUnhealthy(f"the board {what} another one: {line}")
            self._started = True
