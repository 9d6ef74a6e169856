"""Who may connect and who has to prove himself: over REST, in the store, and in the view of each head."""

import asyncio
import json
import logging
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from kit.authority import Head, Kit, run
from kit.dhchap import BOTH_WAYS, CONTROLLER_SECRET, HOST_SECRET

from head_node.authority.ledger import secrets_key
from head_node.store.errors import RecordMalformed
from head_node.store.host_secrets import HostSecrets, sealed_for, unsealed
from head_node.store.records import NbdExport
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms

NQN = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-4222-8222-222222222222"
ODD = "nqn.2014-08.org.example:a/b?c#d%20/host-secrets"
FRESH = Secret(b"f" * 32, None)


def body(**changes: Any) -> dict[str, Any]:
    return {"secret": HOST_SECRET.text(), "controller_secret": CONTROLLER_SECRET.text()} | changes


async def put(kit: Kit, nqn: str = NQN, **changes: Any) -> httpx.Response:
    return await kit.operator.put(f"/v1/volumes/v/host-secrets/{quote(nqn, safe='')}", json=body(**changes))


async def listed(kit: Kit) -> dict[str, Any]:
    found: dict[str, Any] = (await kit.operator.get("/v1/volumes/v/hosts")).json()
    return found


async def known_to(head: Head, kit: Kit) -> dict[str, Terms]:
    """What the head's view says of the volume's hosts."""
    view = await head.client.view()
    (volume,) = view.volumes
    if volume not in view.secrets:
        return {}
    return dict(unsealed(head.key, volume, view.secrets[volume]).terms)


def test_a_host_is_admitted_with_its_secret_in_one_change() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready(nbd="off")
        answer = await put(kit)
        assert answer.status_code == 200, answer.text
        proof = {"hash": "sha256", "group": "ffdhe2048", "both_ways": True}
        assert answer.json() == await listed(kit) == {"hosts": [NQN], "proofs": {NQN: proof}}
        assert await known_to(primary, kit) == await known_to(secondary, kit) == {NQN: BOTH_WAYS}
        assert (await kit.record(record.volume)).version == record.version + 1

    run(scenario)


def test_floors_and_one_way_secrets_reach_the_heads() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready(nbd="off")
        await put(kit, controller_secret=None, hash="sha512", group="null")
        assert (await listed(kit))["proofs"][NQN] == {"hash": "sha512", "group": "null", "both_ways": False}
        assert await known_to(primary, kit) == {NQN: Terms(HOST_SECRET, None, HashId.SHA512, GroupId.NULL)}

    run(scenario)


def test_a_secret_is_rotated_and_removed() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready(nbd="off")
        await put(kit)
        await put(kit, secret=FRESH.text(), controller_secret=None)
        assert await known_to(primary, kit) == {NQN: Terms(FRESH)}
        removed = await kit.operator.delete(f"/v1/volumes/v/host-secrets/{NQN}")
        assert removed.json() == {"hosts": [NQN], "proofs": {}}
        assert await known_to(primary, kit) == {}
        assert (await kit.operator.delete(f"/v1/volumes/v/host-secrets/{NQN}")).status_code == 404

    run(scenario)


def test_whoever_is_taken_off_the_list_takes_his_secret_along() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready(nbd="off")
        await put(kit)
        gone = await kit.operator.delete(f"/v1/volumes/v/hosts/{NQN}")
        assert gone.json() == {"hosts": [], "proofs": {}}
        await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": NQN})
        assert await listed(kit) == {"hosts": [NQN], "proofs": {}}
        assert await known_to(primary, kit) == {}
        kept = await kit.authority.ledger.json(secrets_key(record.volume))
        assert kept is not None
        assert kept.value["hosts"] == {}

    run(scenario)


def test_a_name_may_hold_any_character_that_an_nqn_may() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.ready(nbd="off")
        assert (await put(kit, ODD)).json()["hosts"] == [ODD]
        path = quote(ODD, safe="")
        assert (await kit.operator.delete(f"/v1/volumes/v/host-secrets/{path}")).json()["proofs"] == {}
        assert (await kit.operator.delete(f"/v1/volumes/v/hosts/{path}")).json()["hosts"] == []

    run(scenario)


def test_a_secret_beside_any_host_would_keep_nobody_out_and_is_refused() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.ready(nbd="off")
        await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": "*"})
        refused = await put(kit)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:palisade:problem:conflict")
        assert (await put(kit, "*")).status_code == 409
        await kit.operator.delete("/v1/volumes/v/hosts/*")
        assert (await put(kit)).status_code == 200
        assert (await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": "*"})).status_code == 409

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"secret": HOST_SECRET.text()[:-1]}, 422),
        ({"secret": HOST_SECRET.text().replace("A", "B", 1)}, 422),
        ({"secret": "x" * 5000}, 422),
        ({"controller_secret": "DHHC-1:01:zzzz:"}, 422),
        ({"controller_secret": HOST_SECRET.text()}, 422),
        ({"hash": "md5"}, 422),
        ({"group": "ffdhe1024"}, 422),
        ({"secret": None}, 422),
        ({"more": 1}, 422),
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(changes: dict[str, Any], status: int) -> None:
    async def scenario(kit: Kit) -> None:
        await kit.ready(nbd="off")
        answer = await put(kit, **changes)
        assert answer.status_code == status, answer.text
        assert HOST_SECRET.text()[12:40] not in answer.text
        assert "zzzz" not in answer.text
        assert "x" * 100 not in answer.text
        assert await listed(kit) == {"hosts": [], "proofs": {}}

    run(scenario)


def test_a_host_that_is_no_host_is_refused() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.ready(nbd="off")
        assert (await put(kit, "not-an-nqn")).status_code == 422
        assert (await kit.operator.put("/v1/volumes/w/host-secrets/x", json=body())).status_code == 404
        assert (await kit.operator.delete(f"/v1/volumes/v/hosts/{NQN}")).status_code == 404

    run(scenario)


def test_secrets_are_shown_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Not to operators, in no event and no log; heads get them sealed."""
    caplog.set_level(logging.DEBUG)

    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready(nbd="off")
        await put(kit)
        paths = ["/v1/volumes", "/v1/volumes/v", "/v1/volumes/v/hosts", "/v1/nodes", "/v1/heads", "/v1/sleds"]
        shown = [(await kit.operator.get(path)).text for path in [*paths, "/v1/events", "/v1/keys"]]
        view = json.dumps((await primary.client.view()).to_json())
        shown += [view, repr(await kit.authority.ledger.rack())]
        for secret in (HOST_SECRET, CONTROLLER_SECRET):
            for text in (*shown, caplog.text):
                assert secret.text()[10:50] not in text
                assert secret.key.hex() not in text
                assert repr(secret.key)[2:-1] not in text
        assert str(record.volume) in view

    run(scenario)


def test_only_heads_that_are_assigned_the_volume_get_them_each_in_a_seal_of_its_own() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready(nbd="off")
        outsider = await kit.enrolled("head-3")
        await put(kit)
        assert (await outsider.client.view()).secrets == {}
        sealed = (await primary.client.view()).secrets[record.volume]
        assert (await kit.operator.get("/v1/view")).status_code == 401
        for key in (secondary.key, outsider.key):
            with pytest.raises(RecordMalformed):
                unsealed(key, record.volume, sealed)

    run(scenario)


def test_a_seal_is_for_one_volume() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready(nbd="off")
        secrets = HostSecrets(record.volume, {NQN: BOTH_WAYS})
        sealed = sealed_for(primary.public, secrets, kit.env.entropy)
        assert unsealed(primary.key, record.volume, sealed) == secrets
        with pytest.raises(RecordMalformed):
            unsealed(primary.key, primary.id, sealed)

    run(scenario)


def test_a_volume_with_host_secrets_has_no_open_nbd() -> None:
    """Neither a secret beside open NBD, nor open NBD beside a secret."""

    async def scenario(kit: Kit) -> None:
        _, _, record = await kit.ready()
        assert record.nbd is NbdExport.ON
        for change in ({"nbd": "off"}, {"nbd": "tls"}):
            refused = await put(kit)
            assert (refused.status_code, refused.json()["type"]) == (409, "urn:palisade:problem:conflict")
            assert "`off` or `tls`" in refused.json()["detail"]
            assert (await listed(kit)) == {"hosts": [], "proofs": {}}
            assert (await kit.operator.patch("/v1/volumes/v", json=change)).json()["nbd"] == change["nbd"]
            assert (await put(kit)).status_code == 200
            before = await kit.record(record.volume)
            for again in ({"nbd": "on"}, {"nbd": "on", "nvme": False, "exposed_stripes": False}):
                refused = await kit.operator.patch("/v1/volumes/v", json=again)
                assert (refused.status_code, refused.json()["type"]) == (409, "urn:palisade:problem:conflict")
                assert "NBD" in refused.json()["detail"]
            assert await kit.record(record.volume) == before
            assert (await kit.operator.patch("/v1/volumes/v", json={"nbd": "tls"})).status_code == 200
            assert (await kit.operator.patch("/v1/volumes/v", json={"nvme": False})).status_code == 200
            await kit.operator.delete(f"/v1/volumes/v/hosts/{NQN}")
            assert (await kit.operator.patch("/v1/volumes/v", json={"nbd": "on"})).json()["nbd"] == "on"

    run(scenario)


def test_a_secret_and_open_nbd_that_are_asked_for_at_once_do_not_both_come() -> None:
    async def scenario(kit: Kit) -> None:
        _, _, record = await kit.ready(nbd="off")
        opened, guarded = await asyncio.gather(kit.operator.patch("/v1/volumes/v", json={"nbd": "on"}), put(kit))
        assert sorted((opened.status_code, guarded.status_code)) == [200, 409]
        found = await kit.authority.ledger.host_secrets(record.volume)
        assert ((await kit.record(record.volume)).nbd is NbdExport.ON) is (found is None)

    run(scenario)


def test_a_deleted_volume_leaves_no_secrets() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        record = await kit.volume(nbd="off")
        await put(kit)
        assert await kit.authority.ledger.host_secrets(record.volume) is not None
        assert (await kit.operator.delete("/v1/volumes/v")).json()["gone"] is True
        assert await kit.authority.ledger.host_secrets(record.volume) is None

    run(scenario)


def test_a_waiting_view_is_answered_when_a_secret_changes() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready(nbd="off")
        before = await primary.client.view()
        await put(kit)
        after = await primary.client.view(before.revision, 10_000)
        assert after.revision > before.revision
        assert record.volume in after.secrets

    run(scenario)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("hosts"),
        lambda data: data["hosts"][NQN].pop("secret"),
        lambda data: data["hosts"][NQN].update(secret="DHHC-1:00:wrong:"),
        lambda data: data["hosts"][NQN].update(hash="sha1"),
        lambda data: data["hosts"][NQN].update(group=7),
        lambda data: data["hosts"][NQN].update(controller_secret=HOST_SECRET.text()),
        lambda data: data.update(hosts=[]),
        lambda data: data.update(volume="v"),
    ],
)
def test_a_damaged_record_is_told_without_what_it_holds(change: Any) -> None:
    from uuid import UUID

    data = HostSecrets(UUID(int=1), {NQN: BOTH_WAYS}).to_json()
    assert HostSecrets.from_json(data).terms == {NQN: BOTH_WAYS}
    change(data)
    with pytest.raises(RecordMalformed) as caught:
        HostSecrets.from_json(data)
    assert "DHHC" not in str(caught.value)
