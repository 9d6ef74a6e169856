"""Power loss of everything at once, at any moment, again and again (D1, D3)."""

import asyncio
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.volume import GEOMETRY, Bench, pattern, run
from kit.volume_pair import FOLLOWER, Pair

from head_node.volume.interface import BLOCK_BYTES

BLOCKS = 48


class Expected:
    """What each block may hold: the last acknowledged content, or any content of a write not acknowledged since."""

    def __init__(self) -> None:
        self.allowed: list[list[tuple[int, bytes]]] = [[(0, bytes(BLOCK_BYTES))] for _ in range(BLOCKS)]
        self._serial = 0

    def begun(self, lba: int, count: int, data: bytes) -> int:
        """Returns the serial number of this write."""
        self._serial += 1
        for at in range(count):
            self.allowed[lba + at].append((self._serial, data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]))
        return self._serial

    def acknowledged(self, lba: int, count: int, serial: int) -> None:
        """Writes are logged in the order of their calls, so what was begun before this one is gone."""
        for at in range(lba, lba + count):
            self.allowed[at] = [entry for entry in self.allowed[at] if entry[0] >= serial]

    def settle(self, lba: int, block: bytes) -> None:
        """What is read once stays."""
        assert block in [content for _, content in self.allowed[lba]], f"block {lba} holds what it never may"
        self.allowed[lba] = [(0, block)]


async def _run_until_cut(bench: Bench, expected: Expected, chance: random.Random, turns: int) -> None:
    """Random writes and trims with the power failing after `turns` loop turns."""

    def begin() -> None:
        lba = chance.randrange(BLOCKS)
        count = chance.randrange(1, min(5, BLOCKS - lba + 1))
        zero = chance.random() < 0.2
        data = bytes(count * BLOCK_BYTES) if zero else pattern(chance.getrandbits(32), count)
        serial = expected.begun(lba, count, data)

        def done(error: int) -> None:
            assert error == 0
            expected.acknowledged(lba, count, serial)

        if zero:
            bench.engine.served.trim(lba * BLOCK_BYTES, count * BLOCK_BYTES, done)
        else:
            bench.engine.served.write(lba * BLOCK_BYTES, data, False, done)

    for _ in range(turns):
        for _ in range(chance.randrange(4)):
            begin()
        await asyncio.sleep(0)


async def _verify(bench: Bench, expected: Expected, lost: list[int]) -> None:
    for index in lost:
        bench.engine.set_column(index, None)
    for lba in range(BLOCKS):
        expected.settle(lba, await bench.read(lba))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), cuts=st.lists(st.integers(0, 120), min_size=1, max_size=4))
def test_d1_power_loss_of_everything(seed: int, cuts: list[int]) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        bench, expected = Bench(size_blocks=BLOCKS, slots=20), Expected()
        await bench.create()
        epoch = 1
        await bench.lead(epoch)
        for turns in cuts:
            await _run_until_cut(bench, expected, chance, turns)
            bench.engine.served.flush(lambda error: None)
            bench.disk.power_cut(chance)
            await bench.engine.step_down()
            await bench.open()
            epoch += 1
            await bench.lead(epoch)
            await _verify(bench, expected, chance.sample(range(6), 2))
            for index, column in enumerate(bench.attach()):
                bench.engine.set_column(index, column)
        await bench.engine.close(destage=True)

    run(scenario())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), turns=st.integers(0, 150))
def test_d1_loss_of_one_head_and_two_sleds_with_the_power(seed: int, turns: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        pair, expected = Pair(size_blocks=BLOCKS), Expected()
        await pair.start()
        await _run_until_cut(pair.primary, expected, chance, turns)
        for bench in (pair.primary, pair.follower):
            bench.disk.power_cut(chance)
        await pair.primary.engine.step_down()
        survivor = chance.choice([pair.primary, pair.follower])
        survivor.stores = pair.primary.stores
        await survivor.open()
        await survivor.lead(2)
        await _verify(survivor, expected, chance.sample(range(GEOMETRY.shards), 2))
        await survivor.engine.close()

    run(scenario())


def test_only_what_every_required_member_has_is_acknowledged() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        pair.acks = False
        write = pair.primary.write(1, pattern(1))
        for _ in range(30):
            await asyncio.sleep(0)
        assert pair.primary.engine.durable == 2
        assert not write.done()
        assert await pair.primary.read(1) == bytes(BLOCK_BYTES)
        pair.catch_up()
        assert write.done()
        assert await pair.primary.read(1) == pattern(1)
        pair.acks = False
        second = pair.primary.write(2, pattern(2))
        for _ in range(30):
            await asyncio.sleep(0)
        assert not second.done()
        pair.primary.engine.set_required(frozenset())
        assert second.done()
        pair.primary.engine.set_required(frozenset({FOLLOWER}))
        third = pair.primary.write(3, pattern(3))
        pair.acks = True
        assert await third == 0
        await pair.close()

    run(scenario())
