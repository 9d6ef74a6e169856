"""Whether the history of each block could have come from a block that does one operation at a time.

Two checkers of single registers. `check_zones` takes histories in which no two writes write the same value, in
O(n log n) (P. Gibbons and E. Korach, "Testing Shared Memories", SIAM J. Comput. 26, 1997). `check_search` takes any: it
keeps every state that the block may be in while it goes through the history (G. Lowe, "Testing for linearizability",
2017), which costs exponentially in how many operations overlap, and linearly in how many there are.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from rackctl.consistency.history import ZERO, History, Kind, Operation, Violation

STATES_MAX: Final = 100_000
"""More than this many states of one block at once: the history is refused as too concurrent."""


def check(history: History) -> None:
    """Check every block. Raises Violation."""
    for lba, operations in sorted(history.blocks.items()):
        zeroed = any(operation.kind is Kind.WRITE and operation.value == ZERO for operation in operations)
        (check_search if zeroed else check_zones)(lba, operations)


def _returned(operation: Operation) -> float:
    return inf if operation.returned_ns is None else operation.returned_ns


def check_zones(lba: int, operations: Sequence[Operation]) -> None:
    """Check a block whose writes have distinct values, none of them ZERO. Raises Violation."""
    writes: dict[int, Operation] = {}
    reads: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind is Kind.WRITE:
            assert operation.value != ZERO
            assert operation.value not in writes, "a value is written once"
            writes[operation.value] = operation
        else:
            reads[operation.value].append(operation)
    zones: list[tuple[float, float, bool, int]] = []
    """(low, high, whether forward, value)"""
    for value in sorted({ZERO, *writes, *reads}):
        write = writes.get(value)
        if write is None and value != ZERO:
            raise Violation(f"a value from nowhere: {reads[value][0]}")
        if write is not None and write.returned_ns is None and not reads[value]:
            continue  # it need never have happened
        invoked, returned = (-inf, -inf) if write is None else (write.invoked_ns, _returned(write))
        for read in reads[value]:
            if _returned(read) < invoked:
                raise Violation(f"a value read before it was written: {read}; {write}")
        latest = max([invoked, *(read.invoked_ns for read in reads[value])])
        earliest = min([returned, *(_returned(read) for read in reads[value])])
        zones.append((min(earliest, latest), max(earliest, latest), earliest < latest, value))
    forward = sorted(zone for zone in zones if zone[2])
    for before, after in itertools.pairwise(forward):
        if after[0] < before[1]:
            raise _stale(lba, operations, before[3], after[3])
    _check_backward(lba, operations, forward, [zone for zone in zones if not zone[2]])


def _check_backward(
    lba: int,
    operations: Sequence[Operation],
    forward: Sequence[tuple[float, float, bool, int]],
    backward: Iterable[tuple[float, float, bool, int]],
) -> None:
    """No backward zone may lie within a forward one (which do not overlap, so one merge finds them)."""
    at = 0
    for low, high, _, value in sorted(backward):
        while at < len(forward) and forward[at][1] <= low:
            at += 1
        if at < len(forward) and forward[at][0] < low and high < forward[at][1]:
            raise _stale(lba, operations, forward[at][3], value)


def _stale(lba: int, operations: Sequence[Operation], one: int, other: int) -> Violation:
    told = sorted((op for op in operations if op.value in (one, other)), key=lambda op: op.invoked_ns)
    lines = "\n  ".join(map(str, told[:40]))
    return Violation(f"block {lba}: no order of values {one} and {other} explains\n  {lines}")


def check_search(lba: int, operations: Sequence[Operation]) -> None:
    """Check a block of any history. Raises Violation.

    A write of zeroes that stays open is taken to happen as often as it helps: that may excuse a wrong zero after it,
    never accuse a right one.
    """
    read_values = {operation.value for operation in operations if operation.kind is Kind.READ}
    events: list[tuple[float, int, int, Operation]] = []
    for number, operation in enumerate(operations):
        if operation.returned_ns is None and operation.value not in read_values:
            continue
        events.append((operation.invoked_ns, 0, number, operation))
        if operation.returned_ns is not None:
            events.append((operation.returned_ns, 1, number, operation))
    events.sort(key=lambda event: event[:3])
    pending: dict[int, Operation] = {}
    zero_at_will = False
    states: set[tuple[int, frozenset[int]]] = {(ZERO, frozenset())}
    """(value, which of the pending operations have taken effect)"""
    for _, ends, number, operation in events:
        if not ends:
            if operation.returned_ns is None and operation.value == ZERO:
                zero_at_will = True
            else:
                pending[number] = operation
            continue
        states = _after(states, pending, number, zero_at_will)
        if not states:
            told = [str(op) for op in operations if abs(op.invoked_ns - operation.invoked_ns) < 5e9][-40:]
            raise Violation(f"block {lba}: nothing explains {operation} among\n  " + "\n  ".join(told))
        if len(states) > STATES_MAX:
            raise ValueError(f"block {lba}: more than {STATES_MAX} states at once; use fewer concurrent clients")
        del pending[number]


def _after(
    states: set[tuple[int, frozenset[int]]], pending: dict[int, Operation], number: int, zero_at_will: bool
) -> set[tuple[int, frozenset[int]]]:
    """The states in which operation `number` may return."""
    result: set[tuple[int, frozenset[int]]] = set()
    seen = set(states)
    work = list(states)
    while work:
        value, done = work.pop()
        if number in done:
            result.add((value, done - {number}))
            continue
        successors = [
            (operation.value, done | {other})
            for other, operation in pending.items()
            if other not in done and (operation.kind is Kind.WRITE or operation.value == value)
        ]
        if zero_at_will:
            successors.append((ZERO, done))
        for state in successors:
            if state not in seen:
                seen.add(state)
                work.append(state)
    return result
