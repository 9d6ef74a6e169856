"""The client against the real target on loopback: every command, and who is fenced off by whom."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from kit import host
from kit.sled import Sled, running_sled

from sled_controller import association
from sled_controller.errors import CommandFailed, CredentialRefused, FencedOff, SledUnavailable, Superseded
from sled_controller.fabric.attachment import Attachment
from sled_controller.fabric.client import ClientState, SledClient
from sled_controller.fabric.pdu import Digest
from sled_controller.keyset import KeySet
from sled_controller.receipt import DeviceState
from sled_controller.session import nonce_of
from spdk_bindings.nvme import Status

MIB = bytes(os.urandom(4096)) * 256
BLOCKS = 1024
Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    runner = {"asyncio": asyncio.run, "uvloop": uvloop.run}[request.param]

    def bounded(scenario: Callable[[], Awaitable[None]]) -> None:
        runner(asyncio.wait_for(scenario(), 20))

    return bounded


@asynccontextmanager
async def opened(sled: Sled, **settings: object) -> AsyncIterator[SledClient]:
    client = sled.client(**settings)  # type: ignore[arg-type]
    await client.open()
    try:
        yield client
    finally:
        await client.close()
        assert client.closed.done()


async def attached(client: SledClient, **fields: int) -> tuple[Attachment, int]:
    volume = await client.attach(host.signed(**fields), 1)
    return volume, await volume.create_namespace(3, BLOCKS)


@pytest.mark.parametrize("digests", [0, Digest.HEADER | Digest.DATA])
def test_every_command_does_what_it_says(run: Run, digests: int) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled, digests=digests) as client:
            volume, nsid = await attached(client)
            assert volume.receipt.devices == ((0, DeviceState.DRAINED),)
            assert await volume.create_namespace(3, BLOCKS) == nsid
            assert [(e.nsid, e.column, e.blocks) for e in await volume.namespaces()] == [(nsid, 3, BLOCKS)]
            await volume.write(nsid, 7, [MIB[:100], MIB[100:8192]], fua=True)
            assert bytes(await volume.read(nsid, 7, 2)) == MIB[:8192]
            await volume.flush(nsid)
            await volume.write_zeroes(nsid, 7, 1)
            assert bytes(await volume.read(nsid, 7, 2)) == bytes(4096) + MIB[4096:8192]
            await volume.deallocate(nsid, 8, 1)
            assert bytes(await volume.read(nsid, 7, 2)) == bytes(8192)
            await volume.delete_namespace(nsid)
            assert await volume.namespaces() == []

    run(scenario)


@pytest.mark.parametrize("digests", [0, Digest.HEADER | Digest.DATA])
def test_a_mebibyte_travels_by_r2t_and_back_many_at_once(run: Run, digests: int) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled, digests=digests) as client:
            volume, nsid = await attached(client)
            parts = [memoryview(MIB)[at : at + 131072] for at in range(0, len(MIB), 131072)]
            await asyncio.gather(*(volume.write(nsid, lba, parts) for lba in range(0, BLOCKS, 256)))
            for data in await asyncio.gather(*(volume.read(nsid, lba, 256) for lba in range(0, BLOCKS, 256))):
                assert data == MIB

    run(scenario)


def test_more_commands_than_the_queue_holds_wait_their_turn(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as client:
            volume, nsid = await attached(client)
            writes = [volume.write(nsid, n % BLOCKS, [n.to_bytes(4, "little") * 1024]) for n in range(700)]
            await asyncio.gather(*writes)
            data = await asyncio.gather(*(volume.read(nsid, lba, 1) for lba in range(700)))
            assert [int.from_bytes(block[:4], "little") for block in data] == list(range(700))

    run(scenario)


def test_a_newer_epoch_fences_the_first_client_off_and_shows_its_credential(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as first, opened(sled, head=host.OTHER_HEAD_KEY) as second:
            old, nsid = await attached(first)
            newer = host.signed(epoch=6, head=host.OTHER_HEAD_KEY)
            new = await second.attach(newer, 1)
            await new.write(nsid, 0, [MIB[:4096]])
            stale = [
                old.write(nsid, 0, [bytes(4096)]),
                old.read(nsid, 0, 1),
                old.flush(nsid),
                old.deallocate(nsid, 0, 1),
            ]
            for outcome in await asyncio.gather(*stale, return_exceptions=True):
                assert isinstance(outcome, FencedOff)
                assert (outcome.epoch, outcome.credential) == (6, newer)
            refusals = sled.subsystem.counters.fenced_off
            with pytest.raises(FencedOff) as again:
                await old.write_zeroes(nsid, 0, 1)
            assert again.value.credential == newer
            assert sled.subsystem.counters.fenced_off == refusals, "the sled was asked again"
            with pytest.raises(FencedOff) as managing:
                await old.delete_namespace(nsid)
            assert managing.value.credential == newer
            assert bytes(await new.read(nsid, 0, 1)) == MIB[:4096]

    run(scenario)


def test_an_attach_below_the_fence_learns_the_newer_credential(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as first, opened(sled, head=host.OTHER_HEAD_KEY) as second:
            newer = host.signed(epoch=6, head=host.OTHER_HEAD_KEY)
            await second.attach(newer, 1)
            with pytest.raises(FencedOff) as refused:
                await first.attach(host.signed(epoch=5), 1)
            assert (refused.value.epoch, refused.value.credential) == (6, newer)

    run(scenario)


def test_a_reconnection_of_the_same_epoch_supersedes_the_former_attach(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as first, opened(sled) as second:
            old, nsid = await attached(first)
            new = await second.attach(host.signed(), 2)
            assert new.receipt.attach_number == 2
            with pytest.raises(Superseded) as refused:
                await old.write(nsid, 0, [bytes(4096)])
            assert refused.value.epoch == 5
            with pytest.raises(Superseded):
                await first.attach(host.signed(), 1)
            await new.write(nsid, 0, [bytes(4096)])

    run(scenario)


def test_an_association_whose_slots_are_used_up_ends_so_that_another_one_can_attach(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association, "SLOTS_MAX", 2)

    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            for number in (1, 2):
                await client.attach(host.signed(), number)
            with pytest.raises(SledUnavailable, match="slots are used up"):
                await client.attach(host.signed(), 3)
            await client.closed
            async with opened(sled) as another:
                assert (await another.attach(host.signed(), 3)).receipt.attach_number == 3

    run(scenario)


def test_a_renewal_keeps_the_slot(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as client:
            volume, nsid = await attached(client)
            await volume.renew(host.signed(issued_ms=host.NOW_MS + 1000, serial=10))
            assert volume.credential.serial == 10
            await volume.flush(nsid)

    run(scenario)


@pytest.mark.parametrize(
    ("fields", "signer", "words"),
    [
        ({}, host.HEAD_KEY, "signature"),
        ({"head": host.OTHER_HEAD_KEY}, host.AUTHORITY, "another head"),
        ({"issued_ms": host.NOW_MS - host.TERM_MS - 1}, host.AUTHORITY, "expired"),
    ],
)
def test_a_credential_that_proves_nothing_is_refused_and_the_association_lives(
    run: Run, fields: dict[str, int], signer: int, words: str
) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as client:
            with pytest.raises(CredentialRefused, match=words):
                await client.attach(host.credential(**fields).sign(host.private_key(signer)), 1)  # type: ignore[arg-type]
            await attached(client)

    run(scenario)


def test_another_volumes_namespace_is_out_of_reach(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as client:
            _, nsid = await attached(client)
            other = await client.attach(host.signed(volume=host.HEAD), 1)
            for attempt in (other.write(nsid, 0, [bytes(4096)]), other.read(nsid, 0, 1), other.deallocate(nsid, 0, 1)):
                with pytest.raises(CredentialRefused, match="volume"):
                    await attempt
            with pytest.raises(CredentialRefused):
                await other.delete_namespace(nsid)

    run(scenario)


def test_a_range_beyond_the_namespace_fails_that_command_only(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as client:
            volume, nsid = await attached(client)
            for attempt in (volume.write(nsid, BLOCKS, [bytes(4096)]), volume.read(nsid, BLOCKS - 1, 2)):
                with pytest.raises(CommandFailed) as failed:
                    await attempt
                assert failed.value.status == Status.LBA_OUT_OF_RANGE
            with pytest.raises(CommandFailed):
                await volume.write(nsid, BLOCKS - 1, [MIB])  # by R2T
            with pytest.raises(CommandFailed) as failed:
                await volume.flush(nsid + 1)
            assert failed.value.status == Status.INVALID_NAMESPACE
            await volume.flush(nsid)

    run(scenario)


def test_a_newer_key_set_is_carried_to_the_sled(run: Run) -> None:
    async def scenario() -> None:
        keys = [host.key_set(4)]
        async with running_sled() as sled:
            async with opened(sled, key_set=lambda: keys[0].sign(host.private_key(host.ROOT))) as client:
                assert sled.subsystem.key_set == keys[0]
                keys[0] = KeySet(5, {8: host.public_key(host.AUTHORITY)}, host.NOW_MS)
                await client.push_key_set()
                assert sled.subsystem.key_set == keys[0]
            async with opened(sled) as older:  # version 1
                assert sled.subsystem.key_set == keys[0]
                with pytest.raises(CredentialRefused):
                    await older.attach(host.signed(), 1)

    run(scenario)


def test_a_forged_key_set_is_refused_and_the_association_opens(run: Run) -> None:
    async def scenario() -> None:
        forged = host.key_set(9).sign(host.private_key(host.HEAD_KEY))
        async with running_sled() as sled, opened(sled), opened(sled, key_set=lambda: forged):
            assert sled.subsystem.key_set == host.key_set()

    run(scenario)


def test_a_sled_that_goes_away_fails_what_is_pending(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            volume, nsid = await attached(client)
            pending = [volume.write(nsid, 0, [MIB]) for _ in range(300)]
            await sled.server.close()
            await client.closed
            outcomes = await asyncio.gather(*pending, return_exceptions=True)
            assert any(isinstance(outcome, SledUnavailable) for outcome in outcomes)
            assert all(outcome is None or isinstance(outcome, SledUnavailable) for outcome in outcomes)
            with pytest.raises(SledUnavailable):
                await volume.flush(nsid)
            with pytest.raises(SledUnavailable):
                await client.attach(host.signed(), 2)

    run(scenario)


def test_closing_fails_what_is_pending(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            volume, nsid = await attached(client)
            pending = [volume.write(nsid, 0, [MIB]) for _ in range(200)]
            await client.close()
            await client.closed
            outcomes = await asyncio.gather(*pending, return_exceptions=True)
            assert all(isinstance(outcome, SledUnavailable) for outcome in outcomes)
            assert client.state is ClientState.CLOSED

    run(scenario)


def test_a_cancelled_wait_leaves_the_association_intact(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as client:
            volume, nsid = await attached(client)
            for future in (volume.write(nsid, 0, [MIB]), volume.read(nsid, 0, 256)):
                future.cancel()
            await volume.write(nsid, 0, [MIB])
            assert await volume.read(nsid, 0, 256) == MIB

    run(scenario)


def test_gmac_nonce_never_repeats(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sled accepts commands of all kinds on both queues only because its count is ours, each once."""
    from sled_controller import session

    ledger = host.NonceLedger()
    real = session.QueueMac._spend

    def noting(mac: session.QueueMac, count: int) -> None:
        ledger.note(str(id(mac)).encode(), nonce_of(count))
        real(mac, count)

    monkeypatch.setattr(session.QueueMac, "_spend", noting)

    async def scenario() -> None:
        async with running_sled() as sled, opened(sled) as first, opened(sled) as second:
            for number, client in enumerate((first, second), 1):
                volume = await client.attach(host.signed(), number)
                nsid = await volume.create_namespace(0, BLOCKS)
                await asyncio.gather(*(volume.write(nsid, 0, [MIB[: 4096 << n % 9]]) for n in range(200)))
            assert len(ledger.seen) == 2 * (3 + 200) + 1  # and one key set

    run(scenario)


def test_a_head_gives_another_host_id_with_each_association(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled, opened(sled), opened(sled):
            ids = [association.host_id for association in sled.subsystem.hosts.values()]
            assert len({*ids, host.HEAD.bytes}) == 3

    run(scenario)
