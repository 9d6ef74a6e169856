# ruff: noqa: E501 (the edits quote lines of the sources)
"""Every sync of the programs' files, left out, one at a time: a power cut takes back what was acknowledged.

(name, rule, file, text, replacement, tests); no simulator sees real files, so only the tests are asked.
"""

POWER = "tests/power"
FILES = "head_node/files.py"
DURABLE = "sled_controller/durable.py"
PUT_FILE = "hw/sled_board/durable.py"
EMULATOR = "spdk_bindings/emulator.py"
STORE = "head_node/store/sqlite.py"
JOURNAL = "sled_controller/storage/journal.py"
RACKCTL = "tools/rackctl/files.py"
LOG_TESTS = f"{POWER}/test_log_directory.py"
STATE_TESTS = f"{POWER}/test_state_files.py"
DRIVE_TESTS = f"{POWER}/test_sled_drives.py"
STORE_TESTS = f"{POWER}/test_store.py"

SYNCS = (
    (
        "commit-of-nothing-not-synced", "D1: what a restart finds in the page cache is durable before it counts", FILES,
        "        os.fdatasync(descriptor)\n        return\n", "        return\n", LOG_TESTS,
    ),
    (
        "commit-in-one-call-not-synced", "D1: a commit is durable", FILES,
        "os.pwritev(descriptor, buffers, offset, _RWF_DSYNC)", "os.pwritev(descriptor, buffers, offset)", LOG_TESTS,
    ),
    (
        "commit-of-many-buffers-not-synced", "D1: a commit is durable", FILES,
        "    _write_fully(descriptor, offset, buffers)\n    os.fdatasync(descriptor)\n",
        "    _write_fully(descriptor, offset, buffers)\n", LOG_TESTS,
    ),
    (
        "names-found-not-synced", "D1: names that a restart finds are durable before they count", FILES,
        "        self._sync_names()\n        sync_directory(Path(self.path).parent)\n",
        "        sync_directory(Path(self.path).parent)\n", LOG_TESTS,
    ),
    (
        "directory-not-synced", "D1: a log directory has its name as long as the files in it", FILES,
        "        self._sync_names()\n        sync_directory(Path(self.path).parent)\n", "        self._sync_names()\n", LOG_TESTS,
    ),
    (
        "new-file-not-synced", "D1: a new log file has its size and its zeroes", FILES,
        "            os.fsync(descriptor)\n            os.rename(new, self._path(name))\n",
        "            os.rename(new, self._path(name))\n", LOG_TESTS,
    ),
    (
        "new-name-not-synced", "D1: a new log file has its name", FILES,
        "            os.rename(new, self._path(name))\n            self._sync_names()\n",
        "            os.rename(new, self._path(name))\n", LOG_TESTS,
    ),
    (
        "replacement-not-synced", "D1: a file is replaced by a whole one", FILES,
        "            os.ftruncate(descriptor, sum(map(len, buffers)))\n            os.fsync(descriptor)\n",
        "            os.ftruncate(descriptor, sum(map(len, buffers)))\n", LOG_TESTS,
    ),
    (
        "replaced-name-not-synced", "D1: a file that was replaced stays so", FILES,
        "        os.rename(new, self._path(name))\n        self._sync_names()\n\n", "        os.rename(new, self._path(name))\n\n",
        LOG_TESTS,
    ),
    (
        "removal-not-synced", "D1: a removed file is not back", FILES,
        "        self._discard(self._path(name))\n        self._sync_names()\n", "        self._discard(self._path(name))\n",
        LOG_TESTS,
    ),
    (
        "directory-removal-not-synced", "F5: a removed log is not back", FILES,
        "        shutil.rmtree(self.path)\n        sync_directory(Path(self.path).parent)\n", "        shutil.rmtree(self.path)\n",
        LOG_TESTS,
    ),
    (
        "set-aside-not-synced", "F5: a log that was set aside is not back", FILES,
        "        os.rename(self.shown(name), self.shown(new_name))\n        sync_directory(Path(self._path))\n",
        "        os.rename(self.shown(name), self.shown(new_name))\n", LOG_TESTS,
    ),
    (
        "root-of-logs-not-synced", "D1: the directory of logs has its name as long as they have theirs", FILES,
        "        make_directory(Path(path), 0o700)\n", "        os.makedirs(path, 0o700, exist_ok=True)\n", LOG_TESTS,
    ),
    (
        "state-file-not-synced", "a key or an identity is replaced by a whole one", PUT_FILE,
        "        os.fsync(file.fileno())\n", "", STATE_TESTS,
    ),
    (
        "state-name-not-synced", "a key or an identity that was written stays", PUT_FILE,
        "    sync_directory(path.parent)\n", "", STATE_TESTS,
    ),
    (
        "state-directory-not-synced", "a state directory has its name as long as the keys in it", DURABLE,
        "            sync_directory(folder.parent)\n", "            pass\n", STATE_TESTS,
    ),
    (
        "drive-not-synced", "D1: FLUSH and FUA of an emulated drive are an fdatasync", EMULATOR,
        "loop.run_in_executor(self._executor, os.fdatasync, self._fd)", "loop.run_in_executor(self._executor, int, self._fd)",
        DRIVE_TESTS,
    ),
    (
        "drive-name-not-synced", "D1: an emulated drive has its name as long as its data", EMULATOR,
        "                _sync_name(self.path)\n", "                pass\n", DRIVE_TESTS,
    ),
    (
        "drive-size-not-synced", "D1: an emulated drive has its size when it has its name", EMULATOR,
        "            os.fsync(fd)\n", "", DRIVE_TESTS,
    ),
    (
        "fua-not-awaited", "D1: a FUA write is answered after the fdatasync that follows it", EMULATOR,
        "        return self._sync(done) if fua else _SUCCESS\n\n    def flush(", "        return _SUCCESS\n\n    def flush(",
        DRIVE_TESTS,
    ),
    (
        "fua-zeroes-not-awaited", "D1: FUA zeroes are answered after the fdatasync that follows them", EMULATOR,
        "        return self._sync(done) if fua else _SUCCESS\n\n    def deallocate(", "        return _SUCCESS\n\n    def deallocate(",
        DRIVE_TESTS,
    ),
    (
        "flush-not-awaited", "D1: a flush is answered after an fdatasync", EMULATOR,
        "        return _WRITE_FAULT if self._sync_failed else self._sync(done)\n", "        return _SUCCESS\n", DRIVE_TESTS,
    ),
    (
        "sync-shared-with-later-writes", "D1: an fdatasync that runs already does not count for a later write", EMULATOR,
        "        self._sync_next.append(done)\n        if self._syncing is None:\n",
        "        (self._sync_next if self._syncing is None else self._syncing).append(done)\n        if self._syncing is None:\n",
        DRIVE_TESTS,
    ),
    (
        "store-not-full", "authority: SQLite syncs its log at each commit", STORE,
        "    connection.execute(\"PRAGMA synchronous = FULL\")\n    level = connection.execute(\"PRAGMA synchronous\").fetchone()[0]\n",
        "    connection.execute(\"PRAGMA synchronous = NORMAL\")\n    level = 2\n", STORE_TESTS,
    ),
    (
        "store-found-not-synced", "authority: what a restarted store answers is durable", STORE,
        "    busy, _, _ = connection.execute(\"PRAGMA wal_checkpoint(TRUNCATE)\").fetchone()\n    if busy:\n",
        "    if False:\n", STORE_TESTS,
    ),
    (
        "command-file-not-synced", "rackctl: a file that a command replaced is whole", RACKCTL,
        "                os.fsync(descriptor)\n            os.rename(name, target)\n", "            os.rename(name, target)\n",
        STATE_TESTS,
    ),
    (
        "command-name-not-synced", "rackctl: a file that a command replaced stays", RACKCTL,
        "            sync_directory(target.parent)\n", "", STATE_TESTS,
    ),
    (
        "key-file-not-synced", "rackctl: a key that a command made is whole", RACKCTL,
        "                os.fsync(descriptor)\n            sync_directory(path.parent)\n", "            sync_directory(path.parent)\n",
        STATE_TESTS,
    ),
    (
        "key-name-not-synced", "rackctl: a key that a command made stays", RACKCTL,
        "            sync_directory(path.parent)\n", "", STATE_TESTS,
    ),
    (
        "journal-append-not-synced", "F2: what a sled's journal has vouched for is durable", JOURNAL,
        "        file.write(data)\n        file.flush()\n        os.fsync(file.fileno())\n",
        "        file.write(data)\n", STATE_TESTS,
    ),
)  # fmt: skip
