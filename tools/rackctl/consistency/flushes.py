"""Whether what a flush or FUA promised was kept: no later read finds a block as it was before a flushed write.

A write is *flushed* once it was answered and then a flush that was sent after that answer was answered, or once it was
answered itself with FUA (NBD protocol, "Ordering of messages and writes"). Writes that were not answered, or not yet
when a flush was sent, may be lost. A volume that keeps every answered write keeps this too; the check tells a lost
flush from other faults, and holds for volumes that promise no more than this.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import inf

from rackctl.consistency.history import ZERO, Flush, History, Kind, Operation, Violation


def check(history: History) -> None:
    """Check every block. Raises Violation."""
    answered = sorted((flush for flush in history.flushes if flush.returned_ns is not None), key=_invoked)
    sent = [flush.invoked_ns for flush in answered]
    # soonest[i]: when the first of the flushes from i on was answered.
    soonest = list(accumulate((_returned(flush) for flush in reversed(answered)), min))[::-1]

    def flushed(write: Operation) -> float:
        if write.fua or write.returned_ns is None:
            return _returned(write)
        at = bisect_right(sent, write.returned_ns)
        return soonest[at] if at < len(sent) else inf

    for lba, operations in sorted(history.blocks.items()):
        _check_block(lba, operations, [(flushed(op), op) for op in operations if op.kind is Kind.WRITE])


def _check_block(lba: int, operations: Sequence[Operation], writes: list[tuple[float, Operation]]) -> None:
    """`writes` with the time from which each is flushed."""
    kept = sorted((entry for entry in writes if entry[0] < inf), key=lambda entry: entry[0])
    times = [at for at, _ in kept]
    # newest[i]: of the first i + 1 flushed writes the one that was sent last.
    newest = list(accumulate((write for _, write in kept), _later))
    over: dict[int, float] = {ZERO: -inf}
    """By value, when the last write of it was answered."""
    for _, write in writes:
        over[write.value] = max(over.get(write.value, -inf), _returned(write))
    for read in operations:
        if read.kind is not Kind.READ:
            continue
        count = bisect_left(times, read.invoked_ns)
        if count and over.get(read.value, inf) < newest[count - 1].invoked_ns:
            raise Violation(f"block {lba}: a flushed write is lost: {newest[count - 1]}; then {read}")


def _later(one: Operation, other: Operation) -> Operation:
    return max(one, other, key=_invoked)


def _invoked(operation: Operation | Flush) -> int:
    return operation.invoked_ns


def _returned(operation: Operation | Flush) -> float:
    return inf if operation.returned_ns is None else operation.returned_ns
