"""Another rate of the line: `setenv baudrate`, after which U-Boot waits for a carriage return at the new one."""

from typing import Final

from sled_board.board import UBoot
from sled_board.errors import BoardSilent
from sled_board.uboot.command import Command
from sled_board.uboot.dialogue import shown

ASKS: Final = b"press ENTER"
ENTER_EVERY_S: Final = 0.3  # U-Boot changes its rate 50 ms after it has said so
ENTERS_MAX: Final = 10


class Rate(Command):
    """Ask for `baud`. When `due` is true the line must be set to it; what follows is spoken at the new rate.

    `due` stays false where the board speaks that rate already, and where it refuses it: see `status`.
    """

    def __init__(self, uboot: UBoot, rate: int, *, baud: int) -> None:
        super().__init__(uboot, f"setenv baudrate {rate}", baud=baud)
        self._enters = 0
        self.due = False

    def receive(self, data: bytes, now_s: float) -> bytes:
        out = super().receive(data, now_s)
        if self.running and not self.due and ASKS in self.seen:
            self.due = True
            self.deadline_s = now_s + ENTER_EVERY_S
        return out

    def expire(self, now_s: float) -> bytes:
        if not self.due:
            return super().expire(now_s)
        self._enters += 1
        if self._enters > ENTERS_MAX:
            raise BoardSilent(
                f"`{self.text}`: the board is not heard at that rate: {shown(self.seen)}; power-cycle it, and give"
                " another one with --rate"
            )
        self.deadline_s = now_s + ENTER_EVERY_S
        return b"\r"
