"""When a silent sled counts as gone; pure, time comes in as arguments (seconds of the loop's clock)."""


class Liveness:
    """Judged at ticks: no byte for `silence_s`, or a command unanswered for `command_s`.

    A tick that comes late says that *we* were away (suspended, starved): what the sled sent meanwhile is still in the
    socket, so silence is measured anew from then.
    """

    def __init__(self, silence_s: float, command_s: float) -> None:
        self.silence_s = silence_s
        self.command_s = command_s
        self._present_s = 0.0
        self._last_tick_s = 0.0

    def start(self, now_s: float) -> None:
        """From here on ticks come, several per `silence_s`."""
        self._present_s = self._last_tick_s = now_s

    def judge(self, now_s: float, heard_s: float, *oldest_s: float | None) -> str:
        """Why the sled counts as gone, or an empty string. `oldest_s` are submission times, one per queue."""
        if now_s - self._last_tick_s > self.silence_s / 2:
            self._present_s = now_s
        self._last_tick_s = now_s
        silent_s = now_s - max(heard_s, self._present_s)
        if silent_s > self.silence_s:
            return f"silent for {silent_s:.1f} s"
        for since_s in oldest_s:
            if since_s is not None and now_s - max(since_s, self._present_s) > self.command_s:
                return f"a command is unanswered for {now_s - since_s:.1f} s"
        return ""
