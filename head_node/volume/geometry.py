"""How a volume is laid out: shards per stripe, blocks per shard, columns."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Geometry:
    """k data and m parity shards of `shard_blocks` blocks, of which the first is the shard's header."""

    data_shards: int = 4
    parity_shards: int = 2
    shard_blocks: int = 64

    def __post_init__(self) -> None:
        if not (1 <= self.data_shards <= 16 and 1 <= self.parity_shards <= 8 and 2 <= self.shard_blocks <= 160):
            raise ValueError(f"{self}: needs 1..16 data shards, 1..8 parity shards and 2..160 blocks in a shard")

    @property
    def shards(self) -> int:
        """Shards of a stripe, k + m."""
        return self.data_shards + self.parity_shards

    @property
    def columns(self) -> int:
        """Columns, hence distinct sleds, of a volume: one for each shard."""
        return self.shards

    @property
    def rows(self) -> int:
        """Payload blocks of one shard."""
        return self.shard_blocks - 1

    @property
    def stripe_blocks(self) -> int:
        """Client blocks of one stripe."""
        return self.data_shards * self.rows

    def column_of(self, slot: int, shard: int) -> int:
        """The column that holds `shard` of the stripe in `slot`: turned by one per slot to spread parity."""
        return (shard + slot) % self.shards

    def to_json(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError."""
        return cls(int(data["data_shards"]), int(data["parity_shards"]), int(data["shard_blocks"]))
