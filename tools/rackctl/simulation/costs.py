"""Computation that takes time: what the heavy steps of an engine cost a process that a fault has made slow.

Without such a fault computation takes no virtual time at all, and a stall of the loop would never cost a lease.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final
from unittest import mock

from head_node.volume import replica
from head_node.volume.erasure import ErasureCode
from head_node.volume.replica import Replica
from head_node.volume.stripewriter import StripeWriter
from rackctl.simulation.loop import PROCESS

COSTLY: Final[tuple[tuple[Any, str], ...]] = (
    (StripeWriter, "_shards"), (ErasureCode, "rebuild"), (Replica, "_apply_to"), (replica, "decode_checkpoint"),
)  # fmt: skip
"""Encoding, rebuilding, applying records, reading a checkpoint: what runs on the loop and grows with the data."""


@contextlib.contextmanager
def costing() -> Iterator[None]:
    """Let each of COSTLY cost its process `work_cost_s` while the block runs."""
    with contextlib.ExitStack() as stack:
        for owner, name in COSTLY:
            stack.enter_context(mock.patch.object(owner, name, _costly(getattr(owner, name))))
        yield


def _costly(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def costly(*args: Any, **options: Any) -> Any:
        process = PROCESS.get(None)
        if process is not None and process.work_cost_s:
            process.work(process.work_cost_s)
        return function(*args, **options)

    return costly
