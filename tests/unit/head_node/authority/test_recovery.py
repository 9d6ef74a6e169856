"""A frozen volume goes on when no credential can serve any more, and from a log that is no member only knowingly."""

import asyncio
from typing import Any

import httpx
import pytest
from kit.authority import Head, Kit, rack, run, term_and_margin_ms

from head_node.authority.errors import Frozen, NotEligible
from head_node.store.memory import MemoryStore
from head_node.store.records import Member, VolumeRecord


async def recover(kit: Kit, **body: Any) -> httpx.Response:
    return await kit.operator.post("/v1/volumes/v/recover", json={"epoch": 1, **body})


async def frozen(kit: Kit) -> tuple[Head, Head, VolumeRecord]:
    """A volume that an operator has frozen, of a lone primary whose secondary was removed before."""
    primary, secondary, record = await kit.ready()
    await primary.client.change_members(
        record.volume, epoch=1, expected_version=record.version, remove=Member(secondary.id, secondary.log)
    )
    kit.clock.advance(60_000)  # a credential may have been signed just now
    reply = await kit.operator.post("/v1/volumes/v/freeze")
    assert (reply.status_code, reply.json()["state"]) == (200, "frozen")
    assert reply.json()["recover_wait_ms"] == term_and_margin_ms(kit)
    return primary, secondary, await kit.record(record.volume)


async def says(head: Head, record: VolumeRecord, committed: int) -> None:
    engine = {"log_id": str(head.log), "tail": committed, "epoch": 1, "committed": committed}
    await head.client.report({"volumes": {str(record.volume): {"engine": engine}}})


def test_f7_a_frozen_volume_is_recovered_only_when_every_credentials_term_is_over() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await frozen(kit)
        with pytest.raises(Frozen):
            await primary.client.renew(record.volume, epoch=1)
        kit.clock.advance(term_and_margin_ms(kit) - 1)
        early = await recover(kit)
        assert (early.status_code, early.json()["type"], early.json()["wait_ms"]) == (
            409, "urn:palisade:problem:too-early", 1,
        )  # fmt: skip
        kit.clock.advance(1)
        assert (await kit.operator.get("/v1/volumes/v")).json()["recover_wait_ms"] == 0
        done = await recover(kit)
        assert (done.json()["state"], done.json()["epoch"]) == ("active", 2)
        assert done.json()["recover_wait_ms"] is None

    run(scenario)


def test_f7_a_second_freeze_of_a_frozen_volume_does_not_begin_the_wait_anew() -> None:
    async def scenario(kit: Kit) -> None:
        await frozen(kit)
        kit.clock.advance(1000)
        again = await kit.operator.post("/v1/volumes/v/freeze")
        assert again.json()["recover_wait_ms"] == term_and_margin_ms(kit) - 1000

    run(scenario)


def test_f7_an_authority_that_restarts_waits_the_whole_term_again() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with rack(store=store) as kit:
            await frozen(kit)
        async with rack(store=store) as again:
            assert (await recover(again)).json()["wait_ms"] == term_and_margin_ms(again)
            again.clock.advance(term_and_margin_ms(again))
            assert (await recover(again)).json()["state"] == "active"
        await store.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_f7_a_forced_takeover_says_what_may_be_lost_and_waits_the_term_out() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await frozen(kit)
        await says(primary, record, 150)
        kit.clock.advance(42_000)
        await says(secondary, record, 120)
        asked = {"head": "head-2" if record.heads[1] == secondary.id else "head-1"}
        warned = await recover(kit, **asked)
        assert (warned.status_code, warned.json()["type"]) == (409, "urn:palisade:problem:may-lose")
        assert "ends at operation 120" in warned.json()["detail"]
        assert "operation 150 as committed, 42 s ago" in warned.json()["detail"]
        early = await recover(kit, **asked, may_lose=True)
        assert early.json()["type"] == "urn:palisade:problem:too-early"
        kit.clock.advance(term_and_margin_ms(kit))
        await says(secondary, record, 120)
        done = (await recover(kit, **asked, may_lose=True)).json()
        assert (done["state"], done["epoch"], done["primary"]) == ("active", 2, str(secondary.id))
        assert done["current"] == [{"head": str(secondary.id), "log": str(secondary.log)}]
        with pytest.raises(NotEligible):
            await primary.client.takeover(record.volume, expected_version=done["version"], log_id=primary.log)
        taken, _ = await secondary.client.takeover(
            record.volume, expected_version=done["version"], log_id=secondary.log
        )
        assert taken.epoch == 3

    run(scenario)


def test_a_forced_takeover_is_refused_for_a_member_and_for_a_head_that_reports_no_log() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await frozen(kit)
        await says(primary, record, 150)
        for head, why in ((primary, "is a member"), (secondary, "does not report a log")):
            refused = await recover(kit, head=str(head.id), may_lose=True)
            assert (refused.status_code, refused.json()["type"]) == (409, "urn:palisade:problem:conflict")
            assert why in refused.json()["detail"]
        assert await kit.record(record.volume) == record

    run(scenario)


def test_a_volume_that_is_not_frozen_is_not_recovered() -> None:
    async def scenario(kit: Kit) -> None:
        _, _, record = await kit.ready()
        assert (await recover(kit)).json()["type"] == "urn:palisade:problem:conflict"
        assert await kit.record(record.volume) == record

    run(scenario)
