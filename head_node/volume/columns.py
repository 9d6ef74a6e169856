"""What the engine sees of one column: a namespace on a sled, reached through one attach of the present epoch."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from spdk_bindings.device import Buffer as Buffer


class Column(Protocol):
    """One namespace through one attach. A new attach is a new Column object: that is how the engine knows that
    commands of the former one are drained (F3) and its slots may be used again."""

    blocks: int
    """Size of the namespace in 4096-byte blocks."""

    @property
    def available(self) -> bool:
        """False once the attach is gone; nothing is sent to it then."""

    def write(self, lba: int, buffers: Sequence[Buffer], *, fua: bool) -> asyncio.Future[None]:
        """Write whole blocks at `lba`. Fails with FencedOff, SledUnavailable or CommandFailed
        (`sled_controller.errors`); the content is unknown after a failure, and after SledUnavailable the command may
        still be carried out, until a new attach."""

    def read(self, lba: int, blocks: int) -> asyncio.Future[Buffer]:
        """Read `blocks` blocks at `lba`; the buffer belongs to the caller."""
