"""A deleted volume's fence is forgotten by real sleds, and never while a credential for it could verify again (F2)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, ManualClock, RecordingFencer, SeededEntropy, rack

from head_node.authority.errors import NotFound
from head_node.authority.fencing import SledFencer
from head_node.authority.ledger import HORIZON_KEY, tombstone_key
from head_node.authority.retirement import SETTLE_MS, TERM_MS_MAX
from head_node.store.records import VolumeRecord
from sled_controller.association import Refusal
from sled_controller.credential import Rights, parse_credential
from sled_controller.environment import Environment
from sled_controller.errors import CredentialRefused, SledUnavailable
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.target_server import TargetServer
from sled_controller.retirement import Retirement
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity, Subsystem
from spdk_bindings.emulator import MemoryDevice

SLED = UUID(int=77)
SLED_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HORIZON_MS = 660_000
"""When a volume may be forgotten at the latest: the term of its last credential and a step of the horizon."""


class RealTimeClock(ManualClock):
    """Its wall clock can be set back; what counts since boot goes on."""

    set_back_ms = 0

    def wall_ms(self) -> int:
        return self.now_ms - self.set_back_ms


class Sled:
    """A real sled with a clock of its own, which can be restarted."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.clock = RealTimeClock()
        self.device = MemoryDevice(16384)
        self.storage: SledStorage
        self.subsystem: Subsystem
        self._server: TargetServer

    async def start(self, *, format: bool = False) -> None:  # noqa: A002
        env = Environment(self.clock)
        self.storage = await SledStorage.open((self.device,), sled_id=SLED, env=env, format=format)
        identity = Identity(SLED, SLED_KEY, self.kit.authority.root_public)
        self.subsystem = Subsystem(identity, self.storage, env, asyncio.get_running_loop().call_later)
        self._server = TargetServer(self.subsystem)
        address = await self._server.start("127.0.0.1", 0)
        public = SLED_KEY.public_key().public_bytes_raw()
        await self.kit.authority.nodes.enrol_sled(SLED, "real", public, "nqn", address, 0)

    async def stop(self) -> None:
        await self._server.close()

    @asynccontextmanager
    async def client(self, head: Head) -> AsyncIterator[SledClient]:
        """An association of a head; it carries the key set of now."""
        record = (await self.kit.authority.ledger.rack()).sleds[SLED].value
        key_set = (await self.kit.authority.keyring.current()).signed_set
        client = SledClient(
            host=record.address[0], port=record.address[1], sled_id=SLED, sled_public=record.public_key,
            head_key=head.key, head_id=head.id, env=Environment(ManualClock()), key_set=lambda: key_set,
        )  # fmt: skip
        await client.open()
        try:
            yield client
        finally:
            await client.close()


class Case:
    """A rack whose one real sled knows a volume that a head was given in epoch 1; five other sleds are down."""

    def __init__(self, kit: Kit, sled: Sled, head: Head, record: VolumeRecord, credential: bytes) -> None:
        self.kit = kit
        self.sled = sled
        self.head = head
        self.record = record
        self.volume = record.volume
        self.credential = credential

    def pass_time(self, milliseconds: int) -> None:
        self.kit.clock.advance(milliseconds)
        self.sled.clock.advance(milliseconds)

    async def delete(self) -> None:
        await self.kit.authority.volumes.delete(self.volume)
        await self.head.client.confirm_deleted(self.volume, epoch=self.record.epoch)

    async def tombstone(self) -> Mapping[str, Any] | None:
        found = await self.kit.authority.ledger.json(tombstone_key(self.volume))
        return None if found is None else found.value

    async def advance(self) -> bool:
        """One round of the authority's upkeep; whether the real sled has confirmed."""
        await self.kit.authority.retirements.advance()
        left = await self.tombstone()
        return left is None or str(SLED) not in left["sleds"]

    def fenced(self) -> bool:
        return self.sled.storage.fence_of(self.volume) is not None

    async def statement(self, over_ms: int, epoch: int = 1) -> bytes:
        """What the authority would sign."""
        key = (await self.kit.authority.keyring.current()).signer(self.kit.clock.now_ms)
        private = Ed25519PrivateKey.from_private_bytes(key.private)
        return Retirement(key.key_id, self.volume, epoch, over_ms).sign(private)

    async def refusal(self, statement: bytes) -> int:
        """The code with which the sled refuses a statement; 0 when it takes it."""
        async with self.sled.client(self.head) as client:
            try:
                await client.retire(statement)
            except CredentialRefused as error:
                return error.code
        return 0


def run(scenario: Callable[[Case], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = ManualClock()
        fencer = SledFencer(Environment(clock, SeededEntropy(3)))
        async with asyncio.timeout(20), rack(clock=clock, fencer=fencer) as kit:
            fencer.bind(kit.authority)
            sled = Sled(kit)
            await sled.start(format=True)
            for number in range(5):
                public = Ed25519PrivateKey.from_private_bytes(kit.env.entropy.bytes(32)).public_key()
                down = ("127.0.0.1", 9)  # nothing listens there
                await kit.authority.nodes.enrol_sled(
                    UUID(int=number), f"down-{number}", public.public_bytes_raw(), "nqn", down, 0
                )
            head = await kit.enrolled("head-1")
            made = await kit.volume()
            record, credential = await head.client.takeover(made.volume, expected_version=made.version, log_id=head.log)
            async with sled.client(head) as client:
                await client.attach(credential, 1)
            try:
                await scenario(Case(kit, sled, head, record, credential))
            finally:
                await sled.stop()

    asyncio.run(main())


def test_f2_a_deleted_volumes_fence_is_forgotten_when_no_credential_can_verify_again() -> None:
    async def scenario(case: Case) -> None:
        await case.delete()
        assert not await case.advance()
        case.pass_time(case.kit.authority.policy.credential_term_ms - 1)
        assert not await case.advance()
        assert case.fenced()
        case.pass_time(HORIZON_MS)
        assert await case.advance()
        assert not case.fenced()
        assert case.volume not in case.sled.subsystem.volumes
        left = await case.tombstone()
        assert left is not None
        assert len(left["sleds"]) == 5  # those that are down are told when they are back
        async with case.sled.client(case.head) as client:
            with pytest.raises(CredentialRefused, match="expired"):
                await client.attach(case.credential, 2)

    run(scenario)


@pytest.mark.parametrize("restart", [False, True])
def test_f2_the_clock_of_a_sled_that_forgot_a_fence_cannot_be_set_back_behind_it(restart: bool) -> None:
    async def scenario(case: Case) -> None:
        await case.delete()
        case.kit.clock.advance(2 * HORIZON_MS)
        case.sled.clock.set_back_ms = -2 * HORIZON_MS  # nothing but the sled's wall clock says how late it is
        assert await case.advance()
        case.sled.clock.set_back_ms = 0
        if restart:
            await case.sled.stop()
            await case.sled.start()
        assert not case.fenced()
        async with case.sled.client(case.head) as client:
            with pytest.raises(CredentialRefused, match="expired"):
                await client.attach(case.credential, 2)

    run(scenario)


def test_f2_a_sled_forgets_nothing_before_its_own_time_has_come_and_is_not_moved_there() -> None:
    async def scenario(case: Case) -> None:
        """An authority whose clock is a day ahead poisons no sled's time."""
        await case.delete()
        case.kit.clock.advance(86_400_000)
        before_ms = case.sled.subsystem.now_ms()
        assert not await case.advance()
        assert case.fenced()
        assert await case.refusal(await case.statement(case.sled.clock.now_ms + 1)) == Refusal.NOT_OVER
        assert case.sled.subsystem.now_ms() == before_ms
        case.sled.clock.advance(HORIZON_MS)
        assert await case.advance()
        assert not case.fenced()

    run(scenario)


def test_f2_a_credential_of_far_expiry_keeps_the_fence() -> None:
    async def scenario(case: Case) -> None:
        """The authority's clock was a day ahead when it renewed; that credential is good for a day and a term."""
        case.kit.clock.advance(86_400_000)
        far = await case.head.client.renew(case.volume, epoch=1)
        case.kit.clock.now_ms -= 86_400_000
        await case.delete()
        case.pass_time(HORIZON_MS + SETTLE_MS)
        assert not await case.advance()
        assert case.fenced()
        case.pass_time(86_400_000)
        assert case.sled.subsystem.now_ms() > parse_credential(far).credential.expires_ms
        assert await case.advance()

    run(scenario)


def test_f2_a_credential_that_is_signed_after_the_deletion_postpones_it() -> None:
    async def scenario(case: Case) -> None:
        """As for deleting what a sled that was away still has."""
        await case.delete()
        case.pass_time(HORIZON_MS)
        await case.kit.authority.volumes.sign_for(case.record.volume, case.record.epoch, bytes(32), Rights.MANAGE, [])
        case.pass_time(SETTLE_MS + 1)
        assert not await case.advance()
        assert case.fenced()
        case.pass_time(HORIZON_MS)
        assert await case.advance()

    run(scenario)


def test_f2_no_credential_leaves_for_a_volume_that_is_forgotten() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        await kit.authority.volumes.delete(record.volume)
        await primary.client.confirm_deleted(record.volume, epoch=1)
        kit.clock.advance(2 * HORIZON_MS)
        await kit.authority.retirements.advance()
        assert await kit.authority.ledger.json(tombstone_key(record.volume)) is None
        with pytest.raises(NotFound):
            await kit.authority.volumes.sign_for(record.volume, record.epoch, bytes(32), Rights.READ)

    async def main() -> None:
        async with asyncio.timeout(20), rack(fencer=RecordingFencer()) as kit:
            await scenario(kit)

    asyncio.run(main())


def test_f2_every_credential_expires_before_the_horizon_that_the_store_has() -> None:
    async def scenario(case: Case) -> None:
        for _ in range(5):
            case.pass_time(50_000)
            credential = parse_credential(await case.head.client.renew(case.volume, epoch=1)).credential
            horizon = await case.kit.authority.ledger.json(HORIZON_KEY)
            assert horizon is not None
            assert credential.expires_ms < horizon.value <= credential.expires_ms + 60_000

    run(scenario)


def test_a_sled_that_was_away_is_told_when_it_is_back() -> None:
    async def scenario(case: Case) -> None:
        await case.sled.stop()
        await case.delete()
        case.pass_time(2 * HORIZON_MS)
        assert not await case.advance()
        await case.sled.start()
        assert case.fenced()
        assert await case.advance()
        assert not case.fenced()

    run(scenario)


def test_f2_a_namespace_keeps_its_volumes_fence() -> None:
    async def scenario(case: Case) -> None:
        async with case.sled.client(case.head) as client:
            attachment = await client.attach(case.credential, 2)
            nsid = await attachment.create_namespace(0, 100)
            case.pass_time(2 * HORIZON_MS)
            over_ms = case.sled.clock.now_ms
            assert await case.refusal(await case.statement(over_ms)) == Refusal.NAMESPACES_REMAIN
            assert case.fenced()
            assert case.sled.storage.delete_namespace(nsid, lambda _: None) == 0
            assert await case.refusal(await case.statement(over_ms)) == 0
            assert not case.fenced()

    run(scenario)


def test_f2_an_old_statement_does_not_lower_the_fence_of_a_volume_that_a_restored_store_brought_back() -> None:
    async def scenario(case: Case) -> None:
        case.pass_time(2 * HORIZON_MS)
        old = await case.statement(case.sled.clock.now_ms)
        renewed = await case.head.client.renew(case.volume, epoch=1)
        async with case.sled.client(case.head) as client:
            await client.attach(renewed, 2)
            assert await case.refusal(old) == Refusal.NOT_OVER
        case.pass_time(2 * HORIZON_MS)
        assert await case.refusal(old) == Refusal.NOT_OVER  # the fence's own credential was valid at that time
        assert case.fenced()
        assert await case.refusal(await case.statement(case.sled.clock.now_ms, epoch=0)) == Refusal.NEWER_EPOCH
        assert case.fenced()

    run(scenario)


def test_a_statement_may_come_again() -> None:
    async def scenario(case: Case) -> None:
        case.pass_time(2 * HORIZON_MS)
        statement = await case.statement(case.sled.clock.now_ms)
        assert await case.refusal(statement) == 0
        assert await case.refusal(statement) == 0
        assert not case.fenced()

    run(scenario)


def test_a_statement_is_signed_with_the_key_that_signs_now() -> None:
    async def scenario(case: Case) -> None:
        await case.delete()
        await case.kit.authority.keyring.rotate(publish_ms=0)
        case.pass_time(2 * HORIZON_MS)
        await case.kit.authority.keyring.retire()
        assert await case.advance()
        assert not case.fenced()

    run(scenario)


def test_a_forged_statement_is_refused() -> None:
    async def scenario(case: Case) -> None:
        case.pass_time(2 * HORIZON_MS)
        forged = Retirement(1, case.volume, 1, case.sled.clock.now_ms).sign(case.head.key)
        assert await case.refusal(forged) == Refusal.SIGNATURE
        assert await case.refusal(forged[:-1]) == Refusal.MALFORMED
        assert case.fenced()

    run(scenario)


def test_after_a_restore_nothing_is_forgotten_before_the_longest_term_is_over() -> None:
    async def scenario(case: Case) -> None:
        await case.delete()
        await case.kit.authority.retirements.restored()
        left = await case.tombstone()
        assert left is not None
        assert left["over_ms"] >= case.kit.clock.now_ms + TERM_MS_MAX
        case.pass_time(2 * HORIZON_MS)
        assert not await case.advance()
        case.pass_time(TERM_MS_MAX)
        assert await case.advance()

    run(scenario)


def test_a_sled_that_heads_do_not_reach_costs_no_time() -> None:
    async def scenario(case: Case) -> None:
        await case.delete()
        case.pass_time(2 * HORIZON_MS)
        await case.head.client.report({"sleds": {str(SLED): {"reachable": False}}})
        assert not await case.advance()
        await case.head.client.report({"sleds": {str(SLED): {"reachable": True}}})
        assert await case.advance()

    run(scenario)


def test_a_volume_that_never_had_an_epoch_leaves_nothing_behind() -> None:
    async def scenario(case: Case) -> None:
        made = await case.kit.volume("other")
        await case.kit.authority.volumes.delete(made.volume)
        assert await case.kit.authority.ledger.json(tombstone_key(made.volume)) is None

    run(scenario)


def test_an_association_that_ends_meanwhile_is_tried_again() -> None:
    async def scenario(case: Case) -> None:
        case.pass_time(2 * HORIZON_MS)
        async with case.sled.client(case.head) as client:
            await case.sled.stop()
            with pytest.raises(SledUnavailable):
                await client.retire(await case.statement(case.sled.clock.now_ms))
        await case.sled.start()
        assert await case.refusal(await case.statement(case.sled.clock.now_ms)) == 0

    run(scenario)
