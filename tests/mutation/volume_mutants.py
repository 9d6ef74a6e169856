# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of the volume engine, dropped."""

from mutant import (
    BLOCKMAP,
    CHECKPOINTING,
    CLUSTER,
    COMMIT_POINT,
    DESTAGE,
    ENGINE,
    LOG,
    READER,
    REPLICA,
    SERVICE,
    STRIPES,
    VOLUME,
    Mutant,
    one,
)

VOLUMES = (
    one(
        "acknowledge-while-promoting", "F5: nothing is committed before the epoch record is", ENGINE,
        "or opnum < self._epoch_opnum or opnum <= self.committed:", "or opnum <= self.committed:", VOLUME,
    ),
    one(
        "commit-alone", "F5: committed is durable on every member", ENGINE,
        "opnum = min(self._log.durable, *self._members.values()) if self._members else self._log.durable",
        "opnum = self._log.durable", VOLUME,
    ),
    one(
        "commit-before-durable-here", "F5: committed is durable on the primary too", ENGINE,
        "opnum = min(self._log.durable, *self._members.values()) if self._members else self._log.durable",
        "opnum = min(self._members.values()) if self._members else self.tail.opnum", VOLUME,
    ),
    one(
        "member-forgets-epochs", "F5: a member refuses records below the highest epoch that it has seen", REPLICA,
        "            raise StaleEpoch(epoch, self.highest_epoch)\n        await self._promise.see_epoch(epoch)\n",
        "            return\n", VOLUME, CLUSTER,
    ),
    one(
        "fsync-error-ignored", "volume engine 1: an error of a log sync is final", LOG,
        "        if error is not None:\n            self._fail(LogFailed(f\"{segment.file.name}: byte {batch.offset}: {error}; "
        "the log ends here\"), error)\n            return\n", "", VOLUME,
    ),
    one(
        "no-lease", "F7: reads and acknowledgements need the lease", SERVICE,
        "        return engine.serving and engine.lease()\n", "        return engine.serving\n", VOLUME, CLUSTER,
    ),
    one(
        "crc-not-checked", "D2: what is read verifies against the map", READER,
        "            crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == (crcs[index] if crcs else place.crc)\n",
        "            not crcs or crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == crcs[index]\n", VOLUME,
    ),
    one(
        "source-crc-not-checked", "D2: what a block is rebuilt from verifies", READER,
        "            crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == (crcs[index] if crcs else place.crc)\n",
        "            bool(crcs) or crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == place.crc\n", VOLUME,
    ),
    one(
        "older-shard-accepted", "D2: a shard counts only if (epoch, sequence, index) is the map's", READER,
        "        return named == (self._volume, stripe.epoch, stripe.sequence, shard, self._state.geometry.rows)\n",
        "        return True\n", VOLUME,
    ),
    one(
        "map-goes-back", "engine 3: an entry moves only to a higher opnum", BLOCKMAP,
        '                keep = old["opnum"] < opnums[chosen]\n', '                keep = old["opnum"] >= 0\n', VOLUME,
    ),
    one(
        "move-beats-write", "engine 5: a MOVE counts only where the map names its source", BLOCKMAP,
        '                keep = (old["opnum"] == opnums[chosen]) & (old["slot"] == sources[chosen])\n',
        '                keep = old["opnum"] >= 0\n', VOLUME,
    ),
    one(
        "slot-with-unanswered-writes", "engine 5: a slot with an unanswered command is not free", STRIPES,
        "        failed = set(unanswered)\n", "        failed: set[object] = set()\n", VOLUME,
    ),
    one(
        "slot-under-a-reader", "engine 5: a slot that is being read is not free", STRIPES,
        "slot in self._readers or slot in self._writing", "slot in self._writing", VOLUME,
    ),
    Mutant(
        "slot-before-free-is-committed", "engine 5: a slot is free when the record that frees it is committed",
        (
            (STRIPES, "np.flatnonzero(epochs == 0).tolist()]", "np.flatnonzero(self.entries['live'][base:end] < 5).tolist()]"),
            (STRIPES, "        return not (self._in_use(slot) or slot in self._readers", "        return not (slot in self._readers"),
        ),
        (VOLUME,),
    ),
    one(
        "trim-too-much", "engine 2: a record goes only when a durable checkpoint covers its stripe", CHECKPOINTING,
        "        return self.committed + 1 if oldest is None else min(oldest, self.committed + 1)\n",
        "        return self.committed + 1\n", VOLUME,
    ),
    one(
        "trim-before-checkpoint", "engine 2: the checkpoint is durable before the log goes", CHECKPOINTING,
        "        await self._room.write(await self._checkpoint(sequence, before).encode())\n"
        "        self._checkpoint_count += 1\n",
        "        await self._log.trim_before(sequence)\n"
        "        await self._room.write(await self._checkpoint(sequence, before).encode())\n"
        "        self._checkpoint_count += 1\n", VOLUME,
    ),
    one(
        "recovered-log-not-synced", "engine 1: what a restart found in the page cache is made durable", LOG,
        "        copies += await log._renew(scan.segment, others)\n", "", VOLUME,
    ),
    one(
        "failed-promise-trusted", "F5: a promise whose sync failed is written again before it counts",
        "head_node/volume/identity.py", "            await self._write(self.promise)\n        return self\n",
        "        return self\n", VOLUME,
    ),
    one(
        "rotten-segment-kept", "engine: a segment that has rotted is left and dropped", ENGINE,
        "        if self._log.rot is not None and self._log.newest_sequence <= self._log.rot.sequence:\n"
        "            self._leave_segment()\n", "", VOLUME,
    ),
    one(
        "loss-accepts-itself", "D1: a log that has lost data goes on only when an operator accepts exactly that", REPLICA,
        "        if accepted_loss not in losses.codes:\n", "        if False:\n", VOLUME,
    ),
    one(
        "given-up-point-counts", "D1: a commit point that was given up makes no later record committed", REPLICA,
        "        return self._epoch_of(min(self._floor.opnum, self._log.position.opnum)) <= self._floor.epoch\n",
        "        return True\n", VOLUME,
    ),
    one(
        "one-checkpoint", "D1: a checkpoint has a copy", "head_node/volume/room.py",
        "            await self.put(CHECKPOINT_COPY, buffers)\n", "            pass\n", VOLUME,
    ),
    one(
        "destage-unchecked", "D2: destage verifies what it takes from memory", DESTAGE,
        "            if crc32c(data) != crc:\n", "            if False:\n", VOLUME,
    ),
    one(
        "overlay-unchecked", "D2: what is read from memory is verified", READER,
        "        if crc32c(block) == crc:\n            return block\n", "        if block:\n            return block\n", VOLUME,
    ),
    one(
        "trims-without-bound", "engine: trims wait for the log like writes", REPLICA,
        "        return self._log_takes(length, bound) and (self._log.has_room(length) or self._log.has_kept_room(length))\n",
        "        return True\n", VOLUME,
    ),
    one(
        "no-segment-kept", "engine: a segment is kept for records that free room", LOG,
        "        left = self._spares_after(length) - 1\n", "        left = self._spares_after(length)\n", VOLUME,
    ),
    one(
        "no-checkpoint-room-kept", "engine: room for a checkpoint is kept", "head_node/volume/room.py",
        "            if error.errno != errno.ENOSPC or not self.kept_bytes:\n", "            if error:\n", VOLUME,
    ),
    one(
        "no-room-for-ever", "engine: a shortage is over when spares have come, from wherever", LOG,
        "            self.no_room = None\n", "            pass\n", VOLUME,
    ),
    one(
        "reserved-when-committed", "reservations: a write after a change is judged by it, committed or not", SERVICE,
        "        if self._engine.reservations_ahead.may_write(host):\n",
        "        if self._engine.state.reservations.may_write(host):\n", VOLUME,
    ),
    one(
        "refused-before-commit", "reservations: nothing is refused by a change that may be undone", SERVICE,
        "        if engine.state.reservations is engine.reservations_ahead:\n", "        if True:\n", VOLUME,
    ),
    one(
        "read-across-a-change", "reservations: a read belongs to one state of them from end to end", SERVICE,
        "            if self._engine.state.reservations is reservations:\n", "            if True:\n", VOLUME,
    ),
    one(
        "change-answered-at-once", "F5: a reservation is answered when it is committed", SERVICE,
        "        self._acks.append((opnum, lambda error: self._changed(outcome, done), 0))\n",
        "        self._changed(outcome, done)\n", VOLUME,
    ),
    one(
        "old-reservation-replayed", "reservations: what a checkpoint covers brings no older state back",
        "head_node/volume/state.py",
        "        if opnum > self.covered:\n            self.reservations = reservations\n",
        "        self.reservations = reservations\n", VOLUME,
    ),
    one(
        "reservation-not-in-checkpoint", "D1: reservations outlive the log that brought them", REPLICA,
        "        self.state.reservations = checkpoint.reservations\n", "", VOLUME,
    ),
    one(
        "uncommitted-reservation-forgotten", "reservations: a new primary judges by the whole log that it leads with",
        ENGINE, "        self.reservations_ahead = self._newest_reservations()\n",
        "        self.reservations_ahead = self.state.reservations\n", VOLUME,
    ),
    one(
        "dirty-reads", "D2, F7: reads see what is committed", ENGINE,
        "        self._pending.append((opnum, kind, lba, what, data))\n        if not self._streaming:\n",
        "        self._pending.append((opnum, kind, lba, what, data))\n"
        "        if kind == Kind.WRITE and len(what) == 1:\n"
        "            self.state.overlay.put(opnum, lba, what, data)\n"
        "        if not self._streaming:\n", VOLUME,
    ),
    Mutant(
        "destage-before-epoch-record", "engine 2, 5: no stripe is written before the epoch record is committed",
        (
            (
                ENGINE, "        self._append(opnum, chain, Kind.EPOCH, 0, None, header, None)\n        return opnum\n",
                "        self._append(opnum, chain, Kind.EPOCH, 0, None, header, None)\n"
                "        self._begin_destage()\n        self._destager.pump()\n        return opnum\n",
            ),
            (
                ENGINE, "        if self._destager is None:\n            self._begin_destage()\n            self._set_serving()\n",
                "        if not self.serving:\n            self._set_serving()\n",
            ),
        ),
        (VOLUME,),
    ),
    one(
        "re-append-in-compaction", "engine 5: what is copied keeps its opnum", DESTAGE,
        "                        out.append(StripeBlock(lba, place.opnum, place.crc, block, place.slot))\n",
        "                        out.append(StripeBlock(lba, place.opnum + (1 << 20), place.crc, block))\n", VOLUME,
    ),
    one(
        "trim-on-local-durability", "engine 2: what is durable here and not committed stays in the log", CHECKPOINTING,
        "        return self.committed + 1 if oldest is None else min(oldest, self.committed + 1)\n",
        "        return self._log.durable + 1 if oldest is None else min(oldest, self._log.durable + 1)\n", VOLUME,
    ),
    one(
        "shards-without-fua", "D1: shards are written FUA, so that no flush is owed after a sled's power cycle",
        "head_node/volume/stripewriter.py", "column.write(offset, buffers, fua=True)", "column.write(offset, buffers, fua=False)",
        VOLUME,
    ),
    Mutant(
        "copier-computes-crc", "D2: a copier hands the map's CRC on",
        (
            (
                READER,
                "            crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == (crcs[index] if crcs else place.crc)\n",
                "            (not crcs and place.slot in self._state.stripes._readers)\n            or "
                "crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == (crcs[index] if crcs else place.crc)\n",
            ),
            (
                DESTAGE, "                        out.append(StripeBlock(lba, place.opnum, place.crc, block, place.slot))\n",
                "                        crc = __import__('head_node.volume.reader').volume.reader.crc32c(block)\n"
                "                        out.append(StripeBlock(lba, place.opnum, crc, block, place.slot))\n",
            ),
        ),
        (VOLUME,),
    ),
    one(
        "reads-behind-writes", "engine: a read never waits behind writes that wait for room", SERVICE,
        "        return bool(self._unserved) or not self._serving()\n",
        "        return bool(self._unserved or self._waiting) or not self._serving()\n", VOLUME,
    ),
    one(
        "eio-for-what-may-come-back", "engine: a failure that may pass is no error for a read", READER,
        "        if error is not None:\n            raise _ShardAway from error\n",
        "        if error is not None:\n            return None\n", VOLUME,
    ),
    one(
        "away-read-not-asked-again", "engine: a read that waits for sleds is asked again when one is attached", SERVICE,
        "        self._away.attached()\n", "        pass\n", VOLUME,
    ),
    one(
        "attach-missed", "engine: a sled attached while a read fails for want of it is not missed", SERVICE,
        "        if newer:\n", "        if False:\n", VOLUME,
    ),
    one(
        "whole-run-or-nothing", "engine: each row of a run is rebuilt from any k shards that have it", READER,
        "        sources_of = [tuple(piece.shard for piece in pieces if piece.good[row]) for row in rows]\n",
        "        sources_of = [tuple(piece.shard for piece in pieces if all(piece.good)) for row in rows]\n", VOLUME,
    ),
    one(
        "exposed-at-once", "D1: a lack of sleds shorter than a restart exposes nothing", DESTAGE,
        "        if self._exposed_stripes and (left_s <= 0 or self.pressed()):\n", "        if self._exposed_stripes:\n", VOLUME,
    ),
    one(
        "exposed-although-forbidden", "D1: the volume's policy says whether stripes may be exposed", DESTAGE,
        "        if self._exposed_stripes and (left_s <= 0 or self.pressed()):\n",
        "        if left_s <= 0 or self.pressed():\n", VOLUME,
    ),
    one(
        "exposed-forgotten", "D1: exposed stripes count after a restart too", STRIPES,
        "        self.exposed_count = int(np.count_nonzero(shards < self._shards))\n", "", VOLUME,
    ),
    one(
        "failing-drives-count", "D1: a drive that takes no shard is none of the k + 1", "head_node/volume/stripewriter.py",
        "                self._failing.add(index)\n", "                pass\n", VOLUME,
    ),
    one(
        "compaction-sticks", "engine: compaction leaves a slot alone that it cannot move", DESTAGE,
        "        victims = stripes.emptiest(64, full, self._slots_left_alone())\n",
        "        victims = stripes.emptiest(64, full)\n", VOLUME,
    ),
    one(
        "lost-whatever-is-there", "engine: LOST names a version in a stripe, and nothing else", BLOCKMAP,
        '            keep = (old["opnum"] == opnums[chosen]) & (old["slot"] == slots[chosen])\n',
        '            keep = old["slot"] < LOST\n', VOLUME,
    ),
    one(
        "lost-of-another-stripe", "engine: LOST names the stripe that held the block", "head_node/volume/state.py",
        "        chosen = blocks[same]\n", "        chosen = blocks\n", VOLUME,
    ),
    one(
        "lost-what-can-be-read", "engine: what can be read is never declared lost", "head_node/volume/lost.py",
        "            report.readable += 1\n", "            lost.append(version)\n", VOLUME,
    ),
    one(
        "commit-point-not-in-the-batches", "D1: each batch carries the commit point", LOG,
        "committed = chunk.before, min(self.commit_point(), chunk.before.opnum)\n", "committed = chunk.before, 0\n",
        COMMIT_POINT,
    ),
    one(
        "commit-point-not-noted", "D1: the commit point is noted when the volume goes idle",
        "head_node/volume/commit_point.py", "        elif seen[0] > self._promise.promise.committed[0]:\n",
        "        elif False:\n", COMMIT_POINT,
    ),
    one(
        "lost-end-leads", "D1: a log that ends below the commit point does not lead", ENGINE,
        "        if forced_epoch <= lost.epoch:\n", "        if False:\n", COMMIT_POINT,
    ),
    one(
        "log-not-held", "resync: the log is held for a member that catches up", CHECKPOINTING,
        "        point = needed if oldest is None else min(", "        point = needed if True else min(",
        f"{CLUSTER}/test_catching_up.py",
    ),
    one(
        "clients-keep-the-lead", "resync: a member that catches up gains on the clients", "head_node/volume/log_hold.py",
        "CLIENT_SHARE: Final = 2\n", "CLIENT_SHARE: Final = 1\n", f"{VOLUME}/test_log_hold.py",
    ),
)  # fmt: skip
