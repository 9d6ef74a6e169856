"""Those who wait for the next revision of a store in this process."""

import asyncio

from head_node.store.errors import StoreFailed

# Heads and operators waiting at once; more than a large rack has.
WATCHERS_MAX = 1024


class Watchers:
    """Futures that the next announced revision resolves."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[int], None] = {}
        self._closed = False

    async def next(self) -> int:
        """The next announced revision; raises StoreFailed at close, or when too many wait."""
        if self._closed:
            raise StoreFailed("the store is closed")
        if len(self._waiting) >= WATCHERS_MAX:
            raise StoreFailed(f"more than {WATCHERS_MAX} wait for changes of the store")
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            return await waiter
        finally:
            self._waiting.pop(waiter, None)

    def announce(self, revision: int) -> None:
        """Wake everybody with `revision`."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(revision)

    def close(self) -> None:
        """End everybody's wait with StoreFailed."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(StoreFailed("the store is closed"))
