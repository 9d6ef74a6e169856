"""A watcher of epochs, whose rise no client can see."""

from uuid import UUID

from rackctl.consistency.history import Violation


class EpochMonitor:
    """Epochs of a volume only rise, and each is led by one run of one head, once."""

    def __init__(self) -> None:
        self._leaders: dict[tuple[UUID, int], str] = {}
        self._recorded: dict[UUID, int] = {}
        self.led_total = 0

    def recorded(self, volume: UUID, epoch: int) -> None:
        """The store holds this epoch now. Raises Violation."""
        before = self._recorded.get(volume, 0)
        if epoch < before:
            raise Violation(f"volume {volume}: the record's epoch fell from {before} to {epoch} (F4)")
        self._recorded[volume] = epoch

    def restored(self) -> None:
        """The store was set back to a backup: its epochs are old until an operator recovers each volume."""
        self._recorded.clear()

    def led(self, volume: UUID, epoch: int, process: str) -> None:
        """A run of a head begins to lead. Raises Violation."""
        other = self._leaders.setdefault((volume, epoch), process)
        if other != process:
            raise Violation(f"volume {volume}: epoch {epoch} is led by {process} after {other} (F4)")
        self.led_total += 1
