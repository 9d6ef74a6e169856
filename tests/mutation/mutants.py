# ruff: noqa: E501 (the edits quote lines of the sources)
"""Every rule of the design, dropped: what would be wrong, the edits that make it so, and the tests that know the rule.

An edit is (file, text, replacement); the text occurs exactly once in the file. The simulator is asked first; `tests` are
the ones to ask when it is not what can see the rule (a sled's answer to a forged command, say).
"""

from dataclasses import dataclass

from hang_mutants import HANGS
from log_mutants import LOGS
from sync_mutants import SYNCS

VOLUME = "tests/unit/head_node/volume"
CLUSTER = "tests/unit/head_node/cluster"
AUTHORITY = "tests/unit/head_node/authority"
EXPORT = "tests/unit/head_node/export"
SLED = "tests/unit/sled_controller"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule that is broken."""

    name: str
    rule: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]
    simulated: bool = True
    """Whether the simulator may see it."""


def one(name: str, rule: str, file: str, text: str, replacement: str, *tests: str) -> Mutant:
    return Mutant(name, rule, ((file, text, replacement),), tests)


TRANSITIONS = "head_node/authority/transitions.py"
CONTROLLER = "head_node/cluster/volume_controller.py"
TAKEOVER = "head_node/cluster/takeover.py"
TAILS = "head_node/cluster/tails.py"
PACE = "head_node/cluster/pace.py"
ISSUE_TIME = "head_node/authority/issue_time.py"
CLEANUPS = "head_node/authority/cleanups.py"
LEASE = "head_node/cluster/lease.py"
MEMBERSHIP = "head_node/cluster/membership.py"
RECEIVER = "head_node/cluster/receiver.py"
ENGINE = "head_node/volume/engine.py"
REPLICA = "head_node/volume/replica.py"
CHECKPOINTING = "head_node/volume/checkpointing.py"
LOG = "head_node/volume/log.py"
SERVICE = "head_node/volume/service.py"
STRIPES = "head_node/volume/stripes.py"
DESTAGE = "head_node/volume/destage.py"
READER = "head_node/volume/reader.py"
BLOCKMAP = "head_node/volume/blockmap.py"
PRIMARY = "head_node/cluster/primary.py"
STORE = "tests/unit/head_node/store"
ENDS = tuple(f"{CLUSTER}/test_{name}.py" for name in ("tails", "divergence", "follower"))
COMMIT_POINT = f"{VOLUME}/test_commit_point.py"
FENCING = "sled_controller/fencing.py"
ATTACH = "sled_controller/attach.py"
STORAGE = "sled_controller/storage/sled_storage.py"
SESSION = "sled_controller/session.py"
SUBSYSTEM = "sled_controller/subsystem.py"
RETIREMENT = "head_node/authority/retirement.py"
VENDOR_IO = "sled_controller/fabric/vendor_io.py"
NBD_SERVER = "head_node/export/nbd_server.py"
RELAYED = "head_node/export/relayed.py"

MUTANTS = (
    one(
        "no-compare-and-put", "F4: a takeover counts only against the version that was read", TRANSITIONS,
        "    if record.version != expected_version:\n        raise RecordChanged(record)\n", "", AUTHORITY,
    ),
    one(
        "restart-within-epoch", "F4: a restarted primary takes a new epoch", TRANSITIONS,
        "    epoch = _next_epoch(record)\n",
        "    epoch = record.epoch if record.primary == head else _next_epoch(record)\n",
        AUTHORITY,
    ),
    Mutant(
        "wiped-log-eligible", "F5: a head whose log was wiped is another member",
        (
            (TRANSITIONS, "    elif member in record.current:\n", "    elif record.member(head) is not None:\n"),
            (TAKEOVER, "    if member is None or member.log != situation.log:\n", "    if member is None:\n"),
        ),
        (AUTHORITY, CLUSTER),
    ),
    Mutant(
        "no-seal", "F5: the link is closed and the log settled before the epoch is asked for",
        (
            (CONTROLLER, "            await follower.seal()\n", ""),
            (
                CONTROLLER, "            follower.follow(None if step is Step.IDLE else other)\n",
                "            follower.follow(self.record.primary)\n",
            ),
        ),
        (CLUSTER,),
    ),
    Mutant(
        "ask-before-seal", "F5: first the seal, then the question",
        (
            (
                CONTROLLER, "            follower.follow(None if step is Step.IDLE else other)\n",
                "            follower.follow(self.record.primary)\n",
            ),
            (CONTROLLER, "            await follower.seal()\n", ""),
            (
                CONTROLLER,
                "            return await ask(self._services.authority, record, engine.log_id, self._services.env, in_doubt=in_doubt)\n",
                "            grant = await ask(self._services.authority, record, engine.log_id, self._services.env, in_doubt=in_doubt)\n"
                "            await follower.seal()\n            return grant\n",
            ),
        ),
        (CLUSTER,),
    ),
    one(
        "seal-before-settled", "F5: what was appended is durable before the epoch is asked for",
        "head_node/cluster/follower.py", "                await self._settle()\n", "", CLUSTER,
    ),
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
        "remove-before-put", "F5: a member counts until its removal has succeeded", MEMBERSHIP,
        "            return await self._put(remove=member, lost=lost)\n",
        "            record = self._membership.record\n"
        "            left = tuple(other for other in record.current if other != member)\n"
        "            self._membership.record = __import__('dataclasses').replace(record, current=left)\n"
        "            self._on_change()\n"
        "            return await self._put(remove=member, lost=lost)\n",
        CLUSTER,
    ),
    one(
        "add-after-put", "F5: a member counts before its addition is sent", MEMBERSHIP,
        "                self._membership.begin_add(member)\n                self._on_change()\n                if not await",
        "                if not await", CLUSTER,
    ),
    one(
        "member-forgets-epochs", "F5: a member refuses records below the highest epoch that it has seen", REPLICA,
        "            raise StaleEpoch(epoch, self.highest_epoch)\n        await self._promise.see_epoch(epoch)\n",
        "            return\n", VOLUME, CLUSTER,
    ),
    one(
        "keep-what-diverges", "F5: a member truncates what the new primary does not have", RECEIVER,
        "            await self._engine.truncate_after(order.after_opnum)\n", "            pass\n", CLUSTER,
    ),
    one(
        "durable-before-sync", "F5: a member says durable of what is", RECEIVER,
        "            self._engine.follow_append(payload)\n",
        "            self._engine.follow_append(payload)\n            self._durable(self._engine.tail.opnum)\n", CLUSTER,
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
        "lease-from-receipt", "F7: the lease counts from sending the heartbeat", LEASE,
        "        known.answered_ns = sent_ns\n", "        known.answered_ns = sent_ns + self.terms.ttl_ns\n", CLUSTER,
    ),
    one(
        "promise-after-seal", "F7: a sealed member promises nothing", LEASE,
        "        if self._sealed:\n            return False\n", "", CLUSTER,
    ),
    Mutant(
        "seal-under-promise", "F7: a promise binds for a TTL",
        (
            (LEASE, "        return now_ns >= self._bound_until_ns\n", "        return True\n"),
            (
                TAKEOVER, "    if situation.now_ns >= situation.bound_until_ns:\n        return Step.CANDIDATE, None\n",
                "    if situation.now_ns >= situation.bound_until_ns - 800_000_000:\n        return Step.CANDIDATE, None\n",
            ),
        ),
        (CLUSTER,),
    ),
    one(
        "serve-before-receipts", "F7: receipts from N - m sleds before serving", TAKEOVER,
        "    return record.geometry.data_shards + (not record.columns)\n", "    return 0\n", CLUSTER,
    ),
    one(
        "fence-lets-old-epochs", "F1: the pair must equal the fence's", FENCING,
        "    if claim.epoch != fence.epoch or claim.attach_number != fence.attach_number:\n",
        "    if claim.epoch == fence.epoch and claim.attach_number != fence.attach_number:\n", SLED,
    ),
    one(
        "fence-lets-old-attaches", "F1: the attach number must equal the fence's", FENCING,
        "    if claim.epoch != fence.epoch or claim.attach_number != fence.attach_number:\n",
        "    if claim.epoch != fence.epoch:\n", SLED,
    ),
    one(
        "attach-below-fence", "F2: a fence is never lowered", FENCING,
        "    if epoch < fence.epoch:\n        return AttachVerdict.FENCED_OFF\n", "", SLED,
    ),
    one(
        "equal-epoch-other-holder", "F2: an equal epoch of another holder is refused", FENCING,
        "    if holder != fence.holder:\n        return AttachVerdict.OTHER_HOLDER\n", "", SLED,
    ),
    one(
        "fence-in-memory-only", "F2: a fence is durable before its receipt", STORAGE,
        "        return self._append_everywhere((FenceEntry(volume, fence),), done)\n",
        "        return self._append_everywhere((), done)\n", SLED,
    ),
    one(
        "receipt-before-drain", "F3: everything admitted below is over before the receipt", ATTACH,
        "AttachState.RESETTING) and not self._volume.former:", "AttachState.RESETTING):", SLED,
    ),
    one(
        "receipt-without-flush", "F3, D1: drives are flushed before the receipt", ATTACH,
        "            self._each(self._devices.of_volume(self._volume.fence), self._flush, self._settle)\n",
        "            self._settle()\n", SLED,
    ),
    one(
        "timeout-is-drained", "F3: a command that hangs is not over", ATTACH,
        "        self._each(sorted(stuck - {ON_TABLE}), self._reset, self._release_table)\n",
        "        self._volume.former.clear()\n        self._release_table()\n", SLED,
    ),
    one(
        "r2t-data-judged-early", "F3: data after R2T is judged when it is complete", VENDOR_IO,
        "        self._run(transfer.sqe, transfer.slot, transfer.data, None, transfer.total)\n",
        "        transfer.slot.fence = type(transfer.slot.fence)(transfer.slot.volume, transfer.slot.epoch, "
        "transfer.slot.attach_number)\n"
        "        transfer.slot.attached = True\n"
        "        self._run(transfer.sqe, transfer.slot, transfer.data, None, transfer.total)\n", SLED,
    ),
    one(
        "boot-counter-stands-still", "D1: a head hears of a sled's power cycle", STORAGE,
        "        storage.boot_counter += 1\n", "        storage.boot_counter = max(1, storage.boot_counter)\n", SLED,
    ),
    one(
        "gmac-counter-reset", "wire: no nonce twice with one key", SESSION,
        "        mac = self._macs.get((queue_id, direction))\n", "        mac = None\n", SLED,
    ),
    one(
        "gmac-counter-not-checked", "wire: a count exceeds the last one", SESSION,
        "        if count <= self._last:\n            raise NonceReused(count, self._last)\n", "", SLED,
    ),
    one(
        "r2t-data-without-mac", "F1: data is authenticated before it is used", VENDOR_IO,
        "        if not mac.check_parts(transfer.count, tag, (signed, transfer.data)):\n"
        "            self._bad_mac(transfer.cid)\n            return\n", "", SLED,
    ),
    one(
        "expired-credential", "credential: not after its expiry in sled time", FENCING,
        "    if now_ms > claim.expires_ms:\n        return Verdict.EXPIRED\n", "", SLED,
    ),
    one(
        "rights-ignored", "credential: nothing beyond its rights", FENCING,
        "    if not claim.rights & right:\n        return Verdict.NO_RIGHT\n", "", SLED,
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
        "        if losses.code != accepted_loss:\n", "        if False:\n", VOLUME,
    ),
    one(
        "one-checkpoint", "D1: a checkpoint has a copy", "head_node/volume/room.py",
        "            await self._replace(CHECKPOINT_COPY, buffers)\n", "            pass\n", VOLUME,
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
        "gone-clients-served", "relay: unadmitted requests of a peer that is gone are dropped",
        "head_node/export/peer.py",
        "    return _state(transport) != _TCP_ESTABLISHED\n", "    return False\n", EXPORT,
    ),
    one(
        "ended-clients-served", "relay: what waits in the volume is not begun for a client that closed its side",
        NBD_SERVER,
        "        if self.phase is Phase.ENDED or (self.phase is Phase.ACTIVE and self._peer_gone()):\n",
        "        if self.phase is Phase.ACTIVE and self._peer_gone():\n", EXPORT,
    ),
    one(
        "limits-forgotten-at-the-end", "relay: what a bound keeps back is not begun for a client that closed its side",
        RELAYED, "        if core.abandoned or (self._client_closed and core.limited):\n", "        if core.abandoned:\n",
        EXPORT,
    ),
    one(
        "half-close-ends-at-once", "NBD: a client that closes its side gets the answers to what was begun", NBD_SERVER,
        "        if self.phase is Phase.ACTIVE and not self.limited and self._volume.ready():\n", "        if False:\n",
        EXPORT,
    ),
    one(
        "relay-drops-at-end-of-file", "relay: a client's end reaches the primary behind what it sent", RELAYED,
        "        self._input_over = True\n        self._note_closed()\n        self._link.end()\n",
        "        self._link.lose(\"the client is gone\")\n", EXPORT,
    ),
    one(
        "turns-share-is-a-bound", "NBD: a turn's share keeps nothing back for good", "head_node/export/server.py",
        " and (core.limited or not peer_has_closed(self._transport)):\n", ":\n", EXPORT,
    ),
    one(
        "hints-round-outward", "NBD: a trim forgets whole blocks only", "head_node/export/requests.py",
        "    start, end = (offset + _BLOCK_MASK) & ~_BLOCK_MASK, (offset + length) & ~_BLOCK_MASK\n",
        "    start, end = offset & ~_BLOCK_MASK, (offset + length + _BLOCK_MASK) & ~_BLOCK_MASK\n", EXPORT,
    ),
    one(
        "hints-need-alignment", "NBD: a hint of any alignment succeeds", "head_node/export/requests.py",
        " & _BLOCK_MASK and command not in _HINTS:\n", " & _BLOCK_MASK:\n", EXPORT,
    ),
    one(
        "vanished-clients-stay", "NBD: a place comes free when the client's machine has vanished",
        "head_node/export/server.py", "        if has_vanished(self._transport, silence_s):\n", "        if False:\n", EXPORT,
    ),
    one(
        "closed-clients-stay", "NBD: a client that closed its side keeps its place for a stated time only",
        "head_node/export/server.py", "            and min(still_s, now_s - self._closed_s) > CLOSED_SECONDS_MAX\n", "            and False\n", EXPORT,
    ),
    one(
        "goodbye-unread-for-ever", "relay: a client that disconnected and reads nothing gives its place back", RELAYED,
        "        if finished and still_s > self._peer_silence_s:\n",
        "        if False:\n", EXPORT,
    ),
    one(
        "slow-readers-cut", "NBD: a client that is alive may read as slowly as it likes", "head_node/export/server.py",
        ", unread_too=False)\n", ")\n", EXPORT,
    ),
    one(
        "idle-peers-not-asked", "ports: an idle peer is asked for a sign of life", "sled_controller/fabric/keepalive.py",
        "        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n", "", SLED,
    ),
    one(
        "relay-closes-softly", "relay: ended by reset, so that nothing unsent arrives later", "head_node/export/peer.py",
        "            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)\n", "            pass\n", EXPORT,
    ),
    one(
        "half-open-follower", "cluster: a silent primary is left", RECEIVER,
        "        if not self._heard and self._work is None:\n", "        if False:\n", CLUSTER,
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
        "one-fence-record", "F2: a fence is in two records on each device", "sled_controller/storage/table.py",
        "            for copy in (0, 1):\n                self._plan(copy, group, self._next_index)\n",
        "            for copy in (0,):\n                self._plan(copy, group, self._next_index)\n", SLED,
    ),
    one(
        "shutdown-outlives-a-reset", "NVMe: a controller reset ends a shutdown", "sled_controller/fabric/standard_controller.py",
        'the error log is empty."""\n        self._shut_down = False\n', 'the error log is empty."""\n', SLED,
    ),
    one(
        "no-reserve-of-descriptors", "bounds: what is open already can open another file",
        "sled_controller/descriptors.py", "self.limit - min(RESERVE, self.limit // 8) - used", "self.limit - used", SLED,
    ),
    one(
        "fence-forgotten-alone", "F2: a forgotten fence leaves the time that stands in for it",
        "sled_controller/storage/content.py", "self.issued_ms = max(self.issued_ms, over_ms)\n", "pass\n", SLED,
    ),
    one(
        "fence-forgotten-early", "F2: a fence is forgotten when its credentials have expired in sled time", SUBSYSTEM,
        "if self.time.now_ms() < over_ms or (", "if (", AUTHORITY,
    ),
    one(
        "forgotten-and-clock-set-back", "F2: sled time does not go behind a forgotten fence's", SUBSYSTEM,
        "        self.time.learn(over_ms)\n", "", AUTHORITY,
    ),
    one(
        "old-statement-believed", "F2: a fence whose credential expires later stays", SUBSYSTEM,
        " or (raised_by and not _over(raised_by, over_ms)):", ":", AUTHORITY,
    ),
    one(
        "signed-beyond-the-horizon", "F2: every credential expires before the horizon", RETIREMENT,
        "if found is None or found.value <= expires_ms:", "if found is None:", AUTHORITY,
    ),
    one(
        "signed-after-the-deletion", "F2: a credential for a deleted volume postpones its retirement", RETIREMENT,
        '"over_ms": max(horizon.value, found.value["over_ms"]),', '"over_ms": found.value["over_ms"],', AUTHORITY,
    ),
    one(
        "reconnect-without-drain", "F3: a new attach of the same epoch drains the former one", ATTACH,
        "        if holder.in_flight:\n            self.former.append(holder)\n",
        "        if holder.in_flight and holder.epoch != self.fence.epoch:\n            self.former.append(holder)\n", SLED,
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
        "relay-takes-late-frames", "relay: what comes after too long a silence is not looked at", "head_node/export/relay.py",
        "        if self.closed or self._silent():\n            return\n        self._heard_ns", "        if self.closed:\n"
        "            return\n        self._heard_ns", EXPORT,
    ),
    one(
        "serve-while-handing-over", "F7: who hands over answers nobody any more", PRIMARY,
        "        one the role goes on, so that its columns can be used to destage.\"\"\"\n        self.lease.end_term()\n"
        "        self._services.drop_clients(self.volume)\n",
        "        one the role goes on, so that its columns can be used to destage.\"\"\"\n", CLUSTER,
    ),
    one(
        "revoked-keeps-its-epoch", "F1, F4: revoking a primary costs the volume its epoch", TRANSITIONS,
        "primary=successor, epoch=_next_epoch(record))", "primary=successor, epoch=record.epoch)", AUTHORITY,
    ),
    one(
        "frozen-goes-on", "F4: the primary of a frozen volume stops", PRIMARY,
        "        if self.record.state is RecordState.FROZEN:\n"
        "            self.end(End.FROZEN, \"the volume is frozen until an operator recovers it\")\n        elif ",
        "        if ", CLUSTER,
    ),
    one(
        "recover-within-a-term", "F7: a frozen volume goes on after the term of every credential",
        "head_node/authority/recovery.py", "            if wait_ms := self.wait_ms(volume):\n",
        "            if (wait_ms := 0):\n", AUTHORITY,
    ),
    one(
        "restored-store-not-ahead", "authority: a restored store is ahead of what heads have seen",
        "head_node/store/interface.py", "RESTORED_REVISIONS_SKIPPED = 1 << 32\n", "RESTORED_REVISIONS_SKIPPED = 0\n", STORE,
        AUTHORITY,
    ),
    one(
        "key-sets-not-carried", "credential: heads carry new key sets to sleds", "head_node/cluster/head.py",
        "            self.sleds.push_key_set()\n", "            pass\n", CLUSTER,
    ),
    one(
        "namespaces-left", "delete: no namespace of a deleted volume is left", "head_node/cluster/attachments.py",
        "                        await place.attachment.delete_namespace(entry.nsid)\n", "                        pass\n", CLUSTER,
    ),
    one(
        "no-columns-to-delete", "delete: a volume without columns is deleted too", PRIMARY,
        "            if self.record.state is RecordState.DELETING:\n", "            if False:\n", CLUSTER,
    ),
    one(
        "lone-member-asks-without-pause", "herd: who gave an epoch up waits before it asks again", CONTROLLER,
        "            ttls = 2 if len(self.record.current) > 1 else 1\n",
        "            ttls = 2 if len(self.record.current) > 1 else 0\n", CLUSTER,
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
        "liar-stays-out", "F6: a sled that lied is used again once it has started anew", "head_node/cluster/attachments.py",
        "                    place.quarantined = place.quarantined and client.boot_counter == place.boot_counter\n", "",
        CLUSTER,
    ),
    one(
        "candidate-does-not-ask", "F5: a member with a log recovered from disk asks where the others end", TAILS,
        "        if member is None or member.log != self._engine.log_id or len(record.current) < 2:\n",
        "        if True:\n", *ENDS,
    ),
    one(
        "shorter-tail-leads", "F5: the highest (epoch, opnum) leads", TAILS,
        "        if found and not (vouched and had_turn):\n", "        if False:\n", *ENDS,
    ),
    one(
        "answers-not-waited-for", "F5: a log recovered from disk waits for each answer up to the bound", TAILS,
        "    if not waiting:\n", "    if True:\n", *ENDS,
    ),
    one(
        "answers-of-an-older-record", "F5: an answer counts for the version under which it was given", TAILS,
        "        if former is None or former.record.version != record.version:\n", "        if former is None:\n",
        *ENDS,
    ),
    one(
        "vouched-too-early", "F5: a member vouches only for what was committed in the epoch that it follows", RECEIVER,
        "        engine.vouched = epoch == self.epoch and first <= self._committed_there <= engine.durable\n",
        "        engine.vouched = self._committed_there <= engine.durable\n", *ENDS,
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
        "cut-below-the-commit-point", "D1: a member lets no primary cut what it knows as committed", RECEIVER,
        "        if lost and order.forced_epoch <= committed.epoch:\n", "        if False:\n", *ENDS,
    ),
    one(
        "divergence-not-noticed", "D1: committed records that the primary lacks freeze the volume",
        "head_node/cluster/replication.py", "        if not held and record.forced_epoch <= join.committed_epoch:\n",
        "        if False:\n", *ENDS,
    ),
    one(
        "serves-until-frozen", "D1: nothing is acknowledged while the freeze is on its way", PRIMARY,
        "        self._hold()\n        self._begin(\"diverged\", self._freeze_diverged(parted, ends))\n",
        "        self._begin(\"diverged\", self._freeze_diverged(parted, ends))\n", *ENDS,
    ),
    one(
        "doubt-forgotten", "D1: what a takeover without all answers may lack is set aside, not cut", TRANSITIONS,
        "    doubtful = epoch if in_doubt else record.doubtful_epoch\n", "    doubtful = record.doubtful_epoch\n", *ENDS,
    ),
    one(
        "diverged-recovered-unnamed", "D1: logs that part go on only from the one that an operator names",
        "head_node/authority/recovery.py", "            if parted and heir is None:\n", "            if False:\n",
        f"{AUTHORITY}/test_divergence.py",
    ),
    one(
        "slow-beside-none", "D1: a copy is slow only beside others that are fast", PACE,
        "            and delay_ns >= SLOW_FACTOR * reference_ns\n", "", CLUSTER,
    ),
    one(
        "slow-at-once", "members: a hiccup makes no copy slow", PACE,
        "if not copy.slow and copy.score == SLOW_WINDOWS:", "if not copy.slow and copy.score:", CLUSTER,
    ),
    one(
        "slow-below-the-policy", "D1: a slow member is kept where the policy needs it", "head_node/cluster/member_watch.py",
        "self._pace.slow(head) and removable:", "self._pace.slow(head):", f"{CLUSTER}/test_pace.py",
    ),
    one(
        "slow-for-ever", "members: a copy that is fast again is taken back", PACE,
        "            copy.slow, copy.score = False, 0\n", "", CLUSTER,
    ),
    one(
        "gray-members-kept", "members: a slow member is removed while another copy exists",
        "head_node/cluster/member_watch.py", "                self._begin(\"members\", self._remove(sender.member, slow))\n", "",
        CLUSTER,
    ),
    one(
        "issue-time-falls", "clocks: what is issued is never of an earlier time than before", ISSUE_TIME,
        "max(run_on_ms, time_ms if", "max(0, time_ms if", AUTHORITY,
    ),
    one(
        "issue-time-forgotten", "clocks: a restarted authority goes on from the time it issued", ISSUE_TIME,
        "            self._raise_to(self._kept_ms)\n", "            pass\n", AUTHORITY,
    ),
    one(
        "issue-time-follows-one", "clocks: no single sled moves issue time", ISSUE_TIME,
        "sorted(sled_times_ms)[enough - 1]", "max(sled_times_ms)", AUTHORITY,
    ),
    one(
        "count-of-the-clock", "clocks: a clock that is set does not make the authority forget nonces",
        "head_node/authority/authentication.py",
        "        return self._count_began_s + self._env.clock.boottime_ns() // NS_PER_S\n",
        "        return self._env.clock.wall_ms() // 1000\n", AUTHORITY,
    ),
    one(
        "expired-is-not-renewed", "clocks: a credential refused as expired within its term is renewed at once", PRIMARY,
        "            self._begin(\"renew\", self._renew(expired=over))\n", "            pass\n", CLUSTER,
    ),
    one(
        "strays-forgotten", "delete: sleds that could not be asked are named by the commit that drops the record",
        "head_node/authority/volumes.py", "left = tuple(strays) if record.epoch else ()", "left: tuple[UUID, ...] = ()", AUTHORITY,
    ),
    one(
        "cleanup-tried-once", "delete: a cleanup is kept until it is confirmed", CLEANUPS,
        "        if result == CLEANED:\n", "        if result:\n", f"{AUTHORITY}/test_cleanups.py",
    ),
    one(
        "cleanup-in-an-old-epoch", "F4: each visit of a cleanup has an epoch of its own", CLEANUPS,
        "epoch=max(found.value.epoch, seen) + 1)", "epoch=max(found.value.epoch, seen))", f"{AUTHORITY}/test_cleanups.py",
    ),
    one(
        "logs-left", "delete: a head that was away removes the log of a deleted volume", "head_node/cluster/head.py",
        "if view.deleted and self._remover is None:", "if False:", CLUSTER,
    ),
    one(
        "put-before-ready", "F5: the put is sent once the member holds everything committed", MEMBERSHIP,
        "                if not await self._becomes(ready):", "                if False:", CLUSTER,
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
    one(
        "resync-without-pause", "resync: one that comes to nothing is not repeated at once for ever",
        "head_node/cluster/replication.py", "        if count < RESYNCS_AT_ONCE:\n", "        if True:\n", CLUSTER,
    ),
    one(
        "last-copies-removed", "logs: one set aside is removed only when another member has all",
        "head_node/log_directories.py", "            if not others:\n                raise OSError(", "            if False:\n                raise OSError(",
        "tests/unit/head_node/test_log_directories.py",
    ),
)  # fmt: skip

MUTANTS += tuple(
    Mutant(name, rule, ((file, text, replacement),), (tests,), simulated=False)
    for name, rule, file, text, replacement, tests in (*SYNCS, *HANGS)
)
MUTANTS += tuple(one(*fields) for fields in LOGS)
