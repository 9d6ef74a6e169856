"""Reaching U-Boot's prompt: from the countdown of a start, from the prompt, or out of what was left half-done."""

import re
from typing import Final

from sled_board.board import UBoot
from sled_board.errors import BoardSilent
from sled_board.uboot.dialogue import Dialogue, shown

PROBE: Final = b"\x18\x18\x18\x03"
"""Three CAN end a YMODEM transfer (as Ctrl-X they clear a half-typed line), Ctrl-C asks for a prompt."""
PROBE_EVERY_S: Final = 2.5
"""U-Boot gives up half a block after 2 s without a byte: a probe that comes sooner would only be taken for the rest."""
KEY_EVERY_S: Final = 0.3
SETTLE_S: Final = 0.15
"""For so long nothing may follow a prompt: then it was one, and no part of some output."""
SEEN_BYTES_MAX: Final = 1 << 16


def ends_with_prompt(seen: bytes | bytearray, prompt: bytes) -> bool:
    """Whether what was seen ends with a prompt at the beginning of a line: `==> ` of `crc32` is none."""
    start = len(seen) - len(prompt)
    return seen.endswith(prompt) and (start == 0 or seen[start - 1] in b"\r\n")


class ReachPrompt(Dialogue):
    """Until U-Boot waits at its prompt. `probing` asks for it again and again; else only a start is waited for.

    Raises BoardSilent after `patience_s`.
    """

    def __init__(self, uboot: UBoot, *, probing: bool, patience_s: float) -> None:
        super().__init__()
        self._prompt = uboot.prompt.encode()
        self._autoboot = re.compile(re.escape(uboot.autoboot.encode()))
        self._key = uboot.autoboot_key.encode()
        self._probing = probing
        self._patience_s = patience_s
        self._give_up_s = 0.0
        self._sent = bytearray()
        self._quiet = False
        """A prompt stands at the end, and nothing followed so far."""
        self._counting = False

    def start(self, now_s: float) -> bytes:
        self._give_up_s = now_s + self._patience_s
        return self._ask(now_s)

    def receive(self, data: bytes, now_s: float) -> bytes:
        self.seen += data
        del self.seen[:-SEEN_BYTES_MAX]
        self._quiet = ends_with_prompt(self.seen, self._prompt)
        if self._quiet:
            self._counting = False
            self.deadline_s = now_s + SETTLE_S
        elif (found := self._autoboot.search(self.seen)) and b"\n" not in self.seen[found.end() :]:
            if not self._counting:
                self._counting = True
                self.deadline_s = now_s + KEY_EVERY_S
                return self._send(self._key)
        else:
            self._counting = False
        return b""

    def expire(self, now_s: float) -> bytes:
        if self._quiet:
            self.done = True
            return b""
        if now_s >= self._give_up_s:
            raise BoardSilent(self._reason())
        if self._counting:
            self.deadline_s = now_s + KEY_EVERY_S
            return self._send(self._key)
        return self._ask(now_s)

    def _ask(self, now_s: float) -> bytes:
        self.deadline_s = min(now_s + PROBE_EVERY_S, self._give_up_s)
        return self._send(PROBE) if self._probing else b""

    def _send(self, data: bytes) -> bytes:
        self._sent += data
        return data

    def _reason(self) -> str:
        prompt = self._prompt.decode()
        what = f"no prompt {prompt!r} within {self._patience_s:g} s: "
        if not self.seen:
            hint = "is the board on, are RX and TX crossed, and is it this port?"
            return what + f"{shown(self.seen)}; {hint}" + ("" if self._probing else " It must be powered on now.")
        if self._sent.startswith(self.seen):
            return what + f"only what was sent came back, {shown(self.seen)}: the line is looped, or its far end is off"
        if sum(byte >= 0x80 or byte == 0 for byte in self.seen) * 4 > len(self.seen):
            return what + f"{shown(self.seen)}; that is noise: try another --baud"
        return what + f"{shown(self.seen)}; if another system runs, power-cycle the board with --before wait"
