"""Two logs of a volume that part below what was committed: the volume stops, and goes on from the one that is named."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
import pytest
from kit.authority import Head, Kit, run, term_and_margin_ms

from head_node.authority.errors import Frozen, NotEligible
from head_node.store.records import LogEnd, Member, VolumeRecord, VolumeState


async def parted(kit: Kit) -> tuple[Head, Head, VolumeRecord, list[LogEnd]]:
    """The secondary is back after its primary took an epoch without it, and had more."""
    primary, secondary, record = await kit.ready()
    record, _ = await primary.client.takeover(record.volume, expected_version=record.version, log_id=primary.log)
    record = await primary.client.change_members(
        record.volume, epoch=2, expected_version=record.version, remove=Member(secondary.id, secondary.log)
    )
    ends = [LogEnd(primary.id, primary.log, 41, 2, 41, 2), LogEnd(secondary.id, secondary.log, 42, 1, 42, 1)]
    return primary, secondary, record, ends


async def says(head: Head, volume: UUID, **engine: Any) -> None:
    said: Mapping[str, Any] = {"volumes": {str(volume): {"engine": {"log_id": str(head.log), **engine}}}}
    await head.client.report(said)


async def recover(kit: Kit, **body: Any) -> httpx.Response:
    return await kit.operator.post("/v1/volumes/v/recover", json={"epoch": 2, **body})


def problem(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, str(reply.json()["type"]).rpartition(":")[2]


def test_d1_logs_that_part_below_what_was_committed_freeze_the_volume_and_say_what_each_has() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record, ends = await parted(kit)
        frozen = await primary.client.report_divergence(record.volume, epoch=2, parted=40, logs=ends)
        assert frozen.state is VolumeState.FROZEN
        assert frozen.current == record.current
        status = (await kit.operator.get("/v1/volumes/v")).json()
        said = status["frozen_because"]
        for part in (
            "part after operation 40", "ends at operation 41 of epoch 2", "ends at operation 42 of epoch 1",
            "operation 42 of epoch 1 as committed", "both logs are kept",
        ):  # fmt: skip
            assert part in said
        with pytest.raises(Frozen):
            await primary.client.takeover(record.volume, expected_version=frozen.version, log_id=primary.log)
        again = await primary.client.report_divergence(record.volume, epoch=2, parted=40, logs=ends)
        assert again == frozen, "an answer that was lost is asked for again"

    run(scenario)


def test_only_the_primary_of_the_epoch_says_that_logs_part() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record, ends = await parted(kit)
        secondary.client._claims[record.volume] = (2, "0" * 32)
        for head, epoch in ((secondary, 2), (kit.restarted(primary), 2), (primary, 1)):
            with pytest.raises(NotEligible):
                await head.client.report_divergence(record.volume, epoch=epoch, parted=40, logs=ends)
        assert (await kit.record(record.volume)) == record

    run(scenario)


@pytest.mark.parametrize("name", ["primary", "secondary"])
def test_d1_a_volume_whose_logs_part_goes_on_only_from_the_log_that_an_operator_names(name: str) -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record, ends = await parted(kit)
        chosen: Head = {"primary": primary, "secondary": secondary}[name]
        await primary.client.report_divergence(record.volume, epoch=2, parted=40, logs=ends)
        await kit.operator.post("/v1/volumes/v/freeze")  # as rackctl does first, whatever the state
        assert "part after operation 40" in (await kit.operator.get("/v1/volumes/v")).json()["frozen_because"]
        kit.clock.advance(term_and_margin_ms(kit))
        await says(primary, record.volume, tail=41, epoch=2, committed=41, missing=0)
        await says(secondary, record.volume, tail=42, epoch=1, committed=42, missing=0)
        unnamed = await recover(kit)
        assert problem(unnamed) == (409, "conflict")
        assert "name the head whose log counts" in unnamed.json()["detail"]
        warned = await recover(kit, head=str(chosen.id))
        assert problem(warned) == (409, "may-lose")
        assert f"ends at operation {41 if chosen is primary else 42}" in warned.json()["detail"]
        assert "set aside, not removed" in warned.json()["detail"]
        done = (await recover(kit, head=str(chosen.id), may_lose=True)).json()
        assert (done["state"], done["epoch"], done["forced_epoch"]) == ("active", 3, 3)
        assert done["current"] == [{"head": str(chosen.id), "log": str(chosen.log)}]
        taken, _ = await chosen.client.takeover(record.volume, expected_version=done["version"], log_id=chosen.log)
        assert (taken.epoch, taken.forced_epoch) == (4, 3)
        kit.clock.advance(1)
        await kit.operator.post("/v1/volumes/v/freeze")
        kit.clock.advance(term_and_margin_ms(kit))
        assert (await recover(kit, epoch=4)).json()["state"] == "active", "what was chosen is chosen"

    run(scenario)


@pytest.mark.parametrize(
    ("missing", "answer"), [(0, (409, "conflict")), (2, (409, "may-lose"))], ids=["whole", "lost its end"]
)
def test_d1_the_only_member_is_named_only_when_it_has_lost_committed_records(
    missing: int, answer: tuple[int, str]
) -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await primary.client.change_members(
            record.volume, epoch=1, expected_version=record.version, remove=Member(secondary.id, secondary.log)
        )
        await kit.operator.post("/v1/volumes/v/freeze")
        kit.clock.advance(term_and_margin_ms(kit))
        await says(primary, record.volume, tail=40, epoch=1, committed=40, missing=missing)
        warned = await recover(kit, head=str(primary.id))
        assert problem(warned) == answer
        detail = warned.json()["detail"]
        assert ("is a member" in detail) == (not missing)
        assert ("2 committed operations are gone from its own log" in detail) == bool(missing)

    run(scenario)


def test_d1_one_of_two_members_goes_on_alone_knowingly() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await kit.operator.post("/v1/volumes/v/freeze")
        kit.clock.advance(term_and_margin_ms(kit))
        await says(primary, record.volume, tail=40, epoch=1, committed=40, missing=0)
        await says(secondary, record.volume, tail=42, epoch=1, committed=42, missing=0)
        warned = await recover(kit, head=str(primary.id))
        assert problem(warned) == (409, "may-lose")
        assert "goes on alone: its log ends at operation 40" in warned.json()["detail"]
        assert f"member {secondary.id} last reported operation 42 as committed" in warned.json()["detail"]

    run(scenario)
