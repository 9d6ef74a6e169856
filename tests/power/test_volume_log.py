"""A volume's engine over a real log directory after a power cut at any step: log, promise, checkpoint, destage (D1)."""

import asyncio
from dataclasses import dataclass
from random import Random

from kit.power_cuts import Claims, cuts, kills
from kit.power_fuse import Disk, Shelf
from kit.power_model import Kept
from kit.volume import ENV, GEOMETRY, VOLUME, Bench, TinySegments, pattern, run, until

from head_node.files import Directory, HostRoot
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogMissing
from head_node.volume.interface import BLOCK_BYTES

BLOCKS = 40
ZERO = bytes(BLOCK_BYTES)


LIMITS = TinySegments(segment_bytes=96 << 10, log_bytes_max=1 << 20)


def directory_on(disk: Disk) -> Directory:
    return HostRoot(disk.path / "volumes").directory(str(VOLUME))


async def opened(disk: Disk, bench: Bench) -> VolumeEngine:
    bench.engine = await VolumeEngine.open(directory_on(disk), volume=VOLUME, env=ENV, limits=LIMITS)
    return bench.engine


@dataclass(frozen=True)
class Moment:
    """The sleds at a step of the head's disk; what they had acknowledged is durable there."""

    at: int
    stores: list[dict[int, bytes]]


class Story:
    """A primary under writes and trims, its disk recorded, its sleds remembered at every step that may be cut."""

    def __init__(self, disk: Disk, seed: int) -> None:
        self.disk = disk
        self.claims = Claims(disk)
        self.moments: list[Moment] = []
        self.bench = Bench(size_blocks=BLOCKS, slots=20)
        self._chance = Random(seed)

    async def run(self, writes: int) -> None:
        bench = self.bench
        bench.engine = await VolumeEngine.create(
            directory_on(self.disk), volume=VOLUME, geometry=GEOMETRY, size_blocks=BLOCKS, env=ENV, limits=LIMITS
        )
        self.claims.begin("log id", bench.engine.log_id).acknowledge()
        for epoch in (1, 2):
            change = self.claims.begin("epoch", epoch)
            opnum = await bench.engine.lead(epoch, bench.attach())
            change.acknowledge()
            await bench.engine.wait_committed(opnum)
            for _ in range(writes // 2):
                self.begin()
                self.remember()
                for _ in range(self._chance.choice([0, 1, 20, 200])):
                    await asyncio.sleep(0)
                    self.remember()
            await bench.settle()
            self.remember()
            await bench.engine.step_down()
        await bench.engine.close()
        self.remember()

    def begin(self) -> None:
        chance = self._chance
        lba = chance.randrange(BLOCKS)
        count = chance.randrange(1, min(5, BLOCKS - lba + 1))
        zero = chance.random() < 0.2
        data = bytes(count * BLOCK_BYTES) if zero else pattern(chance.getrandbits(32), count)
        changes = [self.claims.begin(lba + at, data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at in range(count)]

        def done(error: int) -> None:
            assert error == 0
            for change in changes:
                change.acknowledge()

        if zero:
            self.bench.engine.served.trim(lba * BLOCK_BYTES, count * BLOCK_BYTES, done)
        else:
            self.bench.engine.served.write(lba * BLOCK_BYTES, data, False, done)

    def remember(self) -> None:
        """The step first: what the sleds have acknowledged since does no harm."""
        at = self.disk.steps
        if not self.moments or self.moments[-1].at != at:
            self.moments.append(Moment(at, [dict(store.data) for store in self.bench.stores]))

    def sleds_at(self, at: int) -> Bench:
        """A bench with the sleds of that moment, or of the first one after it."""
        moment = next(moment for moment in self.moments if moment.at >= at)
        bench = Bench(size_blocks=BLOCKS, slots=20)
        for store, content in zip(bench.stores, moment.stores, strict=True):
            store.data = dict(content)
        return bench

    async def content(self, bench: Bench, at: int, where: str) -> dict[int, bytes]:
        """Lead and read all of it; every block is one that it may be."""
        assert bench.engine.log_id in self.claims.allowed("log id", at), where
        assert bench.engine.highest_epoch >= min(self.claims.allowed("epoch", at, 0)), f"{where}: a promise is lost"
        await bench.lead(bench.engine.highest_epoch + 1)
        found = {lba: await bench.read(lba) for lba in range(BLOCKS)}
        for lba, block in found.items():
            assert block in self.claims.allowed(lba, at, ZERO), f"{where}: block {lba} is lost"
        return found


def test_d1_what_a_primary_acknowledged_survives_a_cut_at_any_step(power: Shelf) -> None:
    async def scenario() -> None:
        story = Story(power.disk(), 1)
        await story.run(120)
        assert story.bench.engine.status()["checkpoints"] >= 2
        created = story.moments[0].at
        remembered = {moment.at for moment in story.moments}
        for cut in cuts(power, story.disk, 60, only=remembered):
            bench = story.sleds_at(cut.at)
            await opened(cut.found, bench)
            await story.content(bench, cut.at, str(cut))
            await bench.engine.close()
        for cut in cuts(power, story.disk, 30, only=set(range(created))):
            try:
                await (await opened(cut.found, story.sleds_at(cut.at))).close()
            except LogMissing:
                assert None in story.claims.allowed("log id", cut.at), str(cut)

    run(scenario())


def test_d1_what_a_restarted_primary_answers_is_durable(power: Shelf) -> None:
    async def scenario() -> None:
        story = Story(power.disk(), 2)
        await story.run(60)
        chance = Random(0)
        for at, disk in kills(power, story.disk, 60, only={moment.at for moment in story.moments}):
            bench = story.sleds_at(at)
            await opened(disk, bench)
            answered = await story.content(bench, at, f"killed at step {at}")
            cut = power.disk(disk.recorded.medium.after_cut(Kept.NOTHING, chance))
            for column in bench.columns:
                column.available = False
            await bench.engine.close()
            await opened(cut, bench)
            again = await story.content(bench, at, f"killed at step {at}, then cut")
            assert again == answered, f"killed at step {at}, then cut"
            await bench.engine.close()

    run(scenario())


def test_f5_what_a_follower_acknowledged_and_promised_survives_a_cut_at_any_step(power: Shelf) -> None:
    async def scenario() -> None:
        disk, chance = power.disk(), Random(3)
        claims = Claims(disk)
        follower = await VolumeEngine.create(
            directory_on(disk), volume=VOLUME, geometry=GEOMETRY, size_blocks=BLOCKS, env=ENV, limits=LIMITS
        )
        created = disk.steps
        sure = [(created, 0)]  # (step, opnum): from that step on everything up to the opnum is there
        follower.on_durable = lambda opnum: sure.append((disk.steps, opnum))
        await promise(follower, claims, 1)
        primary = Bench(size_blocks=BLOCKS, slots=20)
        await primary.create()
        primary.engine.on_append = lambda first, last, buffers: follower.follow_append(b"".join(buffers))
        await primary.lead(1)
        for _ in range(30):
            await primary.write(chance.randrange(BLOCKS), pattern(chance.getrandbits(32)))
        await until(lambda: follower.durable == primary.engine.tail.opnum)
        await promise(follower, claims, 2)
        keep = follower.tail.opnum - 7
        sure.append((disk.steps, keep))
        change = claims.begin("end", keep)
        await follower.truncate_after(keep)
        change.acknowledge()
        await follower.close()
        for cut in cuts(power, disk, 50, only=set(range(created, disk.steps + 1))):
            engine = await opened(cut.found, Bench(size_blocks=BLOCKS))
            _, least = max((entry for entry in enumerate(sure) if entry[1][0] <= cut.at), key=lambda entry: entry[0])
            assert engine.durable >= least[1], f"{cut}: opnum {least[1]} was durable, {engine.durable} is"
            if None not in claims.allowed("end", cut.at):
                assert engine.tail.opnum == keep, f"{cut}: what was cut away is back"
            assert engine.highest_epoch >= min(claims.allowed("epoch", cut.at, 0)), f"{cut}: a promise is lost"
            await engine.close()
        await primary.engine.close()

    run(scenario())


async def promise(engine: VolumeEngine, claims: Claims, epoch: int) -> None:
    change = claims.begin("epoch", epoch)
    await engine.see_epoch(epoch)
    change.acknowledge()
