"""A log disk that answered a sync and did not do it, or whose last batches have rotted."""

from rackctl.simulation.log_disk import MemoryDisk

from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.segments import MARK, MARK_MAGIC, aligned


def lose_last_batches(disk: MemoryDisk, count: int = 1) -> int:
    """Zero the last `count` batches of the one log on a disk that no process has open; returns the opnum before."""
    found = []
    for name, content in disk.files.items():
        if not name.startswith("segment-"):
            continue
        for at in range(0, len(content.durable), BLOCK_BYTES):
            if content.durable[at : at + 8] == MARK_MAGIC:
                _, _, _, number, _, first, body_bytes, _, _ = MARK.unpack_from(content.durable, at)
                found.append((number, name, at, first, aligned(MARK.size + body_bytes)))
    lost = sorted(found)[-count:]
    for _, name, at, _, size in lost:
        disk.files[name].durable[at : at + size] = bytes(size)
        for block in range(at // BLOCK_BYTES, (at + size) // BLOCK_BYTES):
            disk.files[name].cached.pop(block, None)
    return int(lost[0][3]) - 1
