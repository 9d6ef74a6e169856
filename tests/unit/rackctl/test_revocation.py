"""What `rackctl node revoke` tells of a revocation."""

from rackctl.revocation import told, unfenced_rows

SLEDS = {"s0": "sled-0", "s1": "sled-1"}
VOLUMES = {"v0": "data"}


def test_each_sled_of_each_volume_is_named_and_what_is_still_tried() -> None:
    fences = {"v0": {"s1": "SledUnavailable: it is off", "s0": "fenced"}, "gone": {"s0": "fenced"}}
    lines = told({"head": {"name": "head-0"}, "orphaned": ["v0"], "fences": fences}, SLEDS, VOLUMES).splitlines()
    assert lines[:2] == ["head-0 is revoked", "no member is left of data"]
    assert [line.split(None, 2) for line in lines[3:6]] == [
        ["data", "sled-0", "fenced"],
        ["data", "sled-1", "SledUnavailable: it is off"],
        ["gone", "sled-0", "fenced"],
    ]
    assert lines[6].startswith("1 are tried until they are fenced")


def test_a_head_without_a_good_credential_needs_no_fence() -> None:
    text = told({"head": {"name": "head-0"}, "orphaned": [], "fences": {}}, SLEDS, VOLUMES)
    assert "nothing is to be fenced" in text


def test_status_names_heads_volumes_and_sleds() -> None:
    entry = {"head": "h0", "volume": "v0", "epoch": 3, "above": 0, "end_ms": 1, "sleds": ["s1", "unknown"]}
    assert unfenced_rows([entry], {**SLEDS, "h0": "head-0"}, VOLUMES) == [
        {"head": "head-0", "volume": "data", "epoch": 3, "sleds": ["sled-1", "unknown"]}
    ]
