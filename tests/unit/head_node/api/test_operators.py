"""What operators see: volumes with health, nodes with roles, events."""

from kit.authority import Kit, run

from head_node.authority.reports import EVENTS_PER_HEAD_MAX


def test_a_volume_is_created_listed_and_inspected_by_name_and_id() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.enrolled("head-2")
        await kit.sleds()
        made = await kit.operator.post("/v1/volumes", json={"name": "v", "size_bytes": 1 << 30})
        body = made.json()
        assert made.headers["location"] == f"/v1/volumes/{body['volume']}"
        assert (body["state"], body["epoch"], len(body["heads"]), len(set(body["sleds"]))) == ("creating", 0, 2, 6)
        assert (await kit.operator.get("/v1/volumes/v")).json() == body
        assert (await kit.operator.get(f"/v1/volumes/{body['volume']}")).json() == body
        assert (await kit.operator.get("/v1/volumes")).json() == {"volumes": [body]}

    run(scenario)


HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111"


def test_hosts_are_admitted_and_expelled_and_every_head_sees_it() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        await kit.enrolled("head-2")
        await kit.sleds()
        made = (await kit.operator.post("/v1/volumes", json={"name": "v", "size_bytes": 1 << 30})).json()
        assert made["hosts"] == []
        assert (await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": HOST})).json() == {
            "hosts": [HOST],
            "proofs": {},
        }
        again = await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": HOST})
        assert again.json()["hosts"] == [HOST]
        (seen,) = (await head.client.view()).volumes.values()
        assert (seen.hosts, seen.version) == ((HOST,), made["version"] + 1)
        await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": "*"})
        assert (await kit.operator.delete(f"/v1/volumes/v/hosts/{HOST}")).json()["hosts"] == ["*"]
        assert (await kit.operator.get("/v1/volumes/v/hosts")).json()["hosts"] == ["*"]
        assert (await kit.operator.delete(f"/v1/volumes/v/hosts/{HOST}")).status_code == 404
        for wrong in ("host", "nqn.2014-08.x y", "nqn.2014-08.", "nqn.2014-08." + "x" * 220):
            assert (await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": wrong})).status_code == 422, wrong
        for number in range(63):
            await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": f"nqn.2014-08.org:{number}"})
        full = await kit.operator.post("/v1/volumes/v/hosts", json={"nqn": HOST})
        assert full.status_code == 409

    run(scenario)


def test_a_volume_is_made_with_its_hosts() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        body = {"name": "v", "size_bytes": 1 << 30, "hosts": [HOST]}
        made = (await kit.operator.post("/v1/volumes", json=body)).json()
        assert (made["hosts"], made["version"]) == ([HOST], 1)
        refused = await kit.operator.post("/v1/volumes", json=body | {"name": "w", "hosts": ["nobody"]})
        assert refused.status_code == 422

    run(scenario)


def test_health_comes_from_the_record_and_from_live_reports() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()

        async def health() -> dict[str, object]:
            found: dict[str, object] = (await kit.operator.get("/v1/volumes/v")).json()["health"]
            return found

        quiet = {
            "exposed": False,
            "primary_live": False,
            "serving": False,
            "stopped": "",
            "members": 2,
            "degraded": "",
            "reports": {},
        }
        assert await health() == quiet
        said = {"role": "primary", "epoch": 1, "exposed": True, "serving": True}
        await primary.client.report({"volumes": {str(record.volume): said}})
        assert await health() == {
            "exposed": True,
            "primary_live": True,
            "serving": True,
            "stopped": "",
            "members": 2,
            "degraded": "",
            "reports": {str(primary.id): said},
        }
        await primary.client.report({"volumes": {str(record.volume): said | {"exposed": False}}})
        assert (await health())["exposed"] is False
        await primary.client.change_members(
            record.volume, epoch=1, expected_version=record.version, remove=record.current[1]
        )
        assert (await health())["exposed"] is True
        kit.clock.advance(10_000)
        assert (await health())["primary_live"] is False
        assert secondary.id != primary.id

    run(scenario)


def test_nodes_are_listed_with_roles_reports_and_allocations() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        sled = record.sleds[0]
        await primary.client.report({"sleds": {str(sled): {"reachable": False}}, "lag": 3})
        nodes = (await kit.operator.get("/v1/nodes")).json()
        heads = {head["id"]: head for head in nodes["heads"]}
        assert [role["role"] for role in heads[str(primary.id)]["roles"]] == ["primary"]
        assert [role["role"] for role in heads[str(secondary.id)]["roles"]] == ["secondary"]
        assert (heads[str(primary.id)]["live"], heads[str(secondary.id)]["live"]) == (True, False)
        assert heads[str(primary.id)]["report"]["lag"] == 3
        sleds = {entry["id"]: entry for entry in nodes["sleds"]}
        assert sleds[str(sled)]["reachable"] is False
        assert sleds[str(record.sleds[1])]["reachable"] is None
        assert sleds[str(sled)]["allocated_blocks"] == record.columns[0].blocks
        assert (await kit.operator.get("/v1/heads")).json() == nodes["heads"]
        assert (await kit.operator.get("/v1/sleds")).json() == nodes["sleds"]

    run(scenario)


def test_events_tell_takeovers_and_what_heads_report_in_a_bounded_ring() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        fenced = {"kind": "fenced-off", "volume": str(record.volume), "epoch": 1, "current_epoch": 2}
        await primary.client.report({"events": [fenced, "nonsense", {"kind": "x", "sequence": 0, "head": "other"}]})
        events = (await kit.operator.get("/v1/events")).json()["events"]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        takeover, seen = events[-2:]
        assert (takeover["kind"], takeover["head"], takeover["epoch"]) == ("takeover", str(secondary.id), 2)
        assert fenced.items() <= seen.items()
        assert seen["head"] == str(primary.id)
        rest = (await kit.operator.get(f"/v1/events?after={takeover['sequence']}")).json()["events"]
        assert rest == [seen]
        for _ in range(20):
            await primary.client.report({"events": [fenced] * 100})
        kinds = [event["kind"] for event in (await kit.operator.get("/v1/events")).json()["events"]]
        assert kinds.count("fenced-off") == EVENTS_PER_HEAD_MAX
        assert kinds[: len(events) - 1] == [event["kind"] for event in events[:-1]], "the authority's own are all there"

    run(scenario)


def test_a_head_sees_its_own_volumes_only() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        other = await kit.enrolled("head-3")
        assert set((await primary.client.view()).volumes) == {record.volume}
        assert (await other.client.view()).volumes == {}

    run(scenario)


def test_a_volume_may_ask_for_more_members_than_one_but_not_for_more_than_it_is_given() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        made = await kit.operator.post("/v1/volumes", json={"name": "two", "size_bytes": 1 << 20, "min_members": 2})
        assert (made.status_code, made.json()["min_current"]) == (201, 2)
        for asked, status in ((3, 422), (0, 422), (17, 422), ("2", 422)):
            body = {"name": "other", "size_bytes": 1 << 20, "min_members": asked}
            refused = await kit.operator.post("/v1/volumes", json=body)
            assert refused.status_code == status, refused.text
            assert "min_members" in refused.text

    run(scenario)


def test_an_operator_says_what_a_volume_does_while_sleds_are_away() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        body = {"name": "v", "size_bytes": 1 << 20, "exposed_stripes": False, "read_wait_s": 60}
        made = (await kit.operator.post("/v1/volumes", json=body)).json()
        assert (made["exposed_stripes"], made["read_wait_s"], made["version"]) == (False, 60, 1)
        for change, exposed, wait_s in (
            ({"exposed_stripes": True}, True, 60),
            ({"read_wait_s": None}, True, None),
            ({}, True, None),
            ({"read_wait_s": 0, "exposed_stripes": False}, False, 0),
        ):
            changed = await kit.operator.patch("/v1/volumes/v", json=change)
            assert changed.status_code == 200, changed.text
            assert (changed.json()["exposed_stripes"], changed.json()["read_wait_s"]) == (exposed, wait_s)
        for wrong in ({"read_wait_s": -1}, {"read_wait_s": 86_401}, {"exposed_stripes": "yes"}, {"size_bytes": 1}):
            assert (await kit.operator.patch("/v1/volumes/v", json=wrong)).status_code == 422
        assert (await kit.operator.patch("/v1/volumes/w", json={})).status_code == 404

    run(scenario)


def test_an_operator_says_by_what_clients_reach_a_volume() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        made = (await kit.operator.post("/v1/volumes", json={"name": "v", "size_bytes": 1 << 20, "nvme": False})).json()
        assert (made["nbd"], made["nvme"], made["version"]) == ("on", False, 1)
        for change, nbd, nvme in (
            ({"nbd": "tls"}, "tls", False),
            ({"nvme": True}, "tls", True),
            ({"nbd": "off", "nvme": False, "read_wait_s": 9}, "off", False),
            ({"nbd": None, "nvme": None}, "off", False),
        ):
            changed = await kit.operator.patch("/v1/volumes/v", json=change)
            assert changed.status_code == 200, changed.text
            assert (changed.json()["nbd"], changed.json()["nvme"]) == (nbd, nvme)
        assert changed.json()["read_wait_s"] == 9
        seen = (await kit.operator.get("/v1/volumes")).json()["volumes"][0]
        assert (seen["nbd"], seen["nvme"], seen["version"]) == ("off", False, 5)
        kinds = [event["kind"] for event in (await kit.operator.get("/v1/events")).json()["events"]]
        assert kinds.count("exports-set") == 3
        for wrong in ({"nbd": "yes"}, {"nbd": True}, {"nvme": "on"}, {"nvme": 1}):
            assert (await kit.operator.patch("/v1/volumes/v", json=wrong)).status_code == 422

    run(scenario)


def test_an_operator_lists_unreadable_blocks_and_declares_them_lost() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        path = f"/v1/volumes/{record.volume}"
        none = {"blocks": 0, "more": False, "ranges": [], "lost": 0}
        assert (await kit.operator.get(f"{path}/unreadable")).json() == none
        engine = {
            "blocks_unreadable": 3, "blocks_unreadable_more": True, "blocks_unreadable_ranges": [[4, 2], [9, 1]],
            "blocks_lost": 7,
        }  # fmt: skip
        await primary.client.report({"volumes": {str(record.volume): {"role": "primary", "engine": engine}}})
        assert (await kit.operator.get(f"{path}/unreadable")).json() == {
            "blocks": 3, "more": True, "ranges": [{"first": 4, "blocks": 2}, {"first": 9, "blocks": 1}], "lost": 7,
        }  # fmt: skip
        asked = await kit.operator.post(f"{path}/lost", json={"first": 4, "blocks": 2})
        assert asked.status_code == 202, asked.text
        assert asked.json()["lost"] == [{"first": 4, "blocks": 2, "sleds_away": False}]
        for wrong in ({"first": 4}, {"first": 1 << 40, "blocks": 1}, {"first": 0, "blocks": 0}):
            assert (await kit.operator.post(f"{path}/lost", json=wrong)).status_code == 422
        seen = (await primary.client.view()).volumes[record.volume]
        left = await primary.client.lost_declared(
            record.volume, epoch=seen.epoch, expected_version=seen.version, lost=seen.lost[0]
        )
        assert left.lost == ()
        assert (await kit.operator.get(path)).json()["lost"] == []

    run(scenario)
