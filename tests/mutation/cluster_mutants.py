# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of the authority and of the cluster of heads, dropped."""

from mutant import (
    AUTHORITY,
    CLEANUPS,
    CLUSTER,
    CONTROLLER,
    ENDS,
    ISSUE_TIME,
    LEASE,
    MEMBERSHIP,
    PACE,
    PRIMARY,
    RECEIVER,
    RETIREMENT,
    SLED_STARTS,
    STORE,
    TAILS,
    TAKEOVER,
    TRANSITIONS,
    Mutant,
    one,
)

CLUSTERS = (
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
        "keep-what-diverges", "F5: a member truncates what the new primary does not have", RECEIVER,
        "            await self._engine.truncate_after(order.after_opnum)\n", "            pass\n", CLUSTER,
    ),
    one(
        "durable-before-sync", "F5: a member says durable of what is", RECEIVER,
        "            self._engine.follow_append(payload)\n",
        "            self._engine.follow_append(payload)\n            self._durable(self._engine.tail.opnum)\n", CLUSTER,
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
        "half-open-follower", "cluster: a silent primary is left", RECEIVER,
        "        if not self._heard and self._work is None:\n", "        if False:\n", CLUSTER,
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
        "serve-while-handing-over", "F7: who hands over answers no one any more", PRIMARY,
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
        "liar-stays-out", "F6: a sled that lied is used again once it has restarted", "head_node/cluster/attachments.py",
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
        "wrong-sleds-followed", "clocks: sleds that have still to take a statement of time move nothing", "head_node/authority/authority.py",
        "self._fencer.sled_times(await self.time.without_wrong(record))", "self._fencer.sled_times(record)", f"{AUTHORITY}/test_time_repair.py",
    ),
    one(
        "promises-brought-back-early", "F2: what a wrong time promised is void when its keys are gone",
        "head_node/authority/time_repair.py",
        " and all(key.key_id >= first_key for key in (await self._keyring.current()).keys)", "", f"{AUTHORITY}/test_time_repair.py",
    ),
    one(
        "heads-word-noted", "F2: the authority notes only starts that a sled has signed", SLED_STARTS,
        "                found = await self._fencer.start_of(record)\n", "                found = next(iter(said[record.id]))\n", f"{AUTHORITY}/test_sled_starts.py",
    ),
    one(
        "put-back-and-used", "F2: a head uses no sled whose boot counter went back", "head_node/cluster/sleds.py",
        "            if why := self.seen.went_back(client.start):\n", "            if why := \"\":\n", f"{AUTHORITY}/test_sled_starts.py",
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
        "forgotten-before-clean", "F2: a sled is not asked to forget the fence of a volume that it still has something of",
        RETIREMENT, "            unclean = cleanups[volume].value.sleds if volume in cleanups else ()\n",
        "            unclean = ()\n", AUTHORITY,
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
        "resync-without-pause", "resync: one that comes to nothing is not repeated at once for ever",
        "head_node/cluster/replication.py", "        if count < RESYNCS_AT_ONCE:\n", "        if True:\n", CLUSTER,
    ),
    one(
        "forfeited-leads", "D1: a log that is to be set aside takes no epoch", "head_node/cluster/volume_controller.py",
        "        if self._forfeited:\n", "        if False:\n", CLUSTER,
    ),
    one(
        "last-copies-removed", "logs: one set aside is removed only when another member has all",
        "head_node/log_directories.py", "            if not others:\n                raise OSError(", "            if False:\n                raise OSError(",
        "tests/unit/head_node/test_log_directories.py",
    ),
)  # fmt: skip
