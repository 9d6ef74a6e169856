# ruff: noqa: E501 (the edits quote lines of the sources)
"""The rules about floods, logs and retries, dropped one at a time: (name, rule, file, text, replacement, tests)."""

TURNS = "sled_controller/turns.py"
TURNS_TESTS = "tests/unit/sled_controller/test_turns.py"
TARGET_TESTS = "tests/unit/sled_controller/fabric/test_target_server.py"
LINES = "sled_controller/line_budget.py"
LINES_TESTS = "tests/unit/sled_controller/test_line_budget.py"
LINK_TESTS = "tests/unit/head_node/cluster/test_connection.py"
TAKEOVER_TESTS = "tests/unit/head_node/cluster/test_takeover.py"
CONTROLLER = "head_node/cluster/volume_controller.py"

FLOODS = (
    (
        "strangers-have-all-the-time",
        "floods: strangers have a share of the loop's time",
        TURNS,
        "(now_ns - self.at_ns) * self.percent // 100)",
        "(now_ns - self.at_ns))",
        TURNS_TESTS,
    ),
    (
        "newcomers-come-last",
        "floods: who was served least comes next",
        TURNS,
        "        heappush(source.waiting, (turn.passed, self._number, turn))\n",
        "        heappush(source.waiting, (self._number, self._number, turn))\n",
        TURNS_TESTS,
    ),
    (
        "connections-before-sources",
        "floods: sources share alike",
        TURNS,
        "            heappush(self._queue, (source.passed, self._number, source))\n",
        "            heappush(self._queue, (source.passed // max(1, source.connections), self._number, source))\n",
        TURNS_TESTS,
    ),
    (
        "steps-without-bound",
        "floods: costly steps are bounded per source",
        TURNS,
        "        source.steps -= steps * NS_PER_S\n",
        "",
        TURNS_TESTS,
    ),
    (
        "trusted-leftovers-are-strangers",
        "floods: the trusted do not wait behind strangers",
        TURNS,
        "        if turn.trusted:\n            self._behind.append(turn)\n            return\n",
        "",
        TURNS_TESTS,
    ),
    (
        "whole-reads-in-one-turn",
        "floods: a turn carries out a bounded part of what a read brought",
        "sled_controller/fabric/target.py",
        "            if self.commands_left <= 0 or self.stalled:\n",
        "            if self.stalled:\n",
        TARGET_TESTS,
    ),
    (
        "hello-each-time",
        "floods: a hello is made once",
        "sled_controller/association.py",
        "        if self._handshake is None:\n            identity",
        "        if self.keys is None:\n            identity",
        TARGET_TESTS,
    ),
    (
        "handshakes-are-cheap",
        "floods: handshakes of strangers are bounded",
        "sled_controller/fabric/vendor_admin.py",
        "            queue.note_step()\n",
        "            pass\n",
        TARGET_TESTS,
    ),
    (
        "link-handshakes-are-cheap",
        "floods: handshakes of strangers are bounded",
        "head_node/cluster/connection.py",
        "        turn.charge(self._link.steps - steps)\n",
        "",
        LINK_TESTS,
    ),
    (
        "frames-in-one-turn",
        "floods: frames beyond a piece wait",
        "head_node/cluster/connection.py",
        "                frames_left -= 1\n",
        "",
        LINK_TESTS,
    ),
    (
        "options-in-one-turn",
        "floods: options of strangers are taken in their share",
        "head_node/export/server.py",
        "                self._received += self._buffer[:nbytes]\n                self._ask_for_turn()\n",
        "                self._received += self._buffer[:nbytes]\n                while self._take_options():\n                    pass\n",
        "tests/unit/head_node/export/test_server.py",
    ),
    (
        "pages-in-one-turn",
        "floods: pages are made in the strangers' share",
        "head_node/cluster/status_server.py",
        "            self._turn.ask()\n",
        "            self._take_turn()\n",
        "tests/unit/head_node/cluster/test_status_server.py",
    ),
    (
        "pages-made-for-each-request",
        "floods: a page that took long is given out again",
        "head_node/cluster/status_server.py",
        "        if begun_ns >= until_ns:\n",
        "        if True:\n",
        "tests/unit/head_node/cluster/test_status_server.py",
    ),
    (
        "requests-of-strangers-first",
        "floods: requests of strangers are taken in their share",
        "head_node/api/connections.py",
        "        if self._turn.trusted:\n            super()",
        "        if self.transport:\n            super()",
        "tests/unit/head_node/api/test_connections.py",
    ),
    (
        "lines-without-budget",
        "logs: lines of a kind are bounded",
        LINES,
        "        budget.lines -= 1\n",
        "",
        LINES_TESTS,
    ),
    (
        "kinds-without-bound",
        "logs: kinds are bounded",
        LINES,
        '        return kind if len(self._budgets) < KINDS_MAX else (record.name, "", "")\n',
        "        return kind\n",
        LINES_TESTS,
    ),
    (
        "standard-error-stays-behind",
        "logs: what an inherited descriptor writes is rotated too",
        "sled_controller/program_log.py",
        "                os.dup2(self.stream.fileno(), descriptor)\n",
        "                pass\n",
        "tests/unit/sled_controller/test_program_log.py",
    ),
    (
        "retries-at-one-rate",
        "retries: pauses grow",
        "sled_controller/backoff.py",
        "        self.failures += 1\n",
        "",
        "tests/unit/sled_controller/test_backoff.py",
    ),
    (
        "asks-for-ever",
        "retries: a refused takeover is asked for less and less often",
        CONTROLLER,
        "            if self._now_ns() < max(self._ask_at_ns, self._lead_at_ns):\n                return None\n",
        "",
        TAKEOVER_TESTS,
    ),
    (
        "waits-though-the-record-is-newer",
        "retries: news make the next try an early one",
        CONTROLLER,
        "        begun = record.epoch > self.record.epoch\n        self.record = record\n        self._asks.reset()\n        self._ask_at_ns = 0\n",
        "        begun = record.epoch > self.record.epoch\n        self.record = record\n",
        TAKEOVER_TESTS,
    ),
)
