"""A sled whose boot counter went back is refused by authority and heads, shown, and accepted by an operator (F2)."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from kit.authority import Kit, ManualClock, RecordingFencer, SeededEntropy, rack, run
from kit.enrolled_sled import SLED, create_with, enrolled_sled
from kit.memory_sled import MemorySled, MemorySledClient
from kit.virtual_time import run_virtual

from head_node.api import overview
from head_node.authority.authority import Policy
from head_node.authority.errors import Conflict, NotFound
from head_node.authority.fencing import FENCED, SledFencer
from head_node.cluster.sleds import BACKOFF_SECONDS_MAX, Sleds
from head_node.store.records import SledRecord
from head_node.volume.geometry import Geometry
from sled_controller.environment import Environment
from sled_controller.sled_start import SledStart

ONE_OF_TWO = Policy(geometry=Geometry(data_shards=1, parity_shards=1, shard_blocks=16))
NEWER, OLDER, OTHER = SledStart(12, b"12345678"), SledStart(11, b"abcdefgh"), SledStart(12, b"xxxxxxxx")


@pytest.mark.parametrize(
    ("seen", "now", "why"),
    [
        (SledStart(), OLDER, ""),
        (OLDER, OLDER, ""),
        (OLDER, NEWER, ""),
        (SledStart(12), NEWER, ""),
        (NEWER, SledStart(12), ""),
        (NEWER, OLDER, "its boot counter went back from 12 to 11"),
        (NEWER, OTHER, "its boot counter 12 is that of another start, too"),
        (SledStart((1 << 64) - 1), SledStart(1), f"its boot counter went back from {(1 << 64) - 1} to 1"),
    ],
)
def test_f2_a_boot_counter_that_went_back_or_comes_twice_is_told(seen: SledStart, now: SledStart, why: str) -> None:
    assert seen.went_back(now) == why


def report(kit: Kit, head: UUID, sled: UUID, start: SledStart) -> None:
    about = {"reachable": True, "boot_counter": start.boot_counter, "boot_id": start.boot_id.hex()}
    kit.authority.reports.add_report(head, {"sleds": {str(sled): about}})


def test_f2_the_authority_notes_what_it_has_seen_itself_and_refuses_what_went_back() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        starts = kit.authority.starts
        primary, _, _ = await kit.ready()
        sled = next(iter((await kit.authority.ledger.rack()).sleds))

        async def record() -> SledRecord:
            return (await kit.authority.ledger.rack()).sleds[sled].value

        report(kit, primary.id, sled, SledStart((1 << 64) - 1))
        await starts.look()
        assert (await record()).start == SledStart(), "a head's word alone is none: it could have a sled refused"
        fencer.starts[sled] = NEWER
        report(kit, primary.id, sled, NEWER)
        await starts.look()
        assert (await record()).start == NEWER
        for back in (OLDER, OTHER):
            fencer.starts[sled] = back
            report(kit, primary.id, sled, back)
            starts.refused.clear()
            await starts.look()
            await starts.look()
            assert (await record()).start == NEWER
            (shown,) = [
                each for each in overview.sleds(kit.authority, await kit.authority.ledger.rack()) if each.refused
            ]
            assert shown.id == sled
        told = [event for event in kit.authority.reports.events(0) if event.kind == "sled-went-back"]
        assert [event.fields["reason"] for event in told] == [NEWER.went_back(OLDER), NEWER.went_back(OTHER)]
        reply = await kit.operator.post(f"/v1/sleds/{sled}/accept")
        assert reply.status_code == 200, reply.text
        assert (await record()).start == OTHER
        assert (await record()).accepted == 1
        await starts.look()
        assert not starts.refused

    run(scenario, fencer=fencer)


def test_f2_a_sled_is_accepted_only_as_the_authority_meets_it() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        await kit.ready()
        sled = next(iter((await kit.authority.ledger.rack()).sleds))
        with pytest.raises(Conflict, match="has to answer"):
            await kit.authority.starts.accept(sled)
        fencer.starts[sled] = NEWER
        assert (await kit.authority.starts.accept(sled)).accepted == 0, "nothing had gone back"
        with pytest.raises(NotFound):
            await kit.authority.starts.accept(UUID(int=4711))

    run(scenario, fencer=fencer)


def test_f2_the_authority_fences_nobody_off_at_a_sled_that_was_put_back() -> None:
    async def main() -> None:
        clock = ManualClock()
        fencer = SledFencer(Environment(clock, SeededEntropy(3)))
        async with rack(clock=clock, fencer=fencer, policy=ONE_OF_TWO) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, _ = await create_with(kit, head, down=1)
                assert (await fencer.fence(record))[SLED] == FENCED
                noted = (await kit.authority.ledger.rack()).sleds[SLED].value
                assert noted.start.boot_counter == 1
                assert len(noted.start.boot_id) == 8
                await kit.authority.starts.meet(noted, SledStart(9, b"12345678"))
                assert (await fencer.fence(record))[SLED] == "its boot counter went back from 9 to 1"
                assert await fencer.start_of(noted) == noted.start
                await kit.authority.starts.accept(SLED)
                assert (await fencer.fence(replace(record, epoch=2)))[SLED] == FENCED

    asyncio.run(asyncio.wait_for(main(), 20))


def test_f2_a_head_uses_no_sled_whose_start_went_back_until_an_operator_accepts_it() -> None:
    async def main() -> None:
        sled = MemorySled(1)
        sled.boots = 5
        sleds = Sleds(lambda record: MemorySledClient(sled, lambda: False), Environment())  # type: ignore[arg-type, return-value]
        record = sled.record
        sleds.update({sled.id: record})

        async def settle() -> None:
            await asyncio.sleep(3 * BACKOFF_SECONDS_MAX)

        await settle()
        assert sleds.client(sled.id) is not None
        sled.boots = 3  # restored, with its state directory
        sled.kill()
        sled.dead = False
        await settle()
        assert sleds.client(sled.id) is None
        said = sleds.status()[str(sled.id)]
        assert "went back from 5 to 3" in str(said["reason"])
        assert said["boot_counter"] == 3
        sleds.update({sled.id: replace(record, start=SledStart(5))})
        await settle()
        assert sleds.client(sled.id) is None
        sleds.update({sled.id: replace(record, start=SledStart(3), accepted=1)})
        await settle()
        assert sleds.client(sled.id) is not None
        other = Sleds(lambda record: MemorySledClient(sled, lambda: False), Environment())  # type: ignore[arg-type, return-value]
        other.update({sled.id: replace(record, start=SledStart(4))})
        await settle()
        assert other.client(sled.id) is None, "a head that has just started knows it from the authority"
        await sleds.close()
        await other.close()

    run_virtual(main())
