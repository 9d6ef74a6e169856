# ruff: noqa: E501 (the edits quote lines of the sources)
"""The rules about drives that hang, dropped one at a time: (name, rule, file, text, replacement, tests).

Their tests run on virtual time and say it in seconds, so the simulator is not asked.
"""

DESTAGE = "head_node/volume/destage.py"
READER = "head_node/volume/reader.py"
WATCHED = "head_node/volume/watched_column.py"
TIMED = "sled_controller/storage/timed_device.py"
CLIENT = "sled_controller/fabric/client.py"
HANGING = "tests/unit/head_node/volume/test_hanging_columns.py"
HEDGING = "tests/unit/head_node/volume/test_hedging.py"
TIMED_TESTS = "tests/unit/sled_controller/storage/test_timed_device.py"
CLIENT_TESTS = "tests/unit/sled_controller/fabric/test_client.py"

HANGS = (
    (
        "given-up-is-answered", "F3: a shard that was given up may still be written", "head_node/volume/stripewriter.py",
        "if not isinstance(error, ANSWERS)]", "if not isinstance(error, (*ANSWERS, Exception))]", HANGING,
    ),
    (
        "late-answer-not-heard", "F3: a slot is free again when the late answer has come", DESTAGE,
        "        self._state.stripes.answered(slot, column)\n", "", HANGING,
    ),
    (
        "late-refusal-not-heard", "F6: a refusal counts however late it comes", DESTAGE,
        "        if isinstance(error, FencedOff | Superseded):\n            self._on_fenced(index, error)\n", "", HANGING,
    ),
    (
        "hanging-column-is-asked", "a column that hangs is asked nothing", WATCHED,
        "        return not self.hangs and self.inner.available\n", "        return self.inner.available\n", HANGING,
    ),
    (
        "no-limit-per-column", "a column has a time limit", WATCHED,
        "        self.hangs = True\n", "        return\n", HANGING,
    ),
    (
        "slow-reads-wait", "a read that is slow is reconstructed too", READER,
        "            self._spawn(run, done, (data, head))\n",
        "            self._asked[data] = (since_s, run, done, column, head)\n", HANGING,
    ),
    (
        "late-answer-of-an-open-stripe-forgotten", "F3: a late answer counts while other shards are unanswered",
        "head_node/volume/destage.py", "        self._writer.late_answer(slot, column, error)\n", "", HANGING,
    ),
    (
        "reads-not-asked-again-after-a-hang", "reads that wait for a column that hangs are asked again when it answers",
        "head_node/volume/engine.py", "        if not column.hangs:\n            self._service.attached()\n", "", HANGING,
    ),
    (
        "hedging-without-budget", "hedged reads are a share of all", "head_node/volume/hedging.py",
        "        self._extra -= reads\n", "", HEDGING,
    ),
    (
        "overdue-is-answered", "F3: an overdue command is answered after the reset", TIMED,
        "        self.resetting = True\n", "        self.resetting = True\n        for command in list(self._outstanding):\n"
        "            command.callback(_INTERRUPTED)\n", TIMED_TESTS,
    ),
    (
        "no-limit-per-device", "a device has a time limit", TIMED,
        "        self._begin_reset(now_s)\n", "", TIMED_TESTS,
    ),
    (
        "resets-for-ever", "a device that hangs again and again is given up", TIMED,
        "        if len(resets_s) > RESETS_MAX:\n", "        if False:\n", TIMED_TESTS,
    ),
    (
        "pause-is-a-hang", "a pause of the sled's process is no hang of its devices", TIMED,
        "            self._present_s = now_s\n        due_s", "            pass\n        due_s", TIMED_TESTS,
    ),
    (
        "drive-ends-association", "a drive that hangs ends no association", CLIENT,
        "if self._probe_s is None and not self._io.core.has_room else self._probe_s\n", "\n", CLIENT_TESTS,
    ),
    (
        "io-queue-not-judged", "an I/O queue that answers nothing ends the association", CLIENT,
        "return self._io.oldest_s() if self._probe_s is None and not self._io.core.has_room else self._probe_s\n",
        "return None\n", CLIENT_TESTS,
    ),
)  # fmt: skip
