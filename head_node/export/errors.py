"""What can go wrong between a client and a volume, and what the caller can do about it."""


class ExportError(Exception):
    """The root of this package's errors."""


class ExportUnavailable(ExportError):
    """The volume exists but nobody serves it right now (takeover under way, primary unreachable). Try again later."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"export {name!r} is not being served: {reason}")
        self.name = name
        self.reason = reason


class NbdProtocolError(ExportError):
    """The peer sent bytes that are not NBD. The connection cannot be trusted any more: end it."""


class NbdNegotiationFailed(ExportError):
    """The server refused the export. `reply` is the NBD_REP_ERR_* number (0 when there was none)."""

    def __init__(self, message: str, reply: int = 0) -> None:
        super().__init__(message)
        self.reply = reply


class NbdDisconnected(ExportError):
    """The connection ended with this request unanswered: whether it took effect is unknown."""


class NbdReconnectTimeout(NbdDisconnected):
    """No server of the list took the client back in time. The request's fate is unknown."""


class NbdCommandFailed(ExportError):
    """The server answered a command with an error number (`error`, as in the NBD specification)."""

    def __init__(self, command: str, error: int, message: str = "") -> None:
        super().__init__(f"{command} failed: error {error}" + (f" ({message})" if message else ""))
        self.command = command
        self.error = error


class RelayError(ExportError):
    """The other head broke the relay's framing, or fell silent. Both halves of the connection are reset."""
