"""The authority's REST interface among strangers, floods and bodies that are none."""

import asyncio
import json
import resource
import socket
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.pressure import eventually
from rackctl.evidence import fences_seen
from rackctl.rack import Rack

from head_node.api.connections import CONNECTIONS_MAX
from head_node.authority.client import AuthorityClient
from sled_controller.environment import Environment

JSON = {"content-type": "application/json"}
BODIES = {
    "not JSON": (b"hello", 400),
    "cut off": (b'{"name": "x", "size_', 400),
    "nested too deep": (b"[" * 200_000, 400),
    "a number of 6000 digits": (b'{"name":"x","size_bytes":' + b"9" * 6000 + b"}", 400),
    "not UTF-8": (b'{"name":"\xff\xfe"}', 400),
    "nothing": (b"", 422),
    "a list": (b"[]", 422),
    "not a number": (b'{"name":"x","size_bytes":NaN}', 422),
    "no such key": (b'{"name":"x","size_bytes":67108864,"evil":1}', 422),
    "a path for a name": (b'{"name":"../../etc","size_bytes":67108864}', 422),
    "a name with a NUL": (b'{"name":"a\\u0000b","size_bytes":67108864}', 422),
    "half a character": (b'{"name":"\\ud800","size_bytes":67108864}', 422),
    "two mebibytes": (b'{"name":"' + b"a" * (2 << 20) + b'"}', 413),
    **{
        f"size {size}": (b'{"name":"x","size_bytes":%d}' % size, 422)
        for size in (0, -1, 1, 4095, 1 << 62, 1 << 63, 1 << 64, 1 << 70)
    },
    "a size that nobody has": (b'{"name":"x","size_bytes":%d}' % (1 << 50), 409),
}


@pytest.fixture
def api(rack: Rack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {rack.state.token}"}
    with httpx.Client(base_url=rack.state.api_url, headers=headers, timeout=10) as client:
        yield client
    log = rack.layout.log(rack.node("authority")).read_text(encoding="utf-8")
    assert "Traceback" not in log


def said(rack: Rack) -> list[str]:
    return rack.layout.log(rack.node("authority")).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("what", BODIES)
def test_a_body_that_makes_no_sense_is_a_problem_document(rack: Rack, api: httpx.Client, what: str) -> None:
    body, status = BODIES[what]
    answer = api.post("/v1/volumes", content=body, headers=JSON)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert api.get("/v1/volumes").json()["volumes"] == []


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic eDp5", "Bearer " + "a" * 10_000])
def test_without_the_operators_token_nothing_is_told(rack: Rack, header: str) -> None:
    answer = httpx.get(f"{rack.state.api_url}/v1/volumes", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_path_cannot_forge_a_line_of_the_log(rack: Rack, api: httpx.Client) -> None:
    assert api.get("/v1/volumes/a%0Alevel=CRITICAL%20event=forged").status_code == 404
    assert api.get("/nowhere/" + "b" * 5000).status_code == 404
    assert not any(line.startswith("level=CRITICAL") for line in said(rack))
    assert all(len(line) < 1000 for line in said(rack))
    assert "event=invalid" in said(rack)[-1]


def test_a_stolen_head_key_tells_an_operator_nothing_but_what_heads_tell(rack: Rack, api: httpx.Client) -> None:
    """It reports in the authority's words, with escape sequences, and without what its events need."""
    folder = rack.layout.state_dir(rack.node("head-1"))
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex((folder / "head.key").read_text("ascii")))
    identity = UUID(json.loads((folder / "identity.json").read_text("utf-8"))["id"])
    root = bytes.fromhex(rack.state.root_public_key)
    before = api.get("/v1/audit?limit=1000").json()["lines"]

    async def lie() -> None:
        client = AuthorityClient(
            rack.state.api_url, head_id=identity, head_key=key, env=Environment(), root_public=root
        )
        said = {"volume": str(identity), "detail": "\x1b[2J\x1b]0;owned\x07ALL IS WELL"}
        kinds = ("head-revoked", "volume-frozen", "volume-frozen\x1b[2J", "fenced-off", "stepped-down")
        await client.report({"events": [said | {"kind": kind} for kind in kinds]})
        await client.close()

    asyncio.run(asyncio.wait_for(lie(), 20))
    mine = [event for event in api.get("/v1/events").json()["events"] if event.get("volume") == str(identity)]
    assert [event["kind"] for event in mine] == ["fenced-off", "stepped-down"]
    assert all(event["detail"].isprintable() for event in mine)
    assert api.get("/v1/audit?limit=1000").json()["lines"] == before
    assert fences_seen(rack) == []


def test_what_is_no_http_is_answered_and_logged(rack: Rack, api: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", rack.node("authority").ports["api"]), timeout=5) as stranger:
        stranger.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
        assert stranger.recv(100).startswith(b"HTTP/1.1 400 ")
    assert api.get("/healthz").status_code == 200


def test_requests_that_never_end_do_not_keep_others_out(rack: Rack, api: httpx.Client) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + 200
    if hard < wanted + 200:
        pytest.skip("not enough file descriptors to flood anything")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 200), hard))
    strangers = []
    try:
        for _ in range(wanted):
            stranger = socket.create_connection(("127.0.0.1", rack.node("authority").ports["api"]), timeout=5)
            stranger.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            strangers.append(stranger)
        for _ in range(3):
            with httpx.Client(base_url=rack.state.api_url, timeout=5) as fresh:
                assert fresh.get("/healthz").json() == {"status": "ok"}
        assert api.get("/v1/nodes").status_code == 200
        assert json.dumps(strangers[0].recv(10).decode()) == '""'
    except ConnectionError:
        pass  # the oldest was reset
    finally:
        for stranger in strangers:
            stranger.close()
    # One line for a whole burst is written when the burst is over.
    eventually(lambda: any("event=connection_refused" in line for line in said(rack)), lambda: said(rack)[-5:])
    assert api.get("/readyz").status_code == 200
