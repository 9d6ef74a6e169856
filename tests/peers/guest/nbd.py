"""The guest as an NBD client: the kernel's own, told by nbd-client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from peers.guest.machine import GATEWAY, Guest


@asynccontextmanager
async def connected(guest: Guest, export: str, port: int, device: str = "/dev/nbd0") -> AsyncIterator[str]:
    """The block device of an export at `port` of our loopback, of 4096-byte blocks."""
    await guest.check(f"modprobe nbd; nbd-client -N {export} -b 4096 {GATEWAY} {port} {device}")
    try:
        await guest.check(f"until [ $(cat /sys/block/{device[5:]}/size) -gt 0 ]; do usleep 20000; done")
        yield device
    finally:
        await guest.check(f"nbd-client -d {device}")
