"""The bodies of structured replies: runs of data and zeroes, block status extents."""

from collections.abc import Iterator, Sequence
from typing import Final

from head_node.export import nbd_protocol as nbd
from head_node.export.nbd_protocol import Chunk
from spdk_bindings.device import Buffer

HOLE_BYTES_MIN: Final = 32 * 1024
"""Reads at least this long are searched for zeroes, and a run at least this long becomes a hole chunk of 32 bytes. The
first byte that is not zero ends the search of a piece, so data costs next to nothing."""

_ZEROES: Final = bytes(HOLE_BYTES_MIN)


def chunk(cookie: int, kind: Chunk, body: bytes) -> bytes:
    """A structured reply of a single chunk."""
    return nbd.CHUNK_HEADER.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.CHUNK_DONE, kind, cookie, len(body)) + body


def merge_extents(extents: Sequence[tuple[int, int]], length: int, extents_max: int) -> list[tuple[int, int]]:
    """Join neighbours of equal flags and cut at `length` bytes and `extents_max` extents."""
    merged: list[tuple[int, int]] = []
    for extent_bytes, flags in extents:
        extent_bytes = min(extent_bytes, length)
        if extent_bytes <= 0:
            continue
        length -= extent_bytes
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + extent_bytes, flags)
        elif len(merged) == extents_max:
            break
        else:
            merged.append((extent_bytes, flags))
    return merged


def data_and_hole_chunks(cookie: int, offset: int, buffers: Sequence[Buffer]) -> list[Buffer]:
    """A structured READ reply in which runs of at least HOLE_BYTES_MIN zeroes are hole chunks."""
    runs: list[tuple[bool, int, list[Buffer]]] = [(False, 0, [])]
    zeroes: list[Buffer] = []
    zero_bytes = 0
    for piece in _pieces(buffers):
        if piece[0] == 0 and _ZEROES.startswith(piece):
            zeroes.append(piece)
            zero_bytes += len(piece)
            continue
        if zero_bytes >= HOLE_BYTES_MIN:
            runs += [(True, zero_bytes, []), (False, len(piece), [piece])]
        else:
            _, run_bytes, parts = runs[-1]
            parts += zeroes
            parts.append(piece)
            runs[-1] = (False, run_bytes + zero_bytes + len(piece), parts)
        zeroes, zero_bytes = [], 0
    if zero_bytes:
        hole = zero_bytes >= HOLE_BYTES_MIN
        runs.append((hole, zero_bytes, [] if hole else zeroes))
    return _chunks_of(cookie, offset, [run for run in runs if run[1]])


def _pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    for buffer in buffers:
        if len(buffer) <= HOLE_BYTES_MIN:
            yield buffer
        else:
            view = memoryview(buffer)
            for at in range(0, len(view), HOLE_BYTES_MIN):
                yield view[at : at + HOLE_BYTES_MIN]


def _chunks_of(cookie: int, offset: int, runs: list[tuple[bool, int, list[Buffer]]]) -> list[Buffer]:
    magic, chunks = nbd.STRUCTURED_REPLY_MAGIC, list[Buffer]()
    for number, (hole, run_bytes, parts) in enumerate(runs, 1):
        done = nbd.CHUNK_DONE if number == len(runs) else 0
        if hole:
            chunks.append(nbd.HOLE_CHUNK.pack(magic, done, Chunk.OFFSET_HOLE, cookie, 12, offset, run_bytes))
        else:
            chunks.append(nbd.DATA_CHUNK.pack(magic, done, Chunk.OFFSET_DATA, cookie, run_bytes + 8, offset))
            chunks += parts
        offset += run_bytes
    return chunks
