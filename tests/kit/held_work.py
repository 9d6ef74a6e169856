"""A flash thread of tests: it does what it is given at once, or keeps it until the test lets it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class HeldWork:
    """`submit` is that of `sled_board.flash_thread.FlashThread`."""

    def __init__(self) -> None:
        self._held: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] | None = None

    def submit(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Do it now and say how it ended, unless it is held."""
        if self._held is not None:
            self._held.append((work, done))
            return
        try:
            work()
        except Exception as error:
            done(error)
        else:
            done(None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is given within the block is done at its end, in order."""
        self._held = held = []
        yield
        self._held = None
        for work, done in held:
            self.submit(work, done)
