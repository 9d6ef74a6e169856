"""Takeover, membership and columns as heads meet them: F4 and F5 from outside, over signed requests."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from kit.authority import Kit, columns_of, rack, run, term_and_margin_ms
from rackctl.simulation.store import UncertainStore

from head_node.authority.errors import (
    AuthorityUnavailable,
    Conflict,
    Frozen,
    NotEligible,
    NotFound,
    RecordChanged,
    RequestRefused,
)
from head_node.store.memory import MemoryStore
from head_node.store.records import Member, VolumeState
from head_node.store.sqlite import SqliteStore
from sled_controller.credential import ALL_RIGHTS, Credential, Rights, parse_credential, verify
from sled_controller.keyset import KeySet


async def opened(kit: Kit, raw: bytes) -> Credential:
    """The credential as a sled would accept it."""
    ring = await kit.authority.keyring.current()
    return verify(parse_credential(raw), KeySet.open(ring.signed_set, kit.authority.root_public))


def test_the_first_assigned_head_makes_the_volume_in_epoch_one() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        await kit.sleds()
        made = await kit.volume()
        assert (made.state, made.epoch, made.primary, made.current) == (VolumeState.CREATING, 0, None, ())
        record, raw = await head.client.takeover(made.volume, expected_version=made.version, log_id=head.log)
        assert (record.epoch, record.primary, record.version) == (1, head.id, made.version + 1)
        assert record.current == (Member(head.id, head.log),)
        credential = await opened(kit, raw)
        assert (credential.volume, credential.epoch, credential.head_key) == (made.volume, 1, head.public)
        assert credential.rights == ALL_RIGHTS
        assert credential.expires_ms - credential.issued_ms == kit.authority.policy.credential_term_ms
        record = await head.client.set_columns(
            made.volume, epoch=1, expected_version=record.version, columns=columns_of(record)
        )
        assert (record.state, len(record.columns)) == (VolumeState.ACTIVE, 6)

    run(scenario)


def test_f4_takeover_is_one_transaction() -> None:
    """Epoch, primary and claim change together, and no credential exists before they are durable."""

    async def scenario(kit: Kit) -> None:
        _, secondary, record = await kit.ready()
        assert isinstance(kit.store, UncertainStore)
        before = (await kit.store.list("")).revision
        kit.store.lose = "before"
        with pytest.raises(AuthorityUnavailable, match="unknown"):
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        assert (await kit.store.list("")).revision == before
        assert await kit.record(record.volume) == record

        taken, raw = await secondary.client.takeover(
            record.volume, expected_version=record.version, log_id=secondary.log
        )
        assert (await kit.store.list("")).revision == before + 1
        assert taken == await kit.record(record.volume)
        assert (taken.epoch, taken.primary, taken.current) == (record.epoch + 1, secondary.id, record.current)
        assert (await opened(kit, raw)).epoch == taken.epoch

    run(scenario, store=UncertainStore())


def test_f4_an_unknown_outcome_signs_nothing_and_burns_the_epoch() -> None:
    async def scenario(kit: Kit) -> None:
        _, secondary, record = await kit.ready()
        assert isinstance(kit.store, UncertainStore)
        kit.store.lose = "after"
        with pytest.raises(AuthorityUnavailable, match="unknown"):
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        burned = await kit.record(record.volume)
        assert (burned.epoch, burned.primary) == (2, secondary.id)
        with pytest.raises(NotEligible):
            await secondary.client.renew(record.volume, epoch=2)
        with pytest.raises(RecordChanged) as changed:
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        assert changed.value.record == burned
        taken, _ = await secondary.client.takeover(record.volume, expected_version=burned.version, log_id=secondary.log)
        assert taken.epoch == 3

    run(scenario, store=UncertainStore())


def test_f4_a_lost_reply_burns_the_epoch() -> None:
    async def scenario(kit: Kit) -> None:
        _, secondary, record = await kit.ready()
        await secondary.client.view()
        secondary.transport.lose = True
        with pytest.raises(AuthorityUnavailable):
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        burned = await kit.record(record.volume)
        assert burned.epoch == 2
        with pytest.raises(NotEligible):
            await secondary.client.renew(record.volume, epoch=2)
        taken, raw = await secondary.client.takeover(
            record.volume, expected_version=burned.version, log_id=secondary.log
        )
        assert taken.epoch == (await opened(kit, raw)).epoch == 3

    run(scenario)


def test_f4_an_authority_that_stops_before_it_signs_has_burned_the_epoch(tmp_path: Path) -> None:
    """The transaction is durable, the credential never existed; the next run of the authority gives the next epoch."""

    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "authority.db")
        async with rack(store=store) as kit:
            _, secondary, record = await kit.ready()
            await secondary.client.view()
            secondary.transport.lose = True
            with pytest.raises(AuthorityUnavailable):
                await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        await store.close()
        store = await SqliteStore.open(tmp_path / "authority.db")
        async with rack(store=store, seed=2) as kit:
            again = kit.process(secondary.id, secondary.key, root=kit.authority.root_public)
            seen = (await again.client.view()).volumes[record.volume]
            assert (seen.epoch, seen.primary) == (2, secondary.id)
            taken, raw = await again.client.takeover(record.volume, expected_version=seen.version, log_id=secondary.log)
            assert taken.epoch == (await opened(kit, raw)).epoch == 3
        await store.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_restart_takes_new_epoch() -> None:
    """The epoch belongs to the process that was answered: another one of the same head can do nothing with it."""

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        again = kit.restarted(primary)
        member = Member(secondary.id, secondary.log)
        with pytest.raises(NotEligible):
            await again.client.renew(record.volume, epoch=1)
        # Even one that makes up a claim is refused by the authority itself.
        again.client._claims[record.volume] = (1, "0" * 32)
        with pytest.raises(NotEligible, match="not given to this process"):
            await again.client.renew(record.volume, epoch=1)
        with pytest.raises(NotEligible, match="not given to this process"):
            await again.client.change_members(record.volume, epoch=1, expected_version=record.version, remove=member)
        taken, _ = await again.client.takeover(record.volume, expected_version=record.version, log_id=again.log)
        assert (taken.epoch, taken.primary) == (2, primary.id)
        assert await again.client.renew(record.volume, epoch=2)
        with pytest.raises(NotEligible):
            await primary.client.renew(record.volume, epoch=1)

    run(scenario)


def test_f5_record_race_primary_secondary() -> None:
    """The primary removes the secondary while the secondary takes over: the record decides for exactly one."""

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        results = await asyncio.gather(
            primary.client.change_members(
                record.volume,
                epoch=1,
                expected_version=record.version,
                remove=Member(secondary.id, secondary.log),
            ),
            secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log),
            return_exceptions=True,
        )
        lost = [result for result in results if isinstance(result, RecordChanged | NotEligible)]
        assert len(lost) == 1, results
        after = await kit.record(record.volume)
        assert after.version == record.version + 1
        if isinstance(results[0], BaseException):
            assert (after.epoch, after.primary, len(after.current)) == (2, secondary.id, 2)
        else:
            assert (after.epoch, after.primary, after.current) == (1, primary.id, record.current[:1])
            with pytest.raises(NotEligible, match="not a member"):
                await secondary.client.takeover(record.volume, expected_version=after.version, log_id=secondary.log)

    for seed in range(4):
        run(scenario, seed=seed)


def test_of_two_candidates_exactly_one_gets_the_epoch() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        results = await asyncio.gather(
            *(
                head.client.takeover(record.volume, expected_version=record.version, log_id=head.log)
                for head in (primary, secondary)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(result, RecordChanged) for result in results) == 1
        assert (await kit.record(record.volume)).epoch == 2

    run(scenario)


class CrossingStore(MemoryStore):
    """Lets the next `crossing` commits wait for each other, so that all have read before the first one puts."""

    def __init__(self) -> None:
        super().__init__()
        self.crossing = 0
        self._met = asyncio.Event()

    async def commit(
        self,
        *,
        compare: Mapping[str, int] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
    ) -> int:
        if self.crossing:
            self.crossing -= 1
            if not self.crossing:
                self._met.set()
            await self._met.wait()
        return await super().commit(compare=compare, put=put, delete=delete)


@pytest.mark.parametrize("removal", [False, True])
def test_f4_of_two_changes_that_read_the_same_record_one_is_put(removal: bool) -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        assert isinstance(kit.store, CrossingStore)
        known = {"expected_version": record.version}
        kit.store.crossing = 2
        results = await asyncio.gather(
            primary.client.change_members(
                record.volume, epoch=1, remove=Member(secondary.id, secondary.log), **known
            ) if removal else primary.client.takeover(record.volume, log_id=primary.log, **known),
            secondary.client.takeover(record.volume, log_id=secondary.log, **known),
            return_exceptions=True,
        )  # fmt: skip
        assert kit.store.crossing == 0
        assert sum(isinstance(result, RecordChanged | NotEligible) for result in results) == 1, results
        assert (await kit.record(record.volume)).version == record.version + 1

    run(scenario, store=CrossingStore())


def test_f5_wiped_log_not_eligible() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        wiped = kit.env.new_uuid()
        with pytest.raises(NotEligible, match="another log"):
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=wiped)
        # Nor can the wiped log slip in beside the old entry: the primary removes that one first.
        with pytest.raises(NotEligible, match="another log"):
            await primary.client.change_members(
                record.volume, epoch=1, expected_version=record.version, add=Member(secondary.id, wiped)
            )
        record = await primary.client.change_members(
            record.volume,
            epoch=1,
            expected_version=record.version,
            remove=Member(secondary.id, secondary.log),
            add=Member(secondary.id, wiped),
        )
        assert record.member(secondary.id) == Member(secondary.id, wiped)

    run(scenario)


def test_f5_a_head_that_was_removed_cannot_take_over() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        record = await primary.client.change_members(
            record.volume, epoch=1, expected_version=record.version, remove=Member(secondary.id, secondary.log)
        )
        with pytest.raises(NotEligible, match="not a member"):
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)

    run(scenario)


def test_an_old_primary_cannot_change_the_record_of_the_new_one() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        taken, _ = await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        for version in (record.version, taken.version):
            with pytest.raises(NotEligible, match="epoch 2"):
                await primary.client.change_members(
                    record.volume, epoch=1, expected_version=version, remove=Member(secondary.id, secondary.log)
                )
        with pytest.raises(NotEligible):
            await primary.client.renew(record.volume, epoch=1)
        with pytest.raises(NotEligible):
            await primary.client.confirm_deleted(record.volume, epoch=1)
        assert await kit.record(record.volume) == taken

    run(scenario)


def test_f4_a_valid_newer_credential_freezes_the_volume_until_an_operator_recovers_it() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        newer = await kit.authority.volumes.sign_for(record.volume, 7, primary.public, Rights.READ)
        same = await kit.authority.volumes.sign_for(record.volume, record.epoch, primary.public, Rights.READ)
        assert (await primary.client.report_credential(same)).state is VolumeState.ACTIVE
        frozen = await primary.client.report_credential(newer)
        assert frozen.state is VolumeState.FROZEN
        with pytest.raises(Frozen):
            await primary.client.renew(record.volume, epoch=1)
        with pytest.raises(Frozen):
            await primary.client.takeover(record.volume, expected_version=frozen.version, log_id=primary.log)
        refused = await kit.operator.post(f"/v1/volumes/{record.name}/recover", json={"epoch": 6})
        assert refused.status_code == 422
        kit.clock.advance(term_and_margin_ms(kit))
        recovered = await kit.operator.post(f"/v1/volumes/{record.name}/recover", json={"epoch": 7})
        assert (recovered.json()["state"], recovered.json()["epoch"]) == ("active", 8)
        version = recovered.json()["version"]
        taken, _ = await primary.client.takeover(record.volume, expected_version=version, log_id=primary.log)
        assert taken.epoch == 9

    run(scenario)


def test_a_credential_that_does_not_verify_freezes_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        raw = bytearray(await primary.client.renew(record.volume, epoch=1))
        raw[70] ^= 1
        for bad in (bytes(raw), b"x", bytes(560)):
            with pytest.raises(RequestRefused):
                await primary.client.report_credential(bad)
        assert (await kit.record(record.volume)).state is VolumeState.ACTIVE

    run(scenario)


def test_columns_are_checked_and_never_moved() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        good = list(record.columns)
        bad = {
            "few": good[:4],
            "twice the same sled": [*good[:5], replace(good[5], sled=good[0].sled)],
            "unknown sled": [*good[:5], replace(good[5], sled=UUID(int=5))],
            "too small": [*good[:5], replace(good[5], blocks=1)],
            "index": [*good[:5], replace(good[5], index=6)],
        }
        for columns in bad.values():
            with pytest.raises(RequestRefused):
                await primary.client.set_columns(
                    record.volume, epoch=1, expected_version=record.version, columns=columns
                )
        with pytest.raises(Conflict):
            await primary.client.set_columns(
                record.volume, epoch=1, expected_version=record.version, columns=[*good[:5], replace(good[5], nsid=9)]
            )
        same = await primary.client.set_columns(record.volume, epoch=1, expected_version=record.version, columns=good)
        assert same == record

    run(scenario)


def test_a_volume_is_deleted_when_its_primary_says_that_the_namespaces_are_gone() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        with pytest.raises(NotEligible, match="not deleting"):
            await primary.client.confirm_deleted(record.volume, epoch=1)
        reply = await kit.operator.delete("/v1/volumes/v")
        assert (reply.status_code, reply.json()["gone"]) == (202, False)
        seen = (await secondary.client.view()).volumes[record.volume]
        assert seen.state is VolumeState.DELETING
        # A secondary may still take over, to finish the deletion of a primary that died.
        taken, _ = await secondary.client.takeover(record.volume, expected_version=seen.version, log_id=secondary.log)
        await secondary.client.confirm_deleted(record.volume, epoch=taken.epoch)
        assert record.volume not in (await primary.client.view()).volumes
        with pytest.raises(NotFound):
            await primary.client.renew(record.volume, epoch=1)
        assert (await kit.volume("v")).volume != record.volume

    run(scenario)


def test_a_volume_that_nobody_held_is_deleted_at_once() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        await kit.volume()
        reply = await kit.operator.delete("/v1/volumes/v")
        assert reply.json() == {"gone": True, "record": None}
        assert (await kit.operator.get("/v1/volumes/v")).status_code == 404

    run(scenario)
