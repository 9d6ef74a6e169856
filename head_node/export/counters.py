"""What an NBD server counts."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class NbdCounters:
    """Totals since start, except for the gauges `connections_open` and `relays_open`."""

    connections_accepted: int = 0
    connections_refused: int = 0
    connections_open: int = 0
    connections_reset: int = 0
    evicted: int = 0
    negotiations_timed_out: int = 0
    negotiations_failed: int = 0
    options_rejected: int = 0
    tls_handshakes: int = 0
    tls_failures: int = 0
    requests: int = 0
    requests_rejected: int = 0
    requests_failed: int = 0
    requests_unanswered: int = 0
    garbage: int = 0
    internal_errors: int = 0
    relays_open: int = 0
    relays_dialled: int = 0
    relays_accepted: int = 0
    relays_lost: int = 0
    relay_heartbeats_missed: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by name, for status and metrics."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
