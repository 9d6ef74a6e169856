"""What a head's directory of logs promises (head_node/files.py) holds after a power cut at any step."""

import asyncio
from collections.abc import Sequence
from random import Random

from kit.power_cuts import Change, Claims, cuts, kills
from kit.power_fuse import Disk, Shelf
from kit.power_model import PAGE_BYTES, Kept
from kit.volume import run

from head_node.files import Directory, HostRoot, LogFile

ZERO = bytes(PAGE_BYTES)
PAGES = 12
VOLUMES, VOLUME = "state/volumes", "one"


def opened(disk: Disk) -> Directory:
    """The directory of logs as a head opens it at its start."""
    directory = HostRoot(disk.path / VOLUMES).directory(VOLUME)
    directory.lock()
    return directory


async def commit(file: LogFile, offset: int, buffers: Sequence[bytes]) -> None:
    done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    file.commit(offset, buffers, done.set_result)
    assert await done is None


def drawn(chance: Random, pages: int) -> bytes:
    return b"".join(bytes([chance.randrange(1, 256)]) * PAGE_BYTES for _ in range(pages))


class Story:
    """A log at work: files made, written, replaced and removed, each step with its claim."""

    def __init__(self, disk: Disk, seed: int) -> None:
        self.disk = disk
        self.claims = Claims(disk)
        self._chance = Random(seed)
        self._files: dict[str, LogFile] = {}
        self._made = 0

    async def run(self, steps: int) -> None:
        self.directory = opened(self.disk)
        await self.make()
        for _ in range(steps):
            await self._chance.choice([self.make, self.write, self.write, self.write, self.replace, self.remove])()
        self.directory.close()

    async def make(self) -> None:
        name = f"segment-{self._made}"
        self._made += 1
        change = self.claims.begin(name, "segment")
        self._files[name] = await self.directory.create(name, PAGES * PAGE_BYTES)
        change.acknowledge()

    async def write(self) -> None:
        if not self._files:
            return
        chance, name = self._chance, self._chance.choice(list(self._files))
        first = chance.randrange(PAGES)
        data = drawn(chance, chance.randrange(1, PAGES - first + 1))
        changes: list[Change] = [
            self.claims.begin((name, first + at), data[at * PAGE_BYTES :][:PAGE_BYTES])
            for at in range(len(data) // PAGE_BYTES)
        ]
        pieces = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
        if chance.random() < 0.5:
            pieces += [b""] * 1024  # more buffers than one call takes: they are written and then synced
        await commit(self._files[name], first * PAGE_BYTES, pieces)
        for change in changes:
            change.acknowledge()

    async def replace(self) -> None:
        name, content = self._chance.choice(["checkpoint", "identity"]), drawn(self._chance, 3)[5000:]
        change = self.claims.begin(name, content)
        await self.directory.replace(name, [content[:100], content[100:]])
        change.acknowledge()

    async def remove(self) -> None:
        if not self._files:
            return
        name = self._chance.choice(list(self._files))
        self._files.pop(name).close()
        change = self.claims.begin(name, None)
        await self.directory.remove(name)
        change.acknowledge()

    def judge(self, directory: Directory, at: int, where: str) -> None:
        present = directory.names()
        assert set(present) <= set(self.claims.changes), f"{where}: files that no step has made"
        for name in [key for key in self.claims.changes if isinstance(key, str)]:
            allowed = self.claims.allowed(name, at)
            if name not in present:
                assert None in allowed, f"{where}: {name} is lost"
                continue
            content = directory.read(name)
            if not name.startswith("segment"):
                assert content in allowed, f"{where}: {name} is not what it ever was"
                continue
            assert "segment" in allowed, f"{where}: {name} is back"
            assert len(content) == PAGES * PAGE_BYTES, f"{where}: {name} has {len(content)} bytes"
            for page in range(PAGES):
                found = content[page * PAGE_BYTES :][:PAGE_BYTES]
                assert found in self.claims.allowed((name, page), at, ZERO), f"{where}: page {page} of {name} is lost"


def test_d1_what_a_log_directory_acknowledged_survives_a_cut_at_any_step(power: Shelf) -> None:
    async def scenario() -> None:
        for seed in range(3):
            story = Story(power.disk(), seed)
            await story.run(30)
            for cut in cuts(power, story.disk, 80, seed):
                directory = opened(cut.found)
                story.judge(directory, cut.at, str(cut))
                directory.close()

    run(scenario())


def test_d1_what_a_restarted_program_finds_unsynced_is_durable_before_it_counts(power: Shelf) -> None:
    async def scenario() -> None:
        story = Story(power.disk(), 4)
        await story.run(25)
        for at, disk in kills(power, story.disk, 200):
            directory = opened(disk)
            for name in directory.names():
                if name.startswith("segment"):
                    await commit(directory.open(name), 0, [])
            found = {name: directory.read(name) for name in directory.names()}
            directory.close()
            disk.cut(Kept.NOTHING, Random(0))
            again = opened(disk)
            assert {name: again.read(name) for name in again.names()} == found, f"killed at step {at}, then cut"
            again.close()

    run(scenario())


def test_f5_a_log_that_is_set_aside_or_removed_is_not_back_after_a_cut(power: Shelf) -> None:
    async def scenario() -> None:
        disk = power.disk()
        root, claims = HostRoot(disk.path / "volumes"), Claims(disk)
        names = ("one", "two", "one.aside-0")
        for name in ("one", "two"):
            change = claims.begin(name, "there")
            directory = root.directory(name)
            directory.lock()
            await directory.replace("identity", [name.encode()])
            directory.close()
            change.acknowledge()
        changes = [claims.begin("one", None), claims.begin("one.aside-0", "there")]
        root.rename("one", "one.aside-0")
        for change in changes:
            change.acknowledge()
        change = claims.begin("two", None)
        await root.directory("two").remove_all()
        change.acknowledge()
        for cut in cuts(power, disk, 100):
            found = HostRoot(cut.found.path / "volumes")
            for name in names:
                there = "there" if name in found.names() and found.directory(name).names() else None
                assert there in claims.allowed(name, cut.at), f"{cut}: {name}: {there}"

    run(scenario())
