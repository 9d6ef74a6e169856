"""What can go wrong with a rack and is expected to: `rackctl` prints it and ends with status 2."""

import re


class RackError(Exception):
    """Base of all expected failures; the text names the thing, the cause and the way out."""


class FileUnreadable(RackError):
    """A file that was named cannot be read, or is too long for what it should be."""


class RackNotFound(RackError):
    """There is no rack in the directory: start one with `rackctl up`, or name its directory with `--dir`."""


class RackExists(RackError):
    """The directory holds a rack already: use it, take it down, or choose another directory."""


class NodeUnknown(RackError):
    """No node of the rack has that name: `rackctl status` lists them."""


class NodeNotRunning(RackError):
    """The node's process is gone or never was: `rackctl node restart` starts it again."""


class NodeFailed(RackError):
    """A node ended, or was not ready in time; the text carries the end of its log."""


class ApiRefused(RackError):
    """The authority answered a request with a problem (RFC 9457); the text is its title and detail, `kind` the last
    part of its type."""

    def __init__(self, status: int, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.kind = kind


class ApiUnreachable(RackError):
    """The authority did not answer: is its process running?"""


class VolumeUnknown(RackError):
    """The rack has no volume of that name: `rackctl volume list` shows them."""


class WaitedTooLong(RackError):
    """Something that the rack should have done by itself has not happened in time."""


class SizeInvalid(RackError):
    """A size is not a whole number of 4096-byte blocks, or not a size at all."""


def reason_of(error: Exception) -> str:
    """An error's name for programs: `WrongHardware` as `wrong-hardware`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()
