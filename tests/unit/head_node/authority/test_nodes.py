"""Who gets in, who does not, and what putting a head out does."""

import asyncio
import hmac
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, RecordingFencer, rack, run, term_and_margin_ms

from head_node.authority import joining, nodes
from head_node.authority.errors import (
    AuthorityUnavailable,
    Conflict,
    EnrolmentRefused,
    Frozen,
    NotEligible,
    RecordChanged,
    Unauthorised,
)
from head_node.authority.joining import JoinToken
from head_node.authority.ledger import head_key, number_key
from head_node.store.memory import MemoryStore
from head_node.store.records import Member

ADDRESSES = {"peer": ("127.0.0.1", 7000), "nbd": ("::1", 10809)}


def test_a_head_enrols_with_a_token_and_learns_the_root_key() -> None:
    async def scenario(kit: Kit) -> None:
        head = kit.newcomer()
        assert head.client.root_public is None
        token = await kit.token()
        record = await head.client.enrol(token, name="head-1", addresses=ADDRESSES)
        assert (record.name, record.public_key, record.addresses) == ("head-1", head.public, ADDRESSES)
        assert head.client.root_public == kit.authority.root_public
        view = await head.client.view()
        assert view.heads == {head.id: record}
        sent = b"".join(request.content + str(request.headers).encode() for request in head.transport.sent)
        assert JoinToken.parse(token).seed.hex().encode() not in sent

    run(scenario)


def test_a_token_admits_as_many_heads_as_it_says_and_those_again() -> None:
    async def scenario(kit: Kit) -> None:
        token = await kit.token(uses=2)
        heads = [kit.newcomer() for _ in range(3)]
        for number in range(2):
            await heads[number].client.enrol(token, name=f"head-{number}", addresses={})
        with pytest.raises(EnrolmentRefused, match="spent"):
            await heads[2].client.enrol(token, name="head-2", addresses={})
        again = await heads[0].client.enrol(token, name="renamed", addresses=ADDRESSES)
        assert (again.name, again.addresses) == ("renamed", ADDRESSES)
        await heads[2].client.enrol(await kit.token(), name="head-0", addresses={})
        left = (await kit.operator.get("/v1/join-tokens")).json()["tokens"]
        assert sorted(entry["uses_left"] for entry in left) == [0, 0]
        assert set(left[0]) == {"id", "uses_left", "expires_ms"}

    run(scenario)


def test_nothing_that_the_store_holds_enrols_a_head() -> None:
    """Who reads the store, or a backup of it, has not what a token proves itself with."""

    async def scenario(kit: Kit) -> None:
        text = await kit.token(uses=3)
        token, enrolled = JoinToken.parse(text), await kit.enrolled("head-1")
        stored = b"".join(entry.value for entry in (await kit.store.list("")).entries).decode()
        assert token.seed.hex() not in stored
        thief = kit.newcomer()
        body = {"id": str(thief.id), "name": "thief", "public_key": thief.public.hex(), "addresses": {}}
        told = {bytes.fromhex(found) for found in re.findall(r"[0-9a-f]{64}", stored)}
        assert len(told) >= 3, "the tokens' public halves and the head's key are there"
        signed = joining._signed(token.root_public, token.id, thief.id, thief.public)
        proofs = {bytes(64), token.proof(enrolled.id, enrolled.public)}
        for known in told:  # as the seed, as the private key, as a secret that both sides hold
            proofs |= {replace(token, seed=known).proof(thief.id, thief.public)}
            proofs |= {Ed25519PrivateKey.from_private_bytes(known).sign(signed), hmac.digest(known, signed, "sha512")}
        for proof in proofs:
            with pytest.raises(EnrolmentRefused, match="unknown"):
                await thief.client._call("POST", "/v1/heads", body | {"token_id": token.id, "proof": proof.hex()})
        assert await thief.client.enrol(text, name="head-2", addresses={}), "the token itself does"

    run(scenario)


def test_a_token_of_another_rack_is_refused_by_the_head_itself() -> None:
    async def scenario(kit: Kit) -> None:
        async with rack(root_seed=9, seed=9) as other:
            foreign = await other.token()
        head = kit.newcomer()
        with pytest.raises(AuthorityUnavailable, match="root key"):
            await head.client.enrol(foreign, name="head-1", addresses={})
        known = await kit.enrolled("head-1")
        before = len(known.transport.sent)
        with pytest.raises(EnrolmentRefused, match="another root key"):
            await known.client.enrol(foreign, name="head-1", addresses={})
        assert len(known.transport.sent) == before

    run(scenario)


def test_a_head_that_is_revoked_takes_its_token_with_it() -> None:
    """It knows the token: with a use left it would be back under another name."""

    async def scenario(kit: Kit) -> None:
        shared, other = await kit.token(uses=5), await kit.token(uses=5)
        head = kit.newcomer()
        await head.client.enrol(shared, name="head-1", addresses={})
        await revoke(kit, head)
        back = kit.newcomer()
        with pytest.raises(EnrolmentRefused, match="unknown"):
            await back.client.enrol(shared, name="back", addresses={})
        await back.client.enrol(other, name="head-2", addresses={})

    run(scenario)


def test_a_token_that_has_expired_stays_expired_when_the_clock_is_set_back() -> None:
    async def scenario(kit: Kit) -> None:
        token = await kit.token(valid_s=10)
        kit.clock.advance(10_000)
        await kit.authority.nodes.close_expired_tokens()
        kit.clock.advance(-10_000)
        with pytest.raises(EnrolmentRefused, match="spent or expired"):
            await kit.newcomer().client.enrol(token, name="head-1", addresses={})

    run(scenario)


def test_f4_a_claim_in_the_store_is_no_claim() -> None:
    """An epoch belongs to the process that was answered, not to one that reads the store or a backup of it."""

    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        stored = b"".join(entry.value for entry in (await kit.store.list("")).entries).decode()
        assert primary.client._claim(record.volume, record.epoch) not in stored
        (kept,) = (await kit.authority.ledger.json_list("claim/")).values()
        thief = kit.restarted(primary)
        for known in re.findall(r"[0-9a-f]{32}", json.dumps(kept.value)):
            thief.client._claims[record.volume] = (record.epoch, known)
            with pytest.raises(NotEligible):
                await thief.client.renew(record.volume, epoch=record.epoch)

    run(scenario)


def test_each_head_has_a_number_of_its_own_and_keeps_it() -> None:
    async def scenario(kit: Kit) -> None:
        heads = [await kit.enrolled(f"head-{number}") for number in range(3)]
        assert [(await head.client.view()).heads[head.id].number for head in heads] == [1, 2, 3]
        await revoke(kit, heads[1])
        assert (await heads[0].client.announce(ADDRESSES)).number == 1
        newcomer = await kit.enrolled("head-3")
        assert (await newcomer.client.view()).heads[newcomer.id].number == 4

    run(scenario)


def test_a_number_that_another_head_took_while_the_heads_were_read_is_passed_over() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        # The other head's number is there, and its record is not seen yet.
        await kit.authority.ledger.commit(compare={}, put={number_key(2): "another head"})
        second = await kit.enrolled("head-2")
        assert (await second.client.view()).heads[second.id].number == 3

    run(scenario)


def test_a_head_of_an_older_store_gets_its_number_when_it_announces_itself() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.enrolled("head-1"), await kit.enrolled("head-2")
        ledger = kit.authority.ledger
        for head in (first, second):
            found = await ledger.head(head.id)
            assert found is not None
            old = {key: value for key, value in found.value.to_json().items() if key != "number"}
            await ledger.commit(compare={}, put={head_key(head.id): old}, delete=[number_key(found.value.number)])
        assert (await second.client.announce(ADDRESSES)).number == 1
        assert (await first.client.announce(ADDRESSES)).number == 2

    run(scenario)


def test_expired_unknown_deleted_and_malformed_tokens_admit_nobody() -> None:
    async def scenario(kit: Kit) -> None:
        head = kit.newcomer()
        expired = await kit.token(valid_s=10)
        kit.clock.advance(10_000)
        with pytest.raises(EnrolmentRefused, match="expired"):
            await head.client.enrol(expired, name="head-1", addresses={})
        good = await kit.token()
        parts = good.split(".")
        other = parts[2][:-1] + ("0" if parts[2][-1] != "0" else "1")
        with pytest.raises(EnrolmentRefused, match="unknown"):
            await head.client.enrol(".".join((*parts[:2], other, *parts[3:])), name="head-1", addresses={})
        with pytest.raises(EnrolmentRefused, match="malformed"):
            await head.client.enrol("pj1.x", name="head-1", addresses={})
        assert (await kit.operator.delete(f"/v1/join-tokens/{JoinToken.parse(good).id}")).status_code == 204
        with pytest.raises(EnrolmentRefused, match="unknown"):
            await head.client.enrol(good, name="head-1", addresses={})

    run(scenario)


def test_a_proof_does_not_serve_another_head() -> None:
    """Who overhears an enrolment cannot use it to bring in a key of his own."""

    async def scenario(kit: Kit) -> None:
        token = await kit.token(uses=5)
        honest, thief = kit.newcomer(), kit.newcomer()
        proof = JoinToken.parse(token).proof(honest.id, honest.public).hex()
        await honest.client.enrol(token, name="head-1", addresses={})
        body = {"id": str(thief.id), "name": "thief", "public_key": thief.public.hex(), "addresses": {}}
        body |= {"token_id": JoinToken.parse(token).id, "proof": proof}
        with pytest.raises(EnrolmentRefused):
            await thief.client._call("POST", "/v1/heads", body)

    run(scenario)


def test_an_authority_that_does_not_know_the_token_is_not_believed() -> None:
    async def scenario(kit: Kit) -> None:
        async with rack(root_seed=9, seed=9) as impostor:
            head = kit.newcomer()
            token = await kit.token()
            caught = impostor.process(head.id, head.key)
            with pytest.raises(AuthorityUnavailable, match="root key"):
                await caught.client.enrol(token, name="head-1", addresses={})
            await head.client.enrol(token, name="head-1", addresses={})
            caught = impostor.process(head.id, head.key, root=head.client.root_public)
            with pytest.raises(AuthorityUnavailable, match="root key"):
                await caught.client.view()

    run(scenario)


def test_names_and_keys_are_unique() -> None:
    async def scenario(kit: Kit) -> None:
        one = await kit.enrolled("head-1")
        with pytest.raises(Conflict, match="the name head-1"):
            await kit.enrolled("head-1")
        twin = kit.process(kit.env.new_uuid(), one.key)
        with pytest.raises(Conflict, match="public key"):
            await twin.client.enrol(await kit.token(), name="twin", addresses={})

    run(scenario)


def test_a_head_tells_its_new_addresses_and_others_are_woken() -> None:
    async def scenario(kit: Kit) -> None:
        one, two = await kit.enrolled("head-1"), await kit.enrolled("head-2")
        seen = await two.client.view()
        waiting = asyncio.ensure_future(two.client.view(after=seen.revision, wait_ms=10_000))
        await asyncio.sleep(0)
        await one.client.announce(ADDRESSES)
        view = await waiting
        assert view.revision > seen.revision
        assert view.heads[one.id].addresses == ADDRESSES

    run(scenario)


def test_sleds_are_enrolled_by_the_operator_and_keep_their_key() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        sleds = await kit.sleds(2)
        view = await head.client.view()
        assert set(view.sleds) == set(sleds)
        record = view.sleds[sleds[0]]
        moved = {"host": "127.0.0.9", "port": 99}
        body = {"id": str(record.id), "name": "moved", "public_key": record.public_key.hex(), "nqn": record.nqn}
        assert (await kit.operator.post("/v1/sleds", json=body | moved)).status_code == 201
        found = (await head.client.view()).sleds[sleds[0]]
        assert (found.name, found.address) == ("moved", ("127.0.0.9", 99))
        refused = await kit.operator.post("/v1/sleds", json=body | moved | {"public_key": "00" * 32})
        assert refused.status_code == 409
        again = await kit.operator.post("/v1/sleds", json=body | moved | {"id": str(sleds[1]), "name": "sled-1"})
        assert again.status_code == 409

    run(scenario)


async def revoke(kit: Kit, head: Head) -> dict[str, object]:
    reply = await kit.operator.post(f"/v1/heads/{head.id}/revoke")
    assert reply.status_code == 200, reply.text
    found: dict[str, object] = reply.json()
    return found


def test_revoking_the_primary_takes_a_new_epoch_and_fences_it_off_now() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        third = await kit.enrolled("head-3")
        done = await revoke(kit, primary)
        after = await kit.record(record.volume)
        assert (after.epoch, after.primary, after.version) == (2, secondary.id, record.version + 1)
        assert after.current == (Member(secondary.id, secondary.log),)
        assert after.heads == (secondary.id, third.id)
        assert [fenced.epoch for fenced in fencer.fenced] == [2]
        assert done["orphaned"] == []
        assert set(done["fences"][str(record.volume)].values()) == {"fenced"}  # type: ignore[index]
        for call in (primary.client.view(), primary.client.renew(record.volume, epoch=1)):
            with pytest.raises(Unauthorised, match="revoked"):
                await call
        # Named primary, the successor still takes an epoch of its own: nobody was given this one (F4).
        with pytest.raises(NotEligible):
            await secondary.client.renew(record.volume, epoch=2)
        taken, _ = await secondary.client.takeover(record.volume, expected_version=after.version, log_id=secondary.log)
        assert taken.epoch == 3
        view = await secondary.client.view()
        assert primary.id not in view.heads
        with pytest.raises(EnrolmentRefused, match="revoked"):
            await kit.restarted(primary).client.enrol(await kit.token(), name="back", addresses={})

    run(scenario, fencer=fencer)


def test_a_revocation_that_was_cut_short_is_finished_and_can_be_repeated() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        found = await kit.authority.ledger.head(primary.id)
        assert found is not None
        # As if the authority had stopped right after the first commit of a revocation.
        revoked = replace(found.value, revoked=True)
        await kit.authority.ledger.commit(compare={}, put={head_key(primary.id): revoked.to_json()})
        await kit.authority.nodes.finish_revocations()
        after = await kit.record(record.volume)
        assert (after.epoch, after.primary, after.member(primary.id)) == (2, secondary.id, None)
        assert [fenced.epoch for fenced in fencer.fenced] == [2]
        namesake = await kit.enrolled(found.value.name)
        after = await kit.record(record.volume)
        done = await revoke(kit, primary)
        assert set(done["fences"]) == {str(record.volume)}  # type: ignore[call-overload]
        assert await kit.record(record.volume) == after
        with pytest.raises(Conflict):
            await kit.enrolled(found.value.name)
        assert (await namesake.client.view()).heads[namesake.id].name == found.value.name

    run(scenario, fencer=fencer)


def test_revoking_a_secondary_leaves_the_primary_alone() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await revoke(kit, secondary)
        after = await kit.record(record.volume)
        assert (after.epoch, after.primary, after.current) == (1, primary.id, record.current[:1])
        assert await primary.client.renew(record.volume, epoch=1)
        with pytest.raises(RecordChanged):
            await primary.client.change_members(
                record.volume, epoch=1, expected_version=record.version, remove=record.current[1]
            )

    run(scenario)


def test_revoking_the_last_member_says_that_the_volume_is_orphaned() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await revoke(kit, secondary)
        done = await revoke(kit, primary)
        assert done["orphaned"] == [str(record.volume)]
        after = await kit.record(record.volume)
        assert (after.epoch, after.primary, after.current) == (2, None, ())
        late = await kit.enrolled("late")
        after = await kit.record(record.volume)
        with pytest.raises(NotEligible):
            await late.client.takeover(record.volume, expected_version=after.version, log_id=late.log)

    run(scenario)


def test_a_second_head_is_assigned_to_volumes_that_lack_one() -> None:
    async def scenario(kit: Kit) -> None:
        one = await kit.enrolled("head-1")
        await kit.sleds()
        made = await kit.volume()
        assert made.heads == (one.id,)
        two = await kit.enrolled("head-2")
        assert (await two.client.view()).volumes[made.volume].heads == (one.id, two.id)

    run(scenario)


def test_a_restored_store_starts_frozen_until_an_operator_recovers_each_volume(tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    async def main() -> None:
        async with rack() as kit:
            primary, secondary, record = await kit.ready()
            version = (await kit.authority.keyring.current()).version
            await kit.store.backup(copy)
            await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
            newest = await primary.client.view()
        for attempt in range(2):
            store = MemoryStore.from_backup(copy)
            async with rack(store=store, seed=5 + attempt) as again:
                seen = again.process(primary.id, primary.key, root=again.authority.root_public)
                frozen = (await seen.client.view()).volumes[record.volume]
                assert (frozen.state.value, frozen.epoch) == ("frozen", 1)
                assert frozen.version > newest.volumes[record.volume].version, "or heads take it for an old record"
                assert (await seen.client.view()).revision > newest.revision
                with pytest.raises(Frozen):
                    await seen.client.takeover(record.volume, expected_version=frozen.version, log_id=primary.log)
                again.clock.advance(term_and_margin_ms(again))
                reply = await again.operator.post("/v1/volumes/v/recover", json={"epoch": 2})
                assert (reply.json()["epoch"], reply.json()["state"]) == (3, "active")
                assert (await again.authority.keyring.current()).version > version + 1000
            async with rack(store=store, seed=7) as once_more:
                assert (await once_more.operator.get("/v1/volumes/v")).json()["state"] == "active"
            await store.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_rack_may_exchange_its_heads_any_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked heads keep no place: 64 were all that a rack could have in its life."""
    monkeypatch.setattr(nodes, "HEADS_MAX", 3)

    async def scenario(kit: Kit) -> None:
        kept = await kit.enrolled("kept")
        numbers = []
        for number in range(6):
            head = await kit.enrolled(f"head-{number}")
            found = await kit.authority.ledger.head(head.id)
            assert found is not None
            numbers.append(found.value.number)
            await kit.authority.nodes.revoke_head(head.id)
        assert numbers[:2] == [2, 3]  # those that nobody had come first
        assert set(numbers) == {2, 3}
        for name in ("second", "third"):
            await kit.enrolled(name)
        with pytest.raises(Conflict, match="at most 3 heads"):
            await kit.enrolled("fourth")
        found = await kit.authority.ledger.head(kept.id)
        assert found is not None
        assert found.value.number == 1

    run(scenario)


def test_a_revoked_head_comes_back_by_no_token_that_it_has_shown() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        token = await kit.token(uses=2)
        await head.client.enrol(token, name="head-1", addresses=ADDRESSES)  # another one in its settings
        await revoke(kit, head)
        with pytest.raises(EnrolmentRefused):
            await kit.newcomer().client.enrol(token, name="other", addresses=ADDRESSES)

    run(scenario)
