"""Clocks that are wrong, each in every way, and put right: the rack goes on, at the latest when an operator says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kit.authority import Head, Kit, ManualClock, RecordingFencer, SeededEntropy, rack, run
from kit.enrolled_sled import SLED, connected, create_with, enrolled_sled

from head_node.authority.authority import Policy
from head_node.authority.errors import Conflict
from head_node.authority.fencing import SledFencer
from head_node.authority.ledger import HORIZON_KEY, TIME_KEY
from head_node.authority.retirement import TERM_MS_MAX
from head_node.authority.time_repair import RESTORED_SERIALS_SKIPPED, TAKEN
from head_node.store.records import VolumeRecord
from head_node.volume.geometry import Geometry
from sled_controller.environment import TIME_MS_MAX, Environment
from sled_controller.errors import SledError
from sled_controller.time_statement import TimeStatement

MINUTE, DAY, YEAR = 60_000, 86_400_000, 365 * 86_400_000
ONE_OF_TWO = Policy(geometry=Geometry(data_shards=1, parity_shards=1, shard_blocks=16))
FAULTS = ["ahead", "behind", "far ahead", "1970", "before 1970", "stuck", "year 9999", "2^63", "2^64"]


class BrokenClock(ManualClock):
    """A machine's clocks: its uptime is right, what it shows is set by a fault."""

    def __init__(self, right: ManualClock) -> None:
        super().__init__(right.now_ms)
        self._right = right
        self._stuck_ms = right.now_ms
        self.fault = ""

    def boottime_ns(self) -> int:
        return self._right.boottime_ns()

    def wall_ms(self) -> int:
        now_ms = self._right.now_ms
        shown = {
            "": now_ms, "ahead": now_ms + DAY, "behind": now_ms - DAY, "far ahead": now_ms + YEAR, "1970": 0,
            "before 1970": -YEAR, "stuck": self._stuck_ms, "year 9999": TIME_MS_MAX, "2^63": 1 << 63,
            "2^64": (1 << 64) - 1,
        }  # fmt: skip
        return shown[self.fault]


class Case:
    """A rack of one real sled of one shard, whose head is primary of a volume; each has clocks of its own."""

    def __init__(self, kit: Kit, right: ManualClock, clocks: dict[str, BrokenClock], head: Head) -> None:
        self.kit = kit
        self.right = right
        self.clocks = clocks
        self.head = head
        self.record: VolumeRecord
        self.attaches = 0

    async def serves(self) -> bool:
        """Whether the head gets a credential that the sled takes, if it says once that the first has expired."""
        self.attaches += 1
        async with connected(self.kit, self.head, SLED) as client:
            for expired in (False, True):
                self.right.advance(1500)  # the authority asks sleds once a second
                credential = await self.head.client.renew(self.record.volume, epoch=1, expired=expired)
                try:
                    await client.attach(credential, 2 * self.attaches + expired)
                except SledError:
                    continue
                return True
        return False


@asynccontextmanager
async def case() -> AsyncIterator[Case]:
    right = ManualClock()
    clocks = {node: BrokenClock(right) for node in ("authority", "head", "sled")}
    fencer = SledFencer(Environment(right, SeededEntropy(3)))
    async with asyncio.timeout(20), rack(clock=clocks["authority"], fencer=fencer, policy=ONE_OF_TWO) as kit:
        fencer.bind(kit.authority)
        head = await kit.enrolled("head-1")
        head.client._env = Environment(clocks["head"], kit.env.entropy)
        async with enrolled_sled(kit, clock=clocks["sled"]):
            made = Case(kit, right, clocks, head)
            made.record, _ = await create_with(kit, head, down=1)
            assert await made.serves()
            yield made


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("broken", [("authority",), ("head",), ("sled",), ("authority", "head", "sled")])
def test_expiry_any_clock_may_be_wrong_in_any_way_and_right_again(broken: tuple[str, ...], fault: str) -> None:
    async def main() -> None:
        async with case() as rack_:
            for node in broken:
                rack_.clocks[node].fault = fault
            during = False
            for _ in range(20):
                rack_.right.advance(MINUTE // 60)
                during = await rack_.serves()
            assert during, "a clock that is wrong costs no more than another credential"
            for node in broken:
                rack_.clocks[node].fault = ""
            rack_.right.advance(1000)
            assert await rack_.serves(), "without an operator"
            _, done = await rack_.kit.authority.time.set(rack_.right.now_ms)
            assert [each.result for each in done if each.sled.id == SLED] == [TAKEN]
            assert await rack_.serves()
            assert rack_.kit.authority.issue.now_ms() == rack_.right.now_ms
            _, _, seen = await rack_.kit.authority.time.look()
            (told,) = [each.time_ms for each in seen if each.sled.id == SLED]
            assert 0 <= told - rack_.right.now_ms <= MINUTE

    asyncio.run(main())


def test_expiry_an_operator_brings_issue_time_and_sleds_back() -> None:
    async def main() -> None:
        async with case() as rack_:
            kit = rack_.kit
            rack_.clocks["sled"].fault = "far ahead"
            assert await rack_.serves()
            assert kit.authority.issue.now_ms() >= rack_.right.now_ms + YEAR, "it has followed"
            rack_.right.advance(1000)
            _, done = await kit.authority.time.set(rack_.right.now_ms)
            assert {each.sled.name: each.result == TAKEN for each in done} == {"real-77": True, "down-0": False}
            assert await rack_.serves(), "also while its clock is still wrong"
            assert kit.authority.issue.now_ms() == rack_.right.now_ms
            events = [event for event in kit.authority.reports.events(0) if event.kind == "time-stated"]
            assert events[-1].fields["serial"] == 1
            found = await kit.authority.ledger.json(TIME_KEY)
            assert found is not None
            assert len(found.value["sleds"]) == 1, "the one that is away has it to come"

    asyncio.run(main())


def test_expiry_the_time_of_sleds_that_still_have_to_be_told_is_not_followed() -> None:
    async def main() -> None:
        async with case() as rack_:
            kit, time = rack_.kit, rack_.kit.authority.time
            rack_.clocks["sled"].fault = "far ahead"
            kit.authority.issue.follow([rack_.right.now_ms + YEAR], 1)
            fencer, time._fencer = time._fencer, RecordingFencer()
            time._fencer.away.add(SLED)
            await time.set(rack_.right.now_ms)
            assert not await rack_.serves()
            assert kit.authority.issue.now_ms() == rack_.right.now_ms
            time._fencer = fencer
            await time.advance()
            assert await rack_.serves()

    asyncio.run(main())


def test_expiry_clocks_that_disagree_set_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        for off_ms in (DAY, -DAY):
            with pytest.raises(Conflict, match=rf"\{-off_ms // 1000:+d} s off yours"):
                await kit.authority.time.set(kit.clock.now_ms + off_ms)
        assert await kit.authority.ledger.json(TIME_KEY) is None

    run(scenario)


def test_expiry_what_was_signed_in_a_wrong_time_is_void_a_term_after_the_repair() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        authority = kit.authority
        primary, _, record = await kit.ready()
        authority.issue.follow([kit.clock.now_ms + YEAR] * 6, 4)
        await primary.client.renew(record.volume, epoch=1)
        await authority.keyring.rotate()  # in vain, at a time a year ahead
        old = {key.key_id for key in (await authority.keyring.current()).keys}
        horizon = await authority.ledger.json(HORIZON_KEY)
        assert horizon is not None
        assert horizon.value > kit.clock.now_ms + YEAR
        await authority.time.set(kit.clock.now_ms)
        statements = {sled: TimeStatement.open(raw, authority.root_public) for sled, raw in fencer.stated}
        assert {each.time_ms for each in statements.values()} == {kit.clock.now_ms}
        assert all(each.sled == sled and each.boot_counter == 1 for sled, each in statements.items())
        await authority.time.advance()
        assert (await authority.ledger.json(HORIZON_KEY)) == horizon, "credentials of a year ahead verify still"
        kit.clock.advance(authority.policy.credential_term_ms + 2 * MINUTE)
        await authority.keyring.retire()
        assert not old & {key.key_id for key in (await authority.keyring.current()).keys}
        await authority.time.advance()
        lowered = await authority.ledger.json(HORIZON_KEY)
        assert lowered is not None
        assert lowered.value == kit.clock.now_ms + TERM_MS_MAX

    run(scenario, fencer=fencer)


def test_expiry_a_restored_store_states_time_above_all_that_sleds_may_have_taken() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.authority.time.set(kit.clock.now_ms)
        await kit.authority.time.restored()
        serial, _ = await kit.authority.time.set(kit.clock.now_ms)
        assert serial == RESTORED_SERIALS_SKIPPED + 2

    run(scenario)


def test_expiry_a_sled_that_took_a_higher_serial_on_its_console_takes_the_next_one() -> None:
    async def main() -> None:
        async with case() as rack_:
            kit = rack_.kit
            by_hand = TimeStatement(1, rack_.right.now_ms - DAY).sign(kit.root_key)
            async with connected(kit, rack_.head, SLED) as client:
                await client.state_time(by_hand)
            serial, done = await kit.authority.time.set(rack_.right.now_ms)
            assert serial == 1
            assert [each.result for each in done if each.sled.id == SLED] == [TAKEN]
            assert (await kit.authority.time.look())[0] == 2

    asyncio.run(main())
