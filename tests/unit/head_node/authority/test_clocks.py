"""No clock of the rack has to be right for a takeover: the authority's, a head's or the sleds' (expiry is hygiene)."""

import asyncio
from uuid import UUID

import pytest
from kit.authority import URL, Head, Kit, LosingTransport, ManualClock, RecordingFencer, rack, run, send_again
from kit.enrolled_sled import SLED, connected, create_with, enrolled_sled

from head_node.authority.authority import Policy
from head_node.authority.client import AuthorityClient
from head_node.authority.errors import AuthorityError
from head_node.authority.fencing import FENCED, SledFencer
from head_node.authority.issue_time import KEPT_STEP_MS, TIME_MAX_MS
from head_node.store.memory import MemoryStore
from head_node.volume.geometry import Geometry
from sled_controller.credential import parse_credential
from sled_controller.environment import Environment
from sled_controller.errors import CredentialExpired

MINUTE, DAY, YEAR = 60_000, 86_400_000, 365 * 86_400_000
OFFS = (2 * MINUTE, -2 * MINUTE, DAY, -DAY, YEAR)
ONE_OF_TWO = Policy(geometry=Geometry(data_shards=1, parity_shards=1, shard_blocks=16))


class SetClock(ManualClock):
    """A machine's clocks, one of which can be set."""

    def __init__(self, ahead_ms: int = 0) -> None:
        super().__init__()
        self.ahead_ms = ahead_ms

    def wall_ms(self) -> int:
        return self.now_ms + self.ahead_ms


def elsewhere(kit: Kit, head: Head, clock: ManualClock) -> Head:
    """The head as a process on a machine with clocks of its own."""
    transport = LosingTransport(head.transport._inner)
    env = Environment(clock, kit.env.entropy)
    root = kit.authority.root_public
    client = AuthorityClient(URL, head_id=head.id, head_key=head.key, env=env, root_public=root, transport=transport)
    kit.opened.append(client)
    return Head(head.id, head.key, client, transport, head.log)


@pytest.mark.parametrize("ahead_ms", OFFS)
def test_an_authority_whose_clock_is_off_gives_an_epoch(ahead_ms: int) -> None:
    async def scenario(kit: Kit) -> None:
        _, secondary, record = await kit.ready()
        head = elsewhere(kit, secondary, SetClock(ahead_ms))
        record, _ = await head.client.takeover(record.volume, expected_version=record.version, log_id=head.log)
        assert record.epoch == 2
        assert len(head.transport.sent) == 2, "the first request learns the instance and the time at once"
        await head.client.view()
        assert len(head.transport.sent) == 3

    run(scenario)


@pytest.mark.parametrize("ahead_ms", OFFS)
def test_clocks_that_are_set_while_both_run_cost_at_most_one_request(ahead_ms: int) -> None:
    clock, own = SetClock(), SetClock()

    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        head = elsewhere(kit, primary, own)
        await head.client.view()
        clock.ahead_ms, own.ahead_ms = ahead_ms, -ahead_ms
        before = len(head.transport.sent)
        await head.client.view()
        assert len(head.transport.sent) == before + 1
        own.advance(2 * MINUTE)  # uptimes part only where a machine was suspended
        await head.client.view()
        assert len(head.transport.sent) == before + 3

    run(scenario, clock=clock)


def test_a_repeated_request_is_refused_also_after_the_authority_was_a_day_ahead() -> None:
    clock = SetClock()

    async def scenario(kit: Kit) -> None:
        primary, secondary, _ = await kit.ready()
        await primary.client.view()
        captured = primary.transport.sent[-1]
        clock.ahead_ms = DAY
        await primary.client.view()
        await secondary.client.view()
        clock.ahead_ms = 0
        primary.transport.sent.append(captured)
        reply = await send_again(kit, primary)
        assert reply.status_code == 401
        assert "received before" in reply.json()["detail"]

    run(scenario, clock=clock)


def times_of(credential: bytes) -> tuple[int, int]:
    shown = parse_credential(credential).credential
    return shown.issued_ms, shown.expires_ms


def test_issue_time_never_falls_when_the_clock_is_set_back_or_the_authority_starts_again() -> None:
    clock, store = SetClock(), MemoryStore()

    async def main() -> None:
        async with rack(clock=clock, store=store) as kit:
            primary, _, record = await kit.ready()
            clock.ahead_ms = DAY
            ahead_ms, _ = times_of(await primary.client.renew(record.volume, epoch=1))
            assert ahead_ms == clock.now_ms + DAY
            clock.ahead_ms = 0
            clock.advance(MINUTE)
            issued_ms, expires_ms = times_of(await primary.client.renew(record.volume, epoch=1))
            assert issued_ms == ahead_ms + MINUTE
            assert expires_ms == issued_ms + kit.authority.policy.credential_term_ms
            await kit.authority.keyring.rotate()
        async with rack(clock=clock, store=store, seed=2) as again:
            assert again.authority.issue.now_ms() >= issued_ms - KEPT_STEP_MS
            head = again.restarted(primary)
            record, credential = await head.client.takeover(
                record.volume, expected_version=(await again.record(record.volume)).version, log_id=head.log
            )
            assert times_of(credential)[0] >= issued_ms - KEPT_STEP_MS

    asyncio.run(asyncio.wait_for(main(), 20))


def test_issue_time_follows_as_many_sleds_as_a_stripe_needs_and_no_single_one() -> None:
    async def scenario(kit: Kit) -> None:
        issue, now_ms = kit.authority.issue, kit.clock.now_ms
        assert not issue.follow([now_ms + YEAR], 4), "too few have said theirs"
        assert not issue.follow([now_ms, now_ms, now_ms, now_ms, now_ms + YEAR, now_ms + YEAR], 4)
        assert not issue.follow([TIME_MAX_MS + 1] * 6, 4), "a broken clock uses up the range"
        assert issue.now_ms() == now_ms
        assert issue.follow([now_ms + MINUTE, now_ms + DAY, now_ms + DAY, now_ms + DAY, now_ms + YEAR], 4)
        assert issue.now_ms() == now_ms + DAY
        kit.clock.advance(MINUTE)
        assert issue.now_ms() == now_ms + DAY + MINUTE

    run(scenario)


def test_only_the_primary_of_the_epoch_makes_the_authority_ask_the_sleds() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        fencer.times_ms = [kit.clock.now_ms + DAY] * 6
        secondary.client._claims[record.volume] = (1, "0" * 32)
        with pytest.raises(AuthorityError):
            await secondary.client.renew(record.volume, epoch=1, expired=True)
        assert kit.authority.issue.now_ms() == kit.clock.now_ms
        issued_ms, _ = times_of(await primary.client.renew(record.volume, epoch=1, expired=True))
        assert issued_ms == kit.clock.now_ms + DAY
        events = [event.kind for event in kit.authority.reports.events(0)]
        assert "issue-time-follows-sleds" in events
        fencer.times_ms = [kit.clock.now_ms + YEAR] * 6
        issued_ms, _ = times_of(await primary.client.renew(record.volume, epoch=1, expired=True))
        assert issued_ms == kit.clock.now_ms + DAY, "it asks them once a second at most"

    run(scenario, fencer=fencer)


@pytest.mark.parametrize("ahead_ms", [11 * MINUTE, DAY, YEAR])
def test_sleds_that_are_ahead_are_attached_with_a_credential_of_their_time(ahead_ms: int) -> None:
    async def main() -> None:
        clock, fencer = ManualClock(), SledFencer(Environment(ManualClock()))
        async with rack(clock=clock, fencer=fencer, policy=ONE_OF_TWO) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit, clock=SetClock(ahead_ms)):
                record, credential = await create_with(kit, head, down=1)
                async with connected(kit, head, SLED) as client:
                    with pytest.raises(CredentialExpired):
                        await client.attach(credential, 1)
                    credential = await head.client.renew(record.volume, epoch=1, expired=True)
                    await client.attach(credential, 2)
                done = await kit.authority.nodes.revoke_head(head.id)
                assert done.fences[record.volume][SLED] == FENCED

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_revoked_head_is_fenced_off_at_sleds_that_are_a_day_ahead() -> None:
    async def main() -> None:
        clock, fencer = ManualClock(), SledFencer(Environment(ManualClock()))
        async with rack(clock=clock, fencer=fencer, policy=ONE_OF_TWO) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit, clock=SetClock(DAY)):
                record, _ = await create_with(kit, head, down=1)
                done = await kit.authority.nodes.revoke_head(head.id)
                assert done.fences[record.volume][SLED] == FENCED
                assert done.fences[record.volume][UUID(int=0)] != FENCED

    asyncio.run(asyncio.wait_for(main(), 20))
