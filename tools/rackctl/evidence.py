"""What the heads report that a story or a test rests on: fences met, stripes written, blocks reconstructed."""

from dataclasses import dataclass
from typing import Any

from rackctl.rack import Rack, wait_until

# Blocks that may stay in the log: they do not fill a stripe (4 x 63 blocks) yet, or one is under way.
OVERLAY_BLOCKS_MAX = 2 * 252
_FIELDS = {"head", "volume", "sled", "stale_epoch", "current_epoch"}


@dataclass(frozen=True, slots=True)
class Fence:
    """A head met a sled that knew a newer epoch. Names instead of ids where they are known."""

    head: str
    volume: str
    sled: str
    stale_epoch: int
    current_epoch: int


def fences_seen(rack: Rack) -> list[Fence]:
    """Every time that a head was fenced off, as the heads reported it, oldest first."""
    names = {node.id: node.name for node in rack.state.nodes}
    names |= {volume["volume"]: volume["name"] for volume in rack.api.volumes()}
    return [
        Fence(
            head=names.get(event["head"], event["head"]),
            volume=names.get(event["volume"], event["volume"]),
            sled=names.get(event["sled"], event["sled"]),
            stale_epoch=event["stale_epoch"],
            current_epoch=event["current_epoch"],
        )
        for event in rack.api.events()
        if event["kind"] == "fenced-off" and event.keys() >= _FIELDS  # a head may say less than it should
    ]


def wait_fenced_off(rack: Rack, head: str, stale_epoch: int, timeout_s: float = 15.0) -> list[Fence]:
    """Wait until `head` has reported that sleds refuse its `stale_epoch`; raises WaitedTooLong."""
    return wait_until(
        lambda: [fence for fence in fences_seen(rack) if (fence.head, fence.stale_epoch) == (head, stale_epoch)],
        f"{head} to be fenced off with epoch {stale_epoch}",
        timeout_s,
    )


def engine_of_primary(rack: Rack, volume: str) -> dict[str, Any]:
    """The counters of the volume's engine on its primary, as last reported; empty when there is no report."""
    record = rack.api.volume(volume)
    report = record["health"]["reports"].get(record["primary"]) or {}
    return dict(report.get("engine") or {})


def wait_destaged(rack: Rack, volume: str, timeout_s: float = 20.0) -> dict[str, Any]:
    """Wait until what was written lies in stripes on the sleds, but for less than two of them."""

    def destaged() -> dict[str, Any] | None:
        engine = engine_of_primary(rack, volume)
        return engine if engine.get("overlay_blocks", OVERLAY_BLOCKS_MAX) < OVERLAY_BLOCKS_MAX else None

    return wait_until(destaged, f"volume {volume} to be destaged", timeout_s)
