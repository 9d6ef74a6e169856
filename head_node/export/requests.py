"""Which NBD requests can be done: flags, alignment, bounds. Everything but well-formed reads and writes comes here."""

from dataclasses import dataclass
from typing import Final

from head_node.export import nbd_protocol as nbd
from head_node.export.nbd_protocol import Command, CommandFlag, NbdError

_BLOCK_MASK: Final = nbd.BLOCK_BYTES_MIN - 1

_ALLOWED_FLAGS: Final[dict[int, int]] = {
    Command.READ: CommandFlag.DF | CommandFlag.FUA,
    Command.WRITE: CommandFlag.FUA,
    Command.DISC: CommandFlag.FUA,
    Command.FLUSH: CommandFlag.FUA,
    Command.TRIM: CommandFlag.FUA,
    Command.CACHE: CommandFlag.FUA,
    Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    Command.BLOCK_STATUS: CommandFlag.REQ_ONE | CommandFlag.FUA,
}
"""FUA is tolerated on every command (specification, "Command flags"); nothing hangs on it: all is durable when done."""

_HINTS: Final = (Command.TRIM, Command.CACHE)
"""What may be done in part or not at all, so that no alignment is asked for."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client has agreed on, and how large the export is."""

    size_bytes: int
    structured: bool
    allocation: bool


def judge(terms: Terms, flags: int, command: int, offset: int, length: int) -> tuple[int, str]:
    """Error number and text for a request that cannot be done, (0, "") for one that can."""
    allowed = _ALLOWED_FLAGS.get(command)
    if allowed is None:
        return NbdError.EINVAL, f"unknown command {command}"
    if flags & ~int(allowed):  # the complement of an IntFlag knows no foreign bits
        return NbdError.EINVAL, f"flags {flags:#x} do not go with command {command}"
    if flags & CommandFlag.DF and not terms.structured:
        return NbdError.EINVAL, "DF needs structured replies"
    if command == Command.FLUSH:
        return 0, ""
    if command in (Command.READ, Command.WRITE) and length > nbd.PAYLOAD_BYTES_MAX:
        return NbdError.EOVERFLOW, f"{length} bytes, at most {nbd.PAYLOAD_BYTES_MAX} in one request"
    if (offset | length) & _BLOCK_MASK and command not in _HINTS:
        return NbdError.EINVAL, f"offset {offset} and length {length} must be multiples of {nbd.BLOCK_BYTES_MIN}"
    if offset + length > terms.size_bytes:
        grows = command in (Command.WRITE, Command.WRITE_ZEROES)
        return (NbdError.ENOSPC if grows else NbdError.EINVAL), f"the export ends at {terms.size_bytes}"
    if command == Command.BLOCK_STATUS:
        if not terms.allocation:
            return NbdError.EINVAL, f"{nbd.META_CONTEXT_ALLOCATION} was not negotiated"
        if not length:
            return NbdError.EINVAL, "a block status of nothing"
    return 0, ""


def whole_blocks(offset: int, length: int) -> tuple[int, int]:
    """The offset and length of the blocks that lie in a range as a whole."""
    start, end = (offset + _BLOCK_MASK) & ~_BLOCK_MASK, (offset + length) & ~_BLOCK_MASK
    return (start, end - start) if start < end else (offset, 0)
