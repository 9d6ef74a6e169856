"""One thread for a board's storage: what is asked of it is done in order, while an event loop goes on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Submit = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
"""(work, done): do the work after all that was submitted before, then call `done` with what it raised, or None."""


class FlashThread:
    """Belongs to the running event loop, in which every `done` is called. `close` waits for what was submitted."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, "flash")

    def submit(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """A `Submit`."""

        def run() -> None:
            failure: BaseException | None = None
            try:
                work()
            except Exception as error:  # whatever it is, somebody waits for `done`
                failure = error
            self._loop.call_soon_threadsafe(done, failure)

        self._pool.submit(run)

    def close(self) -> None:
        """Wait for what was submitted; nothing more is taken."""
        self._pool.shutdown()
