# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of logs, full resyncs and what is in no stripe yet, dropped: (name, rule, file, text, replacement, tests...)."""

from typing import Final

VOLUME = "tests/unit/head_node/volume"
CLUSTER = "tests/unit/head_node/cluster"
REPLICA = "head_node/volume/replica.py"
LOG = "head_node/volume/log.py"
LEASE = "head_node/cluster/lease.py"
BLOCKMAP = "head_node/volume/blockmap.py"

LOGS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "resync-without-overlay", "F5: a full resync brings every block that is in no stripe yet", REPLICA,
        "        before = self._log.segment_of(self._needed_from())[1]\n",
        "        before = self._log.segment_of(self.committed + 1)[1]\n", VOLUME,
    ),
    (
        "put-back-unsorted", "engine 2: the log keeps what the oldest block of the overlay needs, put back or not",
        "head_node/volume/overlay.py",
        "merged = sorted([*back, *self.fresh.items()], key=lambda item: item[1][0])",
        "merged = [*self.fresh.items(), *back]", VOLUME,
    ),
    (
        "oldest-remembered-too-long", "engine 2: the log is trimmed before the oldest block that is in no stripe yet",
        "head_node/volume/overlay.py",
        "        self._oldest_apart = 0\n        taken =", "        taken =", VOLUME,
    ),
    (
        "turn-without-bound", "engine 3: writes of one turn take no more room than was found for them",
        "head_node/volume/engine.py",
        "            self._turn_room_bytes = length + TURN_BYTES\n", "            self._turn_room_bytes = 1 << 40\n", VOLUME,
    ),
    (
        "resync-keeps-old-records", "F5: a full resync replaces what the member had not applied yet", REPLICA,
        "        await self._log.discard()\n        self._pending.clear()\n", "        await self._log.discard()\n", VOLUME,
    ),
    (
        "replay-resurrects", "engine 3: replaying the log brings no block back that a newer one has replaced",
        "head_node/volume/state.py", "            if self.map.opnum_of(lba + index) < opnum:\n", "            if True:\n", VOLUME,
    ),
    (
        "trim-leaves-no-tombstone", "engine 3: a trim stays a trim when older records are replayed", BLOCKMAP,
        "            piece[\"opnum\"][older] = opnum\n", "", VOLUME,
    ),
    (
        "stripe-settles-newer", "engine 5: a STRIPE takes only the version that it holds out of the overlay",
        "head_node/volume/overlay.py", "            if newer[0] != opnum:\n", "            if newer[0] < opnum:\n", VOLUME,
    ),
    (
        "follower-applies-uncommitted", "F5: a follower applies what the primary has committed, no more", REPLICA,
        "        self._apply_to(min(opnum, self.durable))\n", "        self._apply_to(self.durable)\n", VOLUME, CLUSTER,
    ),
    (
        "joins-before-it-has-everything", "F5: a member joins current when it holds everything committed",
        "head_node/cluster/replication.py", "            and self.durable >= self._engine.committed\n", "", CLUSTER,
    ),
    (
        "dead-blocks-not-counted", "engine 5: a stripe gives its slot back when its last block is overwritten",
        "head_node/volume/state.py", "        self.stripes.lose(np.concatenate(lost))\n", "", VOLUME,
    ),
    (
        "restart-forgets-promise", "F7: a member seals only a TTL after its own start", LEASE,
        "        self._bound_until_ns = started_ns + terms.ttl_ns\n", "        self._bound_until_ns = started_ns\n", CLUSTER,
    ),
    (
        "term-ignored", "F7: a primary serves within its credential's term", LEASE,
        "        end = self._term_end_ns\n", "        end = self._term_end_ns and 1 << 62\n", CLUSTER,
    ),
    (
        "roll-loses-mark", "engine 1: the log goes on in its next segment where the last one ended", LOG,
        "Segment(self._spares.pop(0), self._segments[-1].sequence + 1, before, self._mark_number + 1)",
        "Segment(self._spares.pop(0), self._segments[-1].sequence + 1, before, self._mark_number)", VOLUME,
    ),
    (
        "torn-batch-stays", "engine 1: what is left of a torn batch is wiped before the log goes on", LOG,
        "            await self._shrink(segment, batch, valid_bytes, valid_records, size_bytes)\n",
        "            segment.end, self._mark_number = batch.offset + aligned(MARK.size + valid_bytes), batch.number\n", VOLUME,
    ),
    (
        "sole-log-set-aside", "D1: a log that no other member has is never set aside because it cannot be read",
        "head_node/log_directories.py",
        "        if error.errno != errno.EIO or not others:\n",
        "        if error.errno != errno.EIO:\n", "tests/unit/head_node/test_log_directories.py",
    ),
)  # fmt: skip
