"""What a controller keeps of the commands that failed: its Error Information log (Base 2.0, 5.16.1.2)."""

from collections import deque

from spdk_bindings import log_pages
from spdk_bindings.log_pages import ERROR_ENTRIES_MAX, ErrorEntry


class ErrorLog:
    """The newest ERROR_ENTRIES_MAX failures; `count` is how many there ever were."""

    def __init__(self) -> None:
        self.count = 0
        self._newest_first: deque[ErrorEntry] = deque(maxlen=ERROR_ENTRIES_MAX)

    def note(self, queue_id: int, cid: int, status: int, nsid: int, lba: int) -> None:
        """A command has failed; `status` is the field of its CQE, `nsid` and `lba` are zero where there are none."""
        self.count += 1
        self._newest_first.appendleft(ErrorEntry(self.count, queue_id, cid, status, lba, nsid))

    def clear(self) -> None:
        """A reset empties the log; the count goes on."""
        self._newest_first.clear()

    def page(self) -> bytes:
        """Log page 01h."""
        return log_pages.error_log(self._newest_first)
