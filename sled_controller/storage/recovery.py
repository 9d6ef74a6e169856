"""What a table is worth after a crash or on a rotten medium: a pure function from blocks to content, or distrust.

A table has two regions; each region has two copies that hold the same record at the same position. Records are
appended in groups: one FUA write to copy 0, then one to copy 1, then the acknowledgement. A region starts with a
checkpoint, whose head (position 0) is written when its body is durable in both copies.

So of an *acknowledged* record any one block may rot, vanish or become unreadable and its twin still has it. What no
single fault explains is distrusted, and its device stays offline:

- both twins of a record damaged, or gone while an acknowledged record follows them;
- twins that hold and contradict each other;
- damaged checkpoint heads beside records of a newer generation than the best head (an older checkpoint would lower
  fences).

A crash leaves records of the last group in one copy only, or some of them in none; blocks are atomic. Nobody was told
about that group; what is found of it counts (a fence may rise without a receipt, never fall).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sled_controller.storage.content import TableContent
from sled_controller.storage.errors import DeviceUntrusted
from sled_controller.storage.records import Cell, CheckpointEntry, TableRecord

CellOrRecord: TypeAlias = TableRecord | Cell
Region: TypeAlias = tuple[Sequence[CellOrRecord], Sequence[CellOrRecord]]


@dataclass(frozen=True, slots=True)
class Recovered:
    """A trusted table.

    New records go to `region` at `next_index` if `clean`; otherwise twins are missing or damaged, and a checkpoint
    of a generation above `generation_max` in the other region heals that before anything is served.
    """

    content: TableContent
    region: int
    generation: int
    next_index: int
    generation_max: int
    damaged: int
    clean: bool


def recover(regions: Sequence[Region]) -> Recovered:
    """Judge both regions; raises DeviceUntrusted, naming the first position that can't be explained."""
    heads = [_head(region) for region in regions]
    best = max((head for head in heads if head is not None), key=lambda head: head.generation, default=None)
    if best is None:
        raise DeviceUntrusted("the table has no valid checkpoint head")
    newest = [_generation_max(region) for region in regions]
    for number, region in enumerate(regions):
        if newest[number] > best.generation and Cell.DAMAGED in (region[0][0], region[1][0]):
            raise DeviceUntrusted(
                f"region {number} has records of generation {newest[number]} under a damaged checkpoint head"
            )
    chosen = heads.index(best)
    if newest[chosen] > best.generation:
        raise DeviceUntrusted(f"region {chosen} has records newer than its checkpoint head")
    content, next_index, clean = _replay(regions[chosen], best)
    damaged = sum(cell is Cell.DAMAGED for region in regions for copy in region for cell in copy)
    return Recovered(content, chosen, best.generation, next_index, max(newest), damaged, clean)


def _head(region: Region) -> TableRecord | None:
    found = [
        copy[0] for copy in region if isinstance(copy[0], TableRecord) and isinstance(copy[0].entry, CheckpointEntry)
    ]
    return max(found, key=lambda record: record.generation, default=None)


def _generation_max(region: Region) -> int:
    return max((cell.generation for copy in region for cell in copy if isinstance(cell, TableRecord)), default=0)


def _replay(region: Region, head: TableRecord) -> tuple[TableContent, int, bool]:
    assert isinstance(head.entry, CheckpointEntry)
    generation, checkpoint_count = head.generation, head.entry.count
    twins = [
        (_current(first, generation), _current(second, generation))
        for first, second in zip(region[0], region[1], strict=True)
    ]
    found = [_agree(first, second) for first, second in twins]
    last = max(index for index, record in enumerate(found) if record is not None)
    if checkpoint_count > len(found):
        raise DeviceUntrusted("the checkpoint is longer than its region")
    content = TableContent()
    clean = True
    for index in range(max(last + 1, checkpoint_count)):
        first, second = twins[index]
        record = found[index]
        clean = clean and first == second and record is not None
        if record is not None:
            content.apply(record.entry)
        elif index < checkpoint_count:
            raise DeviceUntrusted(f"record {index} of the checkpoint is lost in both copies")
        elif first is second is Cell.DAMAGED:
            raise DeviceUntrusted(f"record {index} is damaged in both copies")
        elif not _of_unfinished_group(found, index):
            raise DeviceUntrusted(f"record {index} is lost in both copies and acknowledged ones follow")
    next_index = max(last + 1, checkpoint_count)
    if next_index < len(found):
        first, second = twins[next_index]
        if first is second is Cell.DAMAGED:
            raise DeviceUntrusted(f"what follows the last record, {next_index}, is damaged in both copies")
        clean = clean and first is second is Cell.ABSENT
    return content, next_index, clean


def _current(cell: CellOrRecord, generation: int) -> CellOrRecord:
    """An older generation's record is what was there before this one's: to this generation it's absent."""
    if isinstance(cell, TableRecord) and cell.generation < generation:
        return Cell.ABSENT
    return cell


def _agree(first: CellOrRecord, second: CellOrRecord) -> TableRecord | None:
    if isinstance(first, TableRecord) and isinstance(second, TableRecord):
        if first != second:
            raise DeviceUntrusted(f"the copies of record {first.index} contradict each other")
        return first
    return next((cell for cell in (first, second) if isinstance(cell, TableRecord)), None)


def _of_unfinished_group(found: Sequence[TableRecord | None], index: int) -> bool:
    """Whether everything after a missing record is of one group with it: a torn group write, never acknowledged."""
    return all(record is None or record.group_first <= index for record in found[index + 1 :])
