"""A revocation names, by volume of which the head may hold a good credential, each sled and whether it is fenced above
it; what is not is fenced off, with one epoch more if that is what it takes, and tried until it is."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from kit.authority import (
    Head,
    Kit,
    RecordingFencer,
    columns_of,
    rack,
    run,
    term_and_margin_ms,
)
from kit.enrolled_sled import connected, create_with, enrolled_sled, rack_with_fencer

from head_node.authority.errors import AuthorityUnavailable, NotEligible, Unenrolled
from head_node.authority.fencing import FENCED
from head_node.authority.ledger import claim_key, head_key, revoking_key, unfenced_key, volume_key
from head_node.authority.retries import RETRY_NS
from head_node.authority.unfenced import OTHER_HOLDER
from head_node.store.memory import MemoryStore
from head_node.store.records import HeadRecord, Member, VolumeRecord
from sled_controller.errors import FencedOff

PRESENT, ABSENT = UUID(int=301), UUID(int=302)


class SledFences(RecordingFencer):
    """Fences by sled as sleds keep them: never lowered, an equal epoch is another holder's."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[UUID, int] = {}

    def attached(self, record: VolumeRecord, epoch: int, missed: tuple[UUID, ...] = ()) -> None:
        """The primary of `epoch` has receipts of all sleds but those."""
        self.epochs |= {sled: epoch for sled in record.sleds if sled not in missed}

    async def fence(self, record: VolumeRecord) -> dict[UUID, str]:
        self.fenced.append(record)
        return {sled: self._fence_one(sled, record.epoch) for sled in record.sleds}

    def _fence_one(self, sled: UUID, epoch: int) -> str:
        if sled in self.away:
            return "out of reach"
        known = self.epochs.get(sled, 0)
        self.epochs[sled] = max(known, epoch)
        return OTHER_HOLDER if known == epoch else FENCED


async def failed_over(kit: Kit, fencer: SledFences, missed: int = 1) -> tuple[Head, Head, VolumeRecord]:
    """The primary of epoch 1 with receipts of all sleds, its successor in epoch 2, which lacks some, and the record."""
    former, primary, record = await kit.ready()
    fencer.attached(record, 1)
    record, _ = await primary.client.takeover(record.volume, expected_version=record.version, log_id=primary.log)
    fencer.attached(record, 2, record.sleds[:missed])
    return former, primary, record


async def revoke(kit: Kit, head: Head) -> dict[UUID, dict[UUID, str]]:
    """The fences in the answer."""
    reply = await kit.operator.post(f"/v1/heads/{head.id}/revoke")
    assert reply.status_code == 200, reply.text
    return {
        UUID(volume): {UUID(sled): said for sled, said in sleds.items()}
        for volume, sleds in reply.json()["fences"].items()
    }


async def listed(kit: Kit) -> list[dict[str, Any]]:
    reply = await kit.operator.get("/v1/unfenced")
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["unfenced"]
    return found


def test_f1_a_head_that_was_failed_over_is_fenced_off_where_its_successor_has_no_receipt() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, primary, record = await failed_over(kit, fencer)
        fences = await revoke(kit, former)
        assert fences == {record.volume: dict.fromkeys(record.sleds, FENCED)}
        after = await kit.record(record.volume)
        assert (after.epoch, after.primary, after.current) == (3, primary.id, (Member(primary.id, primary.log),))
        assert set(fencer.epochs.values()) == {3}, "the primary hears of its epoch's end from the sleds"
        assert await listed(kit) == []
        with pytest.raises(NotEligible):
            await primary.client.renew(record.volume, epoch=2)
        taken, _ = await primary.client.takeover(record.volume, expected_version=after.version, log_id=primary.log)
        assert taken.epoch == 4

    run(scenario, fencer=fencer)


def test_f1_a_successor_with_receipts_of_all_sleds_keeps_its_epoch() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, primary, record = await failed_over(kit, fencer, missed=0)
        fences = await revoke(kit, former)
        assert fences == {record.volume: dict.fromkeys(record.sleds, FENCED)}
        assert (await kit.record(record.volume)).epoch == 2
        assert set(fencer.epochs.values()) == {2}
        assert await primary.client.renew(record.volume, epoch=2)

    run(scenario, fencer=fencer)


def test_f1_a_sled_that_saw_neither_epoch_costs_the_primary_none() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, _, record = await failed_over(kit, fencer)
        fencer.epochs.pop(record.sleds[0])
        fences = await revoke(kit, former)
        assert fences[record.volume][record.sleds[0]] == FENCED
        assert fencer.epochs[record.sleds[0]] == 1, "an equal epoch of another holder is refused"
        assert (await kit.record(record.volume)).epoch == 2

    run(scenario, fencer=fencer)


def test_f1_what_is_away_is_named_and_fenced_when_it_is_back_also_after_a_restart() -> None:
    fencer, store = SledFences(), MemoryStore()

    async def main() -> None:
        async with rack(store=store, fencer=fencer) as kit:
            former, primary, record = await failed_over(kit, fencer)
            away = record.sleds[0]
            fencer.away = {away}
            fences = await revoke(kit, former)
            assert fences[record.volume] == dict.fromkeys(record.sleds, FENCED) | {away: "out of reach"}
            assert (await kit.record(record.volume)).epoch == 2, "a sled that is away tells nothing: it may be fenced"
            (left,) = await listed(kit)
            assert (left["volume"], left["head"], left["sleds"]) == (str(record.volume), str(former.id), [str(away)])
            assert (left["epoch"], left["above"]) == (1, 0)
            assert left["end_ms"] >= kit.clock.now_ms + kit.authority.policy.credential_term_ms
        async with rack(store=store, fencer=fencer, seed=2) as again:
            await again.authority.unfenced.look()
            again.clock.advance(RETRY_NS // 1_000_000 + 1)
            fencer.away = set()
            await again.authority.unfenced.look()
            assert await listed(again) == []
            assert fencer.epochs[away] == 3
            assert (await again.record(record.volume)).epoch == 3
            assert primary.id == (await again.record(record.volume)).primary
            said = [event.fields["sleds"] for event in again.authority.reports.events(0) if event.kind == "fenced-now"]
            assert said[-1][str(away)] == FENCED

    asyncio.run(asyncio.wait_for(main(), 20))


def test_f1_a_revoked_primary_is_fenced_at_a_late_sled_without_touching_its_successor() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        fencer.attached(record, 1)
        away = record.sleds[0]
        fencer.away = {away}
        assert (await revoke(kit, primary))[record.volume][away] == "out of reach"
        after = await kit.record(record.volume)
        taken, _ = await secondary.client.takeover(record.volume, expected_version=after.version, log_id=secondary.log)
        fencer.attached(record, taken.epoch, (away,))
        fencer.away = set()
        # A head reaches it: it is due at once.
        await secondary.client.report({"sleds": {str(away): {"reachable": True}}})
        await kit.authority.unfenced.look()
        assert fencer.epochs[away] == 2, "the epoch between the two, which no head was given"
        assert (await kit.record(record.volume)).epoch == taken.epoch == 3
        assert await listed(kit) == []

    run(scenario, fencer=fencer)


def test_f1_every_volume_and_every_head_that_a_good_credential_may_be_about_is_remembered() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        one, two, record = await kit.ready()
        for head in (two, one, two, one):  # epochs 2 to 5
            record, _ = await head.client.takeover(record.volume, expected_version=record.version, log_id=head.log)
        fencer.attached(record, record.epoch)
        claim = await kit.authority.ledger.json(f"claim/{record.volume}")
        assert claim is not None
        assert [(entry["head"], entry["epoch"]) for entry in claim.value["former"]] == [(str(two.id), 4)]
        assert set(await revoke(kit, two)) == {record.volume}
        assert [fenced.epoch for fenced in fencer.fenced] == [4]

    run(scenario, fencer=fencer)


def test_f1_a_head_whose_credentials_have_all_expired_needs_no_fence() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, primary, record = await failed_over(kit, fencer)
        kit.clock.advance(2 * kit.authority.policy.credential_term_ms)
        await primary.client.renew(record.volume, epoch=2)
        assert await revoke(kit, former) == {}
        assert fencer.fenced == []

    run(scenario, fencer=fencer)


def test_f1_a_revocation_that_was_cut_short_reaches_volumes_that_do_not_name_the_head_any_more() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, _, record = await failed_over(kit, fencer)
        ledger = kit.authority.ledger
        found = await ledger.head(former.id)
        assert found is not None
        # As if the authority had stopped after the first commit; the record has lost the head on another way.
        gone = record.to_json() | {"heads": [str(head) for head in record.heads if head != former.id], "current": []}
        revoked = HeadRecord.from_json(found.value.to_json() | {"revoked": True})
        put = {
            head_key(former.id): revoked.to_json(),
            revoking_key(former.id): {},
            volume_key(record.volume): gone,
        }
        await ledger.commit(compare={}, put=put)
        await kit.authority.nodes.finish_revocations()
        assert fencer.epochs[record.sleds[0]] == 3
        assert await ledger.json_list(revoking_key("")) == {}
        count = len(fencer.fenced)
        await kit.authority.nodes.finish_revocations()
        assert len(fencer.fenced) == count

    run(scenario, fencer=fencer)


def test_f1_the_intention_to_fence_is_in_the_commit_that_takes_the_head_off_the_volume() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, _, record = await failed_over(kit, fencer)
        ledger, puts = kit.authority.ledger, []
        commit = ledger.commit

        async def watched(**changes: Any) -> int:
            puts.append(set(changes["put"]))
            return await commit(**changes)

        ledger.commit = watched  # type: ignore[method-assign]
        await revoke(kit, former)
        assert {volume_key(record.volume), unfenced_key(record.volume, former.id)} in puts

    run(scenario, fencer=fencer)


def test_f1_an_operator_may_say_that_a_sled_is_gone_for_good() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, _, record = await failed_over(kit, fencer)
        fencer.away = {record.sleds[0]}
        await revoke(kit, former)
        path = f"/v1/unfenced/{record.volume}/{former.id}/sleds/{record.sleds[0]}"
        assert (await kit.operator.delete(path)).status_code == 204
        assert await listed(kit) == []
        assert (await kit.operator.delete(path)).status_code == 404

    run(scenario, fencer=fencer)


def test_f1_nothing_is_tried_any_more_for_a_volume_that_is_deleted() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, primary, record = await failed_over(kit, fencer)
        fencer.away = {record.sleds[0]}
        await revoke(kit, former)
        await kit.operator.delete("/v1/volumes/v")
        await primary.client.confirm_deleted(record.volume, epoch=2, strays=[record.sleds[0]])
        kit.clock.advance(RETRY_NS // 1_000_000 + 1)
        await kit.authority.unfenced.look()
        assert await listed(kit) == []

    run(scenario, fencer=fencer)


def test_f1_a_store_that_fails_while_a_fence_is_raised_costs_only_that_try() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, _, record = await failed_over(kit, fencer)
        fence = fencer.fence

        async def fails(record: VolumeRecord) -> dict[UUID, str]:
            raise AuthorityUnavailable("the store fails")

        fencer.fence = fails  # type: ignore[method-assign]
        fences = await revoke(kit, former)
        assert set(fences[record.volume].values()) == {"AuthorityUnavailable: the store fails"}
        fencer.fence = fence  # type: ignore[method-assign]
        kit.clock.advance(RETRY_NS // 1_000_000 + 1)
        await kit.authority.unfenced.look()
        assert await listed(kit) == []
        assert set(fencer.epochs.values()) == {3}

    run(scenario, fencer=fencer)


def test_f4_no_credential_leaves_that_was_signed_while_its_epoch_was_taken_away() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        volumes = kit.authority.volumes
        sign = volumes._sign

        async def revoked_meanwhile(*given: Any, **named: Any) -> bytes:
            credential = await sign(*given, **named)
            await kit.authority.nodes.revoke_head(primary.id)
            return credential

        volumes._sign = revoked_meanwhile  # type: ignore[method-assign,assignment]
        with pytest.raises(Unenrolled):
            await primary.client.renew(record.volume, epoch=1)
        volumes._sign = sign  # type: ignore[method-assign]
        late = await kit.enrolled("late")
        made = await kit.volume("other")
        assert columns_of(made)
        volumes._sign = lambda *given, **named: _revoked_after(kit, late, sign(*given, **named))  # type: ignore[method-assign,assignment]
        with pytest.raises(Unenrolled):
            await late.client.takeover(made.volume, expected_version=made.version, log_id=late.log)

    run(scenario)


async def _revoked_after(kit: Kit, head: Head, signing: Any) -> bytes:
    credential: bytes = await signing
    await kit.authority.nodes.revoke_head(head.id)
    return credential


def test_f1_real_sleds_refuse_a_failed_over_head_from_its_revocation_on() -> None:
    async def main() -> None:
        async with rack_with_fencer() as (kit, _):
            former, primary = await kit.enrolled("head-1"), await kit.enrolled("head-2")
            async with enrolled_sled(kit, PRESENT), enrolled_sled(kit, ABSENT):
                record, old = await create_with(kit, former, down=4)
                async with connected(kit, former, PRESENT) as near, connected(kit, former, ABSENT) as far:
                    await near.attach(old, 1)
                    attachment = await far.attach(old, 1)
                    nsid = await attachment.create_namespace(0, 4096)
                    record = await former.client.change_members(
                        record.volume, epoch=1, expected_version=record.version, add=Member(primary.id, primary.log)
                    )
                    record, current = await primary.client.takeover(
                        record.volume, expected_version=record.version, log_id=primary.log
                    )
                    async with connected(kit, primary, PRESENT) as client:
                        await client.attach(current, 1)
                    await attachment.write(nsid, 0, [bytes(4096)])
                    done = await kit.authority.nodes.revoke_head(former.id)
                    with pytest.raises(FencedOff) as fenced:
                        await attachment.write(nsid, 0, [bytes(4096)])
                (left,) = await kit.authority.ledger.unfenced()
                # Once more, with another key at sleds that the first visit has fenced.
                again = await kit.authority.nodes.revoke_head(former.id)
            fences = done.fences[record.volume]
            assert (fences[PRESENT], fences[ABSENT], fenced.value.epoch) == (FENCED, FENCED, 3)
            assert [after.epoch for after in done.changed] == [3]
            assert len(left.sleds) == 4
            assert set(left.sleds) == {sled for sled, said in fences.items() if said != FENCED}
            assert again.changed == ()
            assert again.fences[record.volume].keys() == fences.keys()
            assert await kit.authority.ledger.unfenced() == [left], "what is fenced is found so"

    asyncio.run(asyncio.wait_for(main(), 40))


def test_f1_no_sled_counts_as_fenced_by_no_epoch_where_the_claims_are_gone_as_in_a_restored_store() -> None:
    fencer = SledFences()

    async def scenario(kit: Kit) -> None:
        former, _, record = await failed_over(kit, fencer)
        fencer.away = set(record.sleds)
        await revoke(kit, former)
        fencer.away = set()
        await kit.authority.ledger.commit(compare={}, put={}, delete=[claim_key(record.volume)])
        await kit.operator.post(f"/v1/volumes/{record.volume}/freeze")
        kit.clock.advance(2 * RETRY_NS // 1_000_000)
        await kit.authority.unfenced.look()
        assert fencer.epochs[record.sleds[0]] == 1, "a frozen volume gets no epoch"
        assert [entry["sleds"] for entry in await listed(kit)] == [[str(record.sleds[0])]]
        kit.clock.advance(2 * term_and_margin_ms(kit))
        reply = await kit.operator.post(f"/v1/volumes/{record.volume}/recover", json={"epoch": 2})
        assert reply.status_code == 200, reply.text
        await kit.authority.unfenced.look()
        assert fencer.epochs[record.sleds[0]] == 3
        assert await listed(kit) == []
        assert (await kit.record(record.volume)).epoch == 3

    run(scenario, fencer=fencer)
