"""Histories as files that any linearizability checker can read: one JSON object per line, one line per operation.

    {"client": "client-0", "block": 17, "kind": "write", "value": 4711, "call_ns": 52, "return_ns": 90, "outcome": "ok"}

`value` is what was written or read: a number that no two writes share, 0 for zeroes (a block that was never written, or
trimmed). Times are nanoseconds of one clock. `outcome` is `ok`; `unknown` for a write that may take effect at any time
after `call_ns`, or never (`return_ns` is null then); `fail` for a read that returned nothing (`value` is null). Blocks
are independent registers, and a request of several blocks is one operation on each. Lines are in no order.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from sled_board.durable import open_own

from rackctl.consistency.history import History, Kind, Operation

OK: Final = "ok"
FAIL: Final = "fail"
UNKNOWN: Final = "unknown"


class HistoryFile:
    """Takes what a history has done with, and what is left at the end."""

    def __init__(self, path: Path) -> None:
        """Begin the file. Raises OSError."""
        self.path = path
        descriptor = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._file: TextIO = os.fdopen(descriptor, "w", encoding="utf-8")
        self.operations = 0

    def write(self, operations: Iterable[Operation]) -> None:
        """Add operations, each once. Raises OSError."""
        for operation in operations:
            self._file.write(json.dumps(to_json(operation)) + "\n")
            self.operations += 1

    def finish(self, history: History) -> None:
        """Add what is left in the history, and close the file. Raises OSError."""
        for operations in history.blocks.values():
            self.write(operations)
        self.write(history.failed_reads)
        self._file.close()


def to_json(operation: Operation) -> dict[str, Any]:
    """The object of one line."""
    read = operation.kind is Kind.READ
    outcome = OK if operation.succeeded else FAIL if read else UNKNOWN
    return {
        "client": operation.client, "block": operation.lba, "kind": operation.kind.value,
        "value": None if outcome == FAIL else operation.value, "call_ns": operation.invoked_ns,
        "return_ns": operation.returned_ns, "outcome": outcome,
    }  # fmt: skip


def read_history(path: Path) -> History:
    """The history in a file. Raises OSError, ValueError."""
    history = History()
    for number, found in _objects(path):
        try:
            value = found["value"]
            operation = Operation(
                str(found["client"]), Kind(found["kind"]), int(found["block"]), 0 if value is None else int(value),
                int(found["call_ns"]), None if found["return_ns"] is None else int(found["return_ns"]),
                failed=found["outcome"] == FAIL,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number} is no operation: {error!r}") from None
        if operation.failed:
            history.failed_reads.append(operation)
        else:
            history.blocks[operation.lba].append(operation)
            history.last_value = max(history.last_value, operation.value)
    return history


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is no JSON: {error}") from None
            if not isinstance(found, dict):
                raise ValueError(f"{path}: line {number} is no object")
            yield number, found
