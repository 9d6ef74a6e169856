# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of sleds and their fabric, dropped."""

from mutant import ATTACH, AUTHORITY, FENCING, SESSION, SLED, SLED_TIME, STORAGE, SUBSYSTEM, VENDOR_IO, one

TIME_TESTS = tuple(f"{SLED}/test_{name}.py" for name in ("sled_time", "subsystem_time"))
JOURNAL_TESTS = f"{SLED}/storage/test_journal.py"

SLEDS = (
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
        "        return self._put(FenceEntry(volume, fence), done)\n",
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
        "BootEntry(storage.boot_counter + 1)", "BootEntry(max(1, storage.boot_counter))", SLED,
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
        "idle-peers-not-asked", "ports: an idle peer is asked for a sign of life", "sled_controller/fabric/keepalive.py",
        "        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n", "", SLED,
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
        "learnt-time-outlives-the-clock", "clocks: issue times count as far as the sled's own clock bears them out", SLED_TIME,
        "        return min(learned_ms, own_ms + LEAD_MS_MAX)\n", "        return learned_ms\n", *TIME_TESTS,
    ),
    one(
        "lead-kept-at-once", "clocks: a lead is kept when it has lasted", SLED_TIME,
        "        if run_on_ms - since_ms < HOLD_MS:\n", "        if run_on_ms - since_ms < 0:\n", *TIME_TESTS,
    ),
    one(
        "unsure-taken-for-valid", "clocks: after a start without a clock nothing older counts", SUBSYSTEM,
        " or self.time.unsure_of(credential.issued_ms):", ":", *TIME_TESTS,
    ),
    one(
        "time-statement-replayed", "clocks: a statement of time is taken once", SUBSYSTEM,
        "        if known is not None and statement.serial <= known.serial:\n", "        if known is not None and statement.serial < 0:\n", *TIME_TESTS,
    ),
    one(
        "journal-not-read", "F2: a sled's fences outlive its devices", STORAGE,
        "super().__init__(TableContent() if journal is None else journal.content)", "super().__init__(TableContent())", JOURNAL_TESTS,
    ),
    one(
        "receipt-without-journal", "F2: a fence is complete when device and journal have it", STORAGE,
        "        self.journal.append(entries, both.second)\n",
        "        self.journal.append(entries, lambda _: None)\n        both.second(0)\n", JOURNAL_TESTS,
    ),
    one(
        "start-comes-twice", "F2: a boot counter is one start's", "sled_controller/sled_start.py",
        "        if same and self.boot_id", "        if not same and self.boot_id", f"{AUTHORITY}/test_sled_starts.py",
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
        "forgotten-and-time-set-back", "F2: what a forgotten fence kept out stays out when time is set back", SUBSYSTEM,
        "            retired is not None\n            and credential.expires_ms < retired.over_ms\n",
        "            False\n            and credential.expires_ms < retired.over_ms\n", *TIME_TESTS,
    ),
    one(
        "old-statement-believed", "F2: a fence whose credential expires later stays", SUBSYSTEM,
        " or (raised_by and not self._over(raised_by, over_ms)):", ":", AUTHORITY,
    ),
    one(
        "reconnect-without-drain", "F3: a new attach of the same epoch drains the former one", ATTACH,
        "        if holder.in_flight:\n            self.former.append(holder)\n",
        "        if holder.in_flight and holder.epoch != self.fence.epoch:\n            self.former.append(holder)\n", SLED,
    ),
)  # fmt: skip
