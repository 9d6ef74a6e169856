"""Keys, identities and other small files of heads, sleds, the authority and rackctl, after a power cut at any step."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from kit.drive import environment, fence, volume
from kit.power_cuts import Claims, cuts
from kit.power_fuse import Shelf
from rackctl.files import create_file, write_file
from sled_board.console.provisioning import Provisioning

from head_node.authority.keyring import RootKeyUnusable, load_root_key
from head_node.main import StateDirectory as HeadDirectory
from sled_controller.durable import replace_file
from sled_controller.state_dir import PROVISIONED_FILE, SERVED_FILE
from sled_controller.state_dir import StateDirectory as SledDirectory
from sled_controller.storage import journal as journal_format
from sled_controller.storage.completion import completed
from sled_controller.storage.journal import SledJournal
from sled_controller.storage.records import FenceEntry

ROOT_PUBLIC = bytes(range(32))


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("write", [lambda path, data: replace_file(path, data.decode(), 0o600), write_file])
def test_a_replaced_file_is_the_old_one_or_the_new_one_and_stays_the_new_one(
    power: Shelf, write: Callable[[Path, bytes], None]
) -> None:
    disk = power.disk()
    claims = Claims(disk)
    for size in (10, 9000, 3, 5000):
        data = bytes([64 + size % 32]) * size
        change = claims.begin("file", data)
        write(disk.path / "file", data)
        change.acknowledge()
    for cut in cuts(power, disk, 200):
        assert read(cut.found.path / "file") in claims.allowed("file", cut.at), str(cut)


def test_a_file_that_was_made_new_stays(power: Shelf) -> None:
    disk = power.disk()
    claims = Claims(disk)
    change = claims.begin("key", b"secret" * 1000)
    create_file(disk.path / "key", b"secret" * 1000, mode=0o600)
    change.acknowledge()
    for cut in cuts(power, disk, 200, only={disk.steps}):
        assert read(cut.found.path / "key") in claims.allowed("key", cut.at), str(cut)


def test_the_root_key_of_a_rack_is_never_made_twice(power: Shelf) -> None:
    disk = power.disk()
    claims = Claims(disk)
    key = load_root_key(disk.path / "root.key", environment(1), may_create=True).private_bytes_raw()
    claims.begin("key", key).acknowledge()
    for cut in cuts(power, disk, 200):
        try:
            found = load_root_key(cut.found.path / "root.key", environment(2), may_create=False).private_bytes_raw()
        except RootKeyUnusable:
            found = None
        assert found in claims.allowed("key", cut.at) or (found == key and cut.at < disk.steps), str(cut)


def head(path: Path, seed: int) -> tuple[UUID, bytes, bytes | None]:
    """Who a head is that starts there, and the rack's root key that it knows."""
    directory = HeadDirectory(path / "var" / "head", "head-0", environment(seed))
    found = directory.head, directory.key.private_bytes_raw(), directory.root_public
    directory.close()
    return found


def test_a_head_that_has_started_is_the_same_head_after_a_cut(power: Shelf) -> None:
    disk = power.disk()
    claims = Claims(disk)
    directory = HeadDirectory(disk.path / "var" / "head", "head-0", environment(1))
    claims.begin("identity", (directory.head, directory.key.private_bytes_raw())).acknowledge()
    started = disk.steps
    change = claims.begin("root", ROOT_PUBLIC)
    directory.remember_root(ROOT_PUBLIC)
    change.acknowledge()
    directory.write_endpoints({"api": ["::1", 1]})
    directory.close()
    for cut in cuts(power, disk, 200, only=set(range(started, disk.steps + 1))):
        identity, key, root = head(cut.found.path, 2)
        assert (identity, key) in claims.allowed("identity", cut.at), str(cut)
        assert root in claims.allowed("root", cut.at), str(cut)


def test_a_head_starts_after_a_cut_at_any_step_of_its_first_start(power: Shelf) -> None:
    disk = power.disk()
    head(disk.path, 1)
    for cut in cuts(power, disk, 200):
        assert head(cut.found.path, 2) == head(cut.found.path, 3), str(cut)


def test_a_sled_that_has_started_is_the_same_sled_after_a_cut(power: Shelf) -> None:
    disk = power.disk()
    claims, given = Claims(disk), Provisioning.of("sled-0", ROOT_PUBLIC.hex(), "dhcp")
    directory = SledDirectory(disk.path / "var" / "sled")
    identity = directory.identity("sled-0", ROOT_PUBLIC, environment(1))
    claims.begin("identity", (identity.sled_id, identity.key.private_bytes_raw())).acknowledge()
    started = disk.steps
    change = claims.begin(PROVISIONED_FILE, given)
    directory.provision(given)
    change.acknowledge()
    change = claims.begin(SERVED_FILE, True)
    directory.endpoints("::1", 4420)
    change.acknowledge()
    for cut in cuts(power, disk, 200, only=set(range(started, disk.steps + 1))):
        found = SledDirectory(cut.found.path / "var" / "sled")
        again = found.identity("sled-0", ROOT_PUBLIC, environment(2))
        assert (again.sled_id, again.key.private_bytes_raw()) in claims.allowed("identity", cut.at), str(cut)
        assert found.provisioning in claims.allowed(PROVISIONED_FILE, cut.at), str(cut)
        assert found.has_served in claims.allowed(SERVED_FILE, cut.at, False), str(cut)


def at_once(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    work()
    done(None)


def test_f2_what_a_sleds_journal_has_survives_a_cut_at_any_step(power: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over appends, and over writing it again when it has grown and at each start."""
    monkeypatch.setattr(journal_format, "GROWTH_BYTES_MAX", 3000)
    disk = power.disk()
    claims = Claims(disk)

    async def scenario() -> None:
        epoch = 0
        for _ in range(3):
            journal = SledJournal(disk.path / "journal", volume(9), at_once)
            journal.read()
            content = journal.content
            await completed(lambda done, journal=journal, content=content: journal.begin(content, done))  # type: ignore[misc]
            for _ in range(12):
                epoch += 1
                change = claims.begin("fence", epoch)
                journal.append((FenceEntry(volume(1), fence(epoch)),), lambda _: None)
                change.acknowledge()

    asyncio.run(scenario())
    for cut in cuts(power, disk, 200):
        found = SledJournal(cut.found.path / "journal", volume(9), at_once)
        found.read()
        kept = found.content.fences.get(volume(1))
        assert (kept and kept.epoch) in claims.allowed("fence", cut.at), str(cut)
        assert not found.damaged, str(cut)
