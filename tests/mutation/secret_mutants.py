# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of keys, backups, foreign text, files and hashes, dropped; none of them shows in a simulated rack."""

from mutant import AUTHORITY

TRUST = "head_node/authority/reply_trust.py"
REPLY_KEYS = "head_node/authority/reply_keys.py"
REQUESTS = "head_node/authority/key_requests.py"
KEYRING = "head_node/authority/keyring.py"
THE_AUTHORITY = "head_node/authority/authority.py"
BACKUPS = "head_node/authority/backups.py"
RECOVERY = "head_node/authority/recovery.py"
SQLITE = "head_node/store/sqlite.py"
HOST_NAMES = "head_node/host_names.py"
PRINTABLE = "hw/sled_board/printable.py"
DURABLE = "hw/sled_board/durable.py"
TABLE = "tools/rackctl/table.py"
CONNECT_INFO = "tools/rackctl/connect_info.py"
KEY_VERBS = "tools/rackctl/key_requests.py"
STATE = "tools/rackctl/state.py"
HASHES = "tools/rackctl/firmware/hashes.py"
BACKUP_TESTS = f"{AUTHORITY}/test_backups.py"
REPLY_TESTS = f"{AUTHORITY}/test_reply_keys.py"
AWAY_TESTS = f"{AUTHORITY}/test_root_key_away.py"
PRINTABLE_TESTS = "tests/unit/sled_board/test_printable.py"
DURABLE_TESTS = "tests/unit/sled_board/test_durable.py"

SECRETS = (
    (
        "replaced-reply-key-counts", "a reply key ends with its successor", TRUST,
        "        if found.number < self._floor or ", "        if ", REPLY_TESTS,
    ),
    (
        "reply-key-for-ever", "a reply key ends with its term", TRUST,
        "            raise SignatureRefused(f\"reply key {self._newest.number} has expired; the authority needs a new one\")\n",
        "            pass\n", REPLY_TESTS,
    ),
    (
        "reply-key-not-kept", "a head that restarts knows which reply key was replaced", TRUST,
        "            self._keep(found.number)\n", "", REPLY_TESTS,
    ),
    (
        "reply-key-not-renewed", "a reply key is renewed before it ends", REPLY_KEYS,
        "            if term_ms // RENEW_DIVISOR < left_ms <=", "            if 0 < left_ms <=", REPLY_TESTS,
    ),
    (
        "reply-key-of-a-wrong-time", "a reply key that was issued in a wrong time is replaced when time is set back", REPLY_KEYS,
        "RENEW_DIVISOR < left_ms <= term_ms + KEPT_STEP_MS:", "RENEW_DIVISOR < left_ms:", REPLY_TESTS,
    ),
    (
        "gentler-request", "no request replaces one that takes stolen keys out at once", KEYRING,
        "            if not at_once and (waiting := await self.waits())", "            if False and (waiting := await self.waits())",
        AWAY_TESTS,
    ),
    (
        "old-request-counts", "what waits in an old copy for the root key is not waited for", KEYRING,
        "found.record[\"version\"] < self.version_min else found", "found.record[\"version\"] < 0 else found", BACKUP_TESTS,
    ),
    (
        "old-copys-tokens", "an old copy knows no operator token again", THE_AUTHORITY,
        "        await self.tokens.drop_given()\n", "", BACKUP_TESTS,
    ),
    (
        "any-signature-installed", "what waits for the root key is installed with its signature only", REQUESTS,
        "        except InvalidSignature:\n", "        except KeyError:\n", AWAY_TESTS,
    ),
    (
        "former-request-installed", "only what was requested last is installed", REQUESTS,
        "        if prepared.body != body:\n", "        if not body:\n", AWAY_TESTS,
    ),
    (
        "request-made-again", "what waits for the root key is not voided by making it again", REQUESTS,
        "        if await self._ledger.json(PENDING_PREFIX + kind) is not None:\n", "        if kind == \"\":\n", AWAY_TESTS,
    ),
    (
        "root-signs-anything", "the root key signs key sets and reply keys only", KEY_VERBS,
        "        if kind == \"key-set\" and domain == keyset.SIGNING_DOMAIN:\n", "        if kind == \"key-set\":\n",
        "tests/unit/rackctl/test_key_requests.py",
    ),
    (
        "late-key-signs-at-once", "a key is published before it signs, also when the root key signed late", KEYRING,
        "                use_ms += late_ms\n", "                pass\n", AWAY_TESTS,
    ),
    (
        "private-keys-in-backup", "a backup holds nothing that signs", BACKUPS,
        "[_public(signing) for signing in ring[\"keys\"]]", "ring[\"keys\"]", BACKUP_TESTS,
    ),
    (
        "reply-key-in-backup", "a backup holds nothing that signs", BACKUPS,
        "    if key == REPLY_KEY:\n", "    if key == \"\":\n", BACKUP_TESTS,
    ),
    (
        "host-secrets-in-backup", "a backup that anybody may read holds no secret of a host", BACKUPS,
        "        return await store.backup(path, rewrite=without_secrets)\n", "        return await store.backup(path, rewrite=without_signing_keys)\n",
        BACKUP_TESTS,
    ),
    (
        "claims-in-backup", "F4: an epoch of a backup is nobody's", BACKUPS,
        "DROPPED = (PENDING_PREFIX, \"claim/\", \"token/\")\n", "DROPPED = (PENDING_PREFIX, \"token/\")\n", BACKUP_TESTS,
    ),
    (
        "remnants-in-backup", "what is left out of a backup is nowhere in its pages", SQLITE,
        "    copy.execute(\"PRAGMA secure_delete = ON\")\n", "    return\n", BACKUP_TESTS,
    ),
    (
        "restored-keys-published", "a restored store publishes no key that may have been rotated out", KEYRING,
        "            alone = at_once or old_copy\n", "            alone = at_once\n", BACKUP_TESTS,
    ),
    (
        "restored-version-low", "a restored store jumps over key sets that may have been issued since", KEYRING,
        "RESTORED_VERSIONS_SKIPPED if old_copy else 0\n", "0\n", BACKUP_TESTS,
    ),
    (
        "backups-keys-usable", "a restored store without new keys publishes nothing", KEYRING,
        "        if self._is_old(found.value):\n", "        if not found.value:\n", BACKUP_TESTS,
    ),
    (
        "old-store-goes-on", "a store that a head proves to be old freezes", THE_AUTHORITY,
        "        self.keyring.version_min = version + 1\n", "        return\n", BACKUP_TESTS,
    ),
    (
        "epoch-below-a-fence", "F4: a restored volume goes on above every fence that a sled shows", RECOVERY,
        "        if passed:\n", "        if len(passed) > 99:\n", BACKUP_TESTS,
    ),
    (
        "blank-secret-believed", "a host whose secret is lost is refused, not believed", BACKUPS,
        "        blank = [nqn for nqn, terms in hosts.items() if terms[\"secret\"] is None]\n", "        blank: list[str] = []\n", BACKUP_TESTS,
    ),
    (
        "escapes-printed", "what others wrote does not act on a terminal", PRINTABLE,
        "char if char.isprintable() or char in kept else _escape(char)", "char if ord(char) >= 128 or char.isprintable() or char in kept else _escape(char)",
        PRINTABLE_TESTS,
    ),
    (
        "two-lines-of-a-record", "a record of the log is one line", PRINTABLE,
        "        return escaped(line if", "        return (line if", PRINTABLE_TESTS,
    ),
    (
        "two-lines-of-a-cell", "a cell of a table is one line", TABLE,
        "    cells = [[escaped(str(cell)) for cell in row] for row in rows]\n", "    cells = [[str(cell) for cell in row] for row in rows]\n",
        "tests/unit/rackctl/test_foreign_text.py",
    ),
    (
        "unquoted-words", "an address is one word of a line for a shell", CONNECT_INFO,
        "    return escaped(shlex.join(words))\n", "    return escaped(\" \".join(words))\n", "tests/unit/rackctl/test_connect_info.py",
    ),
    (
        "any-zone", "the zone of an address is a name", HOST_NAMES,
        "_ZONE.fullmatch(zone) is not None)", "bool(zone))", "tests/unit/head_node/test_host_names.py",
    ),
    (
        "numbers-are-names", "an address in another spelling is no name", HOST_NAMES,
        "        or _NUMBER.fullmatch(labels[-1]) is not None\n", "", "tests/unit/head_node/test_host_names.py",
    ),
    (
        "foreign-directory", "a directory of another user is not used", DURABLE,
        "    _check_owner(path, found)\n    if not stat.S_ISDIR", "    if not stat.S_ISDIR", DURABLE_TESTS,
    ),
    (
        "links-followed", "a link where a program's file should be is not followed", DURABLE,
        "    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)\n",
        "    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)\n", DURABLE_TESTS,
    ),
    (
        "rotated-logs-are-everyones", "each file of a rotation is made as the program's others", "sled_controller/program_log.py",
        "        descriptor = open_own(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n",
        "        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n",
        "tests/unit/sled_controller/test_program_log.py",
    ),
    (
        "rack-of-another-user", "every command looks whose a rack's directory is", STATE,
        "        check_own_directory(directory)\n", "        pass\n", "tests/unit/rackctl/test_own_directory.py",
    ),
    (
        "any-hash", "a wheel goes into an image only with a known hash", HASHES,
        "        if digest not in allowed:\n", "        if not allowed:\n", "tests/unit/rackctl/firmware/test_build.py",
    ),
)  # fmt: skip
