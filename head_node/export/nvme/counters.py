"""What the NVMe/TCP side of a head counts."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class NvmeCounters:
    """Totals since start."""

    connections: int = 0
    protocol_errors: int = 0
    timeouts: int = 0
    hosts_admitted: int = 0
    hosts_refused: int = 0
    hosts_turned_away: int = 0  # for want of a place; they come again
    access_changes: int = 0
    commands_rejected: int = 0  # malformed, or out of range
    commands_failed: int = 0  # by the volume
    commands_turned_away: int = 0  # because the path is not usable: the host goes elsewhere
    commands_unfinished: int = 0  # their fate was unknown when the head stopped serving the volume

    def as_dict(self) -> dict[str, int]:
        """The counters by name, for status and metrics."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
