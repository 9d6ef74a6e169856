"""Every signed request of a head is judged by the record: what it has no part in it neither changes nor learns of."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kit.authority import Head, Kit, columns_of, run

from head_node.api import heads as routes
from head_node.authority.errors import NotEligible, Unenrolled
from head_node.authority.transitions import revoke as without
from head_node.store.records import LogEnd, LostRange, Member, VolumeRecord
from sled_controller.credential import Rights

Ask = Callable[[Kit, Head, VolumeRecord], Awaitable[Any]]


def claimed(head: Head, record: VolumeRecord) -> Head:
    """As if it had the claim of the record's epoch, if it has none: it guesses."""
    head.client._claims.setdefault(record.volume, (record.epoch, "0" * 32))
    return head


async def evidence(kit: Kit, head: Head, record: VolumeRecord) -> Any:
    held = await kit.authority.volumes.sign_for(record.volume, record.epoch, head.public, Rights.READ)
    return await head.client.report_credential(held)


def diverged(kit: Kit, head: Head, record: VolumeRecord) -> Awaitable[Any]:
    end = LogEnd(record.current[0].head, record.current[0].log, 1, 1, 1, 1)
    ends = [end, LogEnd(head.id, head.log, 2, 1, 2, 1)]
    return claimed(head, record).client.report_divergence(record.volume, epoch=1, parted=1, logs=ends)


OF_VOLUMES: dict[str, Ask] = {
    "takeOver": lambda kit, head, record: head.client.takeover(
        record.volume, expected_version=record.version, log_id=head.log
    ),
    "changeMembers": lambda kit, head, record: claimed(head, record).client.change_members(
        record.volume, epoch=1, expected_version=record.version, add=Member(head.id, head.log)
    ),
    "setColumns": lambda kit, head, record: claimed(head, record).client.set_columns(
        record.volume, epoch=1, expected_version=record.version, columns=columns_of(record)
    ),
    "lostDeclared": lambda kit, head, record: claimed(head, record).client.lost_declared(
        record.volume, epoch=1, expected_version=record.version, lost=LostRange(0, 1)
    ),
    "renewCredential": lambda kit, head, record: claimed(head, record).client.renew(record.volume, epoch=1),
    "confirmDeleted": lambda kit, head, record: claimed(head, record).client.confirm_deleted(record.volume, epoch=1),
    "reportDivergence": diverged,
    "reportCredential": evidence,
}
"""Requests about a volume, by operation id: a head without a part in it is refused each."""

OF_HEADS: dict[str, Ask] = {
    "announceAddresses": lambda kit, head, record: head.client.announce({"peer": ("127.0.0.1", 1)}),
    "reportStatus": lambda kit, head, record: head.client.report({"volumes": {}}),
    "viewRack": lambda kit, head, record: head.client.view(),
    "confirmLogRemoved": lambda kit, head, record: head.client.confirm_log_removed(record.volume),
}
"""Requests about the head itself."""

BEFORE_ENROLMENT = {"enrolHead"}


def test_rights_every_request_of_heads_is_in_a_table_here() -> None:
    known = {str(getattr(route, "operation_id", None)) for route in routes.router.routes}
    assert known == {*OF_VOLUMES, *OF_HEADS, *BEFORE_ENROLMENT}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OF_VOLUMES)
def test_rights_a_head_without_a_part_in_a_volume_neither_changes_it_nor_learns_of_it(name: str, frozen: bool) -> None:
    async def scenario(kit: Kit) -> None:
        _, _, record = await kit.ready()
        stranger = await kit.enrolled("head-3")
        if frozen:
            await kit.operator.post("/v1/volumes/v/freeze")
        before = await kit.record(record.volume)
        with pytest.raises(NotEligible):
            await OF_VOLUMES[name](kit, stranger, before)
        assert await kit.record(record.volume) == before
        view = await stranger.client.view()
        assert not view.volumes
        assert not view.secrets

    run(scenario)


@pytest.mark.parametrize("name", [*OF_VOLUMES, *OF_HEADS])
def test_rights_a_revoked_head_is_refused_every_request(name: str) -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await secondary.client.view()
        await kit.authority.nodes.revoke_head(secondary.id)
        after = await kit.record(record.volume)
        with pytest.raises(Unenrolled, match="revoked"):
            await (OF_VOLUMES | OF_HEADS)[name](kit, secondary, record)
        assert await kit.record(record.volume) == after == without(record, secondary.id, ())
        assert await primary.client.renew(record.volume, epoch=1)

    run(scenario)


@pytest.mark.parametrize("name", [*OF_VOLUMES, "announceAddresses"])
def test_rights_a_head_that_is_revoked_while_its_request_is_looked_at_changes_nothing(name: str) -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        asked = {"takeOver": secondary}.get(name, primary)
        head = kit.authority.authenticator.head

        async def revoked_meanwhile(request: Any) -> Any:
            found = await head(request)
            await kit.authority.nodes.revoke_head(asked.id)
            return found

        if name == "confirmDeleted":
            await kit.operator.delete("/v1/volumes/v")
        kit.authority.authenticator.head = revoked_meanwhile  # type: ignore[method-assign]
        ask = (OF_VOLUMES | OF_HEADS)[name]
        with pytest.raises((Unenrolled, NotEligible)):
            await ask(kit, asked, record)
        after = await kit.record(record.volume)
        assert not after.assigned(asked.id)
        found = await kit.authority.ledger.head(asked.id)
        assert found is not None
        assert found.value.addresses["peer"] == ("127.0.0.1", 7000)

    run(scenario)


def test_rights_what_a_head_says_of_a_volume_that_it_has_no_part_in_is_not_shown() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        stranger = await kit.enrolled("head-3")
        for head in (primary, stranger):
            await head.client.report({"volumes": {str(record.volume): {"exposed": True, "serving": True}}})
        status = (await kit.operator.get("/v1/volumes/v")).json()
        assert set(status["health"]["reports"]) == {str(primary.id)}

    run(scenario)


def test_rights_a_report_of_a_revoked_head_that_comes_late_counts_for_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        _, secondary, _ = await kit.ready()
        await kit.authority.nodes.revoke_head(secondary.id)
        kit.authority.reports.add_report(secondary.id, {"sleds": {}})
        assert not kit.authority.reports.is_live(secondary.id)

    run(scenario)


def test_rights_a_genuine_newer_credential_freezes_the_volume_whoever_hands_it_in() -> None:
    async def scenario(kit: Kit) -> None:
        _, _, record = await kit.ready()
        stranger = await kit.enrolled("head-3")
        newer = await kit.authority.volumes.sign_for(record.volume, 7, stranger.public, Rights.READ)
        with pytest.raises(NotEligible):
            await stranger.client.report_credential(newer)
        assert (await kit.record(record.volume)).state == "frozen"

    run(scenario)


def test_rights_only_logs_of_heads_of_the_volume_are_told_to_part() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        stranger = await kit.enrolled("head-3")
        ends = [LogEnd(primary.id, primary.log, 1, 1, 1, 1), LogEnd(stranger.id, stranger.log, 2, 1, 2, 1)]
        with pytest.raises(NotEligible):
            await primary.client.report_divergence(record.volume, epoch=1, parted=1, logs=ends)
        assert (await kit.record(record.volume)).state == "active"

    run(scenario)
