"""`rackctl keys rotate` tells which sleds have the new key set, and which have not and why."""

from rackctl.rotation import told

KEYS = [{"key_id": 2}]


def test_a_rotation_at_once_names_the_sleds_that_are_still_to_be_reached() -> None:
    answer = {"version": 3, "keys": KEYS, "sleds": {"a": "taken", "b": "no receipt within 8 s"}}
    assert told(answer, {"a": "sled-0", "b": "sled-1"}) == [
        "key set 3: key 2",
        "1 of 2 sleds have it",
        "sled-1 has not: no receipt within 8 s; it is tried again, and refuses what the new key signs until then",
    ]


def test_an_ordinary_rotation_names_the_keys_only() -> None:
    answer = {"version": 2, "keys": [{"key_id": 1}, {"key_id": 2}], "sleds": {}}
    assert told(answer, {}) == ["key set 2: keys 1, 2"]
