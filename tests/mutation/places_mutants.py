# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of who has a place at an NVMe/TCP port, and who has to give it up, dropped."""

from mutant import EXPORT, SLED

ASSOCIATIONS = "sled_controller/fabric/associations.py"
COMMAND = "sled_controller/fabric/connect.py"
TARGET = "sled_controller/fabric/target.py"
ASSOCIATION = "sled_controller/association.py"
PLACING = "sled_controller/places.py"
HOLDERS = f"{SLED}/test_places.py"
SHARES = "head_node/export/nvme/shares.py"
VOLUME = "head_node/export/nvme/subsystem.py"
PORT = f"{EXPORT}/test_nvme_places.py"
GUARD = f"{EXPORT}/test_nvme_guard.py"
EXCHANGES = f"{SLED}/fabric/test_exchanges.py"
DOING = "sled_controller/fabric/exchanges.py"
CONNECT = f"{SLED}/fabric/test_connect.py"

PLACES = (
    (
        "second-connect-ends-the-first", "connect: a queue that exists stays", COMMAND,
        "        return ConnectRefused(Status.COMMAND_SEQUENCE_ERROR)  # the one that exists stays\n",
        "        association.end('a second Connect')\n        return ConnectRefused(Status.COMMAND_SEQUENCE_ERROR)\n",
        CONNECT,
    ),
    (
        "io-queue-from-anywhere", "connect: a host without a secret connects its queues from one address", COMMAND,
        "    if not association.authenticates and association.queues[0].peer_host != queue.peer_host:\n", "    if False:\n", CONNECT,
    ),
    (
        "newest-connect-has-the-queue", "connect: who authenticates first has the queue", ASSOCIATIONS,
        "            self.proving[queue] = None\n",
        "            for other in list(self.proving):\n"
        "                other.end('')\n"
        "            self.proving[queue] = None\n", CONNECT,
    ),
    (
        "one-queue-breaks-them-all", "connect: what breaks on one of several I/O queues says nothing of the rest", TARGET,
        "            association.queue_gone(self.queue_id, reason)\n        else:\n            self.give_up(reason)\n\n    def end",
        "            association.end(reason)\n        else:\n            self.give_up(reason)\n\n    def end", CONNECT,
    ),
    (
        "controller-ids-in-turn", "connect: controller ids cannot be foretold", ASSOCIATIONS,
        "            number = self._first + int.from_bytes(self._entropy.bytes(ID_BYTES), \"little\") % self._span\n",
        "            number = self._first + (len(self.live) + len(self._former)) % self._span\n", CONNECT,
    ),
    (
        "guesses-without-end", "connect: a connection has few guesses", TARGET,
        "        if self._connects_refused >= CONNECTS_REFUSED_MAX:\n", "        if False:\n", CONNECT,
    ),
    (
        "host-id-of-the-head", "connect: a head gives another host id with each association", "sled_controller/fabric/client.py",
        "host_id=self._host_id, controller_id", "host_id=self._head_id, controller_id",
        f"{SLED}/fabric/test_client_against_target.py",
    ),
    (
        "trusted-for-ever", "F1: standing follows from what holds now", ASSOCIATION,
        "            if slot.holds(now_ms):\n", "            if True:\n", HOLDERS,
    ),
    (
        "expired-is-standing", "F1: an expired slot is no standing", "sled_controller/attach.py",
        "        return self.state.holder is self and self.key_current and now_ms <= self.expires_ms\n",
        "        return self.state.holder is self and self.key_current\n", HOLDERS,
    ),
    (
        "retired-key-is-standing", "F1: a slot of a retired key is no standing", "sled_controller/attach.py",
        "        return self.state.holder is self and self.key_current and now_ms <= self.expires_ms\n",
        "        return self.state.holder is self and now_ms <= self.expires_ms\n", HOLDERS,
    ),
    (
        "keys-take-all-places", "places: a head key has few associations", PLACING,
        "        while len(same) > KEY_ASSOCIATIONS_MAX:\n", "        while False:\n", HOLDERS,
    ),
    (
        "holders-take-all-places", "places: a quarter is for those on their way", PLACING,
        "        self._holders_max = bound - max(1, bound // 4)\n", "        self._holders_max = bound\n", HOLDERS,
    ),
    (
        "no-share-of-places", "places: the key that has most gives first", PLACING,
        "        if most <= count[association.key] + 1:\n", "        if True:\n", HOLDERS,
    ),
    (
        "sessions-take-all-places", "places: sessions that hold nothing leave room", PLACING,
        "            self._bound_sessions(association)\n", "            pass\n", HOLDERS,
    ),
    (
        "fence-leaves-associations", "places: a fence above a holder ends its other associations", ASSOCIATION,
        "            self.subsystem.places.fenced(former_holder, lost_by)\n", "            pass\n", HOLDERS,
    ),
    (
        "attach-number-brings-back", "F3: an attach number alone does not bring an old holder back", ASSOCIATION,
        "        return age < state.newest or (lost and age == state.newest)\n", "        return age < state.newest\n", HOLDERS,
    ),
    (
        "older-credential-supersedes", "F3: an older credential supersedes no newer one", ASSOCIATION,
        "        return age < state.newest or (lost and age == state.newest)\n", "        return lost and age <= state.newest\n",
        HOLDERS,
    ),
    (
        "attach-number-jumps", "F3: an attach number does not jump to the end", ASSOCIATION,
        "        if within and attach_number - state.fence.attach_number > ATTACH_STEP_MAX:\n", "        if False:\n", HOLDERS,
    ),
    (
        "attach-numbers-one-by-one", "cluster: a head finds the attach number in few steps", "head_node/cluster/attachments.py",
        "                    step = min(2 * step, ATTACH_STEP_MAX)\n", "", "tests/unit/head_node/cluster/test_attachments.py",
    ),
    (
        "strangers-take-all-connections", "places: hosts believed by their names never have the last quarter", SHARES,
        "        if self.total < self._named_max:\n            return True\n        share", "        if True:\n            return True\n        share",
        PORT,
    ),
    (
        "proven-wait-for-strangers", "places: hosts that authenticate come first", SHARES,
        "        if named is not None:\n", "        if False:\n", PORT,
    ),
    (
        "no-share-for-volumes", "places: each volume has its share of the connections", SHARES,
        "        if volume.occupied >= share or most is None or most.occupied <= share:\n", "        if True:\n", PORT,
    ),
    (
        "greedy-host-fills-a-volume", "places: a host with many associations gives one to another host", VOLUME,
        "            if not named or max(count.values()) <= count[request.host_nqn] + 1:\n", "            if True:\n", PORT,
    ),
    (
        "names-put-hosts-out", "places: a host that speaks keeps its place no matter who gives its name", VOLUME,
        "    return same and now_ns - association.heard_ns() > max(kato_ms * MS * 3 // 4, SILENT_NS_MIN)\n", "    return same\n", PORT,
    ),
    (
        "claims-put-hosts-out", "places: a claim to authenticate puts no host out", VOLUME,
        "        if len(self.hosts) >= HOSTS_MAX and len(strangers) >= ON_THE_WAY_MAX:\n", "        if False:\n", GUARD,
    ),
    (
        "keep-alive-for-ever", "places: a keep-alive timer has an upper bound", COMMAND,
        "    elif kato_ms > queue.port.kato_ms_max:\n", "    elif False:\n", PORT,
    ),
    (
        "keep-alive-set-for-ever", "places: nor is it set above that bound later",
        "sled_controller/fabric/standard_controller.py",
        "        elif feature == Feature.KEEP_ALIVE_TIMER and value > queue.port.kato_ms_max:\n", "        elif False:\n", PORT,
    ),
    (
        "host-chooses-the-cost", "exchanges: no group above the ceiling unless it is the floor", "sled_controller/fabric/dhchap/terms.py",
        "        return tuple(each for each in self.groups if each <= max(self.group_floor, GROUP_CEILING))\n",
        "        return self.groups\n", EXCHANGES,
    ),
    (
        "exchanges-on-the-loop", "exchanges: carried out beside the event loop", DOING,
        "        if self._loop is None:\n            work()", "        if True:\n            work()", EXCHANGES,
    ),
    (
        "exchanges-without-rest", "exchanges: half of the time at most", DOING,
        "call_later(min(took_ns, REST_NS_MAX) / NS_PER_S, self._rested)", "call_later(0, self._rested)", EXCHANGES,
    ),
    (
        "one-source-takes-the-line", "exchanges: sources take turns", DOING,
        "            self._waiting[source] = waiting  # behind the other sources\n",
        "            self._waiting = {source: waiting, **self._waiting}\n", EXCHANGES,
    ),
    (
        "line-without-end", "exchanges: few of a source wait", DOING,
        "        if self._count >= WAITING_MAX or (waiting is not None and len(waiting) >= WAITING_OF_SOURCE_MAX):\n",
        "        if False:\n", EXCHANGES,
    ),
    (
        "namespace-page-for-each-reader", "bounds: a page that any host may read is made once", "sled_controller/subsystem.py",
        "        if not self._namespace_page:\n", "        if True:\n", HOLDERS,
    ),
    (
        "manager-changes-its-key", "places: an association counts for one key as long as it lives", ASSOCIATION,
        "        return self.host_nqn if self.manages else self.holder\n",
        "        return self.host_nqn if self.manages and not self.holder else self.holder\n", HOLDERS,
    ),
    (
        "flood-of-connects-puts-others-out", "places: the address that has most makes room", ASSOCIATIONS,
        "key=lambda each: count[each.source]", "key=lambda each: 0 * count[each.source]",
        f"{SLED}/fabric/test_associations.py",
    ),
    (
        "flood-of-connections-puts-others-out", "places: the address that has most connections makes room",
        "sled_controller/fabric/target_server.py",
        "(each for each in those if each[0].source == source)", "(each for each in those if source is not None)",
        f"{SLED}/fabric/test_target_server.py",
    ),
    (
        "deleting-is-a-free-pass", "F1: a column that is being deleted takes space once more when it is made again",
        "sled_controller/storage/sled_storage.py",
        "        return (volume, column) in self._creating or self.namespace_of(volume, column) is not None\n",
        "        return any(taken == column for taken, _ in self.columns_of(volume))\n", f"{SLED}/test_space.py",
    ),
    (
        "wrong-time-noted-behind-the-statement", "expiry: what is noted while a statement is written does not undo it",
        "sled_controller/subsystem.py", "        if not self._statements_under_way:\n", "        if True:\n",
        f"{SLED}/test_subsystem_time.py",
    ),
    (
        "retired-behind-the-statement", "expiry: a retirement while a statement is written does not undo it",
        "sled_controller/subsystem.py", "        if state.busy or self._statements_under_way:\n", "        if state.busy:\n",
        f"{SLED}/test_subsystem_time.py",
    ),
    (
        "open-volumes-wait-with-strangers", "floods: a host that has nothing to prove has its piece at once",
        "sled_controller/fabric/target_server.py",
        "        queue.arrived(nbytes, self._boottime_ns())\n        if queue.standing >= Standing.NAMED:\n",
        "        queue.arrived(nbytes, self._boottime_ns())\n        if queue.standing > Standing.NAMED:\n",
        f"{EXPORT}/test_nvme_server.py",
    ),
    (
        "statements-of-time-cost-nothing", "floods: each look at a signature is a costly step",
        "sled_controller/fabric/vendor_admin.py",
        "        AdminOpcode.RETIRE,\n        AdminOpcode.TIME_STATEMENT,\n", "        AdminOpcode.RETIRE,\n",
        f"{SLED}/fabric/test_controller.py",
    ),
)  # fmt: skip
