"""Key sets: signed by the root, fixed in layout, unforgeable in every byte."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller import keyset
from sled_controller.errors import KeySetRefused
from sled_controller.keyset import KEYS_MAX, KEYSET_BYTES, KEYSET_LAYOUT, KeySet, version_of

ROOT_PUBLIC = host.public_key(host.ROOT)
ROOT_PRIVATE = host.private_key(host.ROOT)

key_sets = st.builds(
    KeySet,
    version=st.integers(1, 2**64 - 1),
    keys=st.dictionaries(st.integers(1, 2**32 - 1), st.binary(min_size=32, max_size=32), max_size=KEYS_MAX),
    issued_ms=st.integers(0, 2**64 - 1),
)


def resigned(body: bytes) -> bytes:
    return body + ROOT_PRIVATE.sign(keyset.SIGNING_DOMAIN + body)


def test_a_signed_key_set_is_the_golden_one() -> None:
    two = KeySet(3, {9: host.public_key(host.HEAD_KEY), 7: host.public_key(host.AUTHORITY)}, host.NOW_MS)
    assert two.sign(ROOT_PRIVATE) == host.golden("keyset")
    assert KeySet.open(host.golden("keyset"), ROOT_PUBLIC) == two


@given(key_sets)
def test_what_is_signed_is_what_is_opened(key_set: KeySet) -> None:
    data = key_set.sign(ROOT_PRIVATE)
    assert len(data) == KEYSET_BYTES == KEYSET_LAYOUT.sizeof()
    assert KeySet.open(data, ROOT_PUBLIC) == key_set
    assert version_of(data) == key_set.version


@given(key_sets)
def test_the_fast_layout_equals_the_readable_one(key_set: KeySet) -> None:
    data = key_set.sign(ROOT_PRIVATE)
    fields = KEYSET_LAYOUT.parse(data)
    assert KEYSET_LAYOUT.build(fields) == data
    assert fields.count == len(key_set.keys)
    assert {entry.key_id: entry.public for entry in fields.entries[: fields.count]} == key_set.keys


@pytest.mark.parametrize("position", range(KEYSET_BYTES))
def test_a_bit_flipped_anywhere_is_refused(position: int) -> None:
    data = bytearray(host.key_set().sign(ROOT_PRIVATE))
    data[position] ^= 0x10
    with pytest.raises(KeySetRefused):
        KeySet.open(data, ROOT_PUBLIC)


@given(st.binary(max_size=KEYSET_BYTES + 8))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(KeySetRefused):
        KeySet.open(data, ROOT_PUBLIC)


def test_a_key_set_signed_by_another_root_is_refused() -> None:
    with pytest.raises(KeySetRefused, match="root"):
        KeySet.open(host.key_set().sign(host.private_key(host.AUTHORITY)), ROOT_PUBLIC)


def test_seventeen_keys_are_too_many() -> None:
    keys = {number: bytes(32) for number in range(1, KEYS_MAX + 2)}
    with pytest.raises(KeySetRefused, match="at most 16"):
        KeySet(1, keys, 0).sign(ROOT_PRIVATE)
    body = bytearray(host.key_set().sign(ROOT_PRIVATE)[: keyset.BODY_BYTES])
    struct.pack_into("<H", body, 6, KEYS_MAX + 1)
    with pytest.raises(KeySetRefused, match="at most 16"):
        KeySet.open(resigned(bytes(body)), ROOT_PUBLIC)


def test_a_key_twice_is_refused_even_when_the_root_signed_it() -> None:
    body = bytearray(KeySet(1, {1: bytes(32), 2: bytes(32)}, 0).sign(ROOT_PRIVATE)[: keyset.BODY_BYTES])
    struct.pack_into("<I", body, keyset.HEADER_BYTES + keyset.ENTRY_BYTES, 1)
    with pytest.raises(KeySetRefused, match="ascend"):
        KeySet.open(resigned(bytes(body)), ROOT_PUBLIC)


def test_bytes_hidden_behind_the_last_key_are_refused() -> None:
    body = bytearray(host.key_set().sign(ROOT_PRIVATE)[: keyset.BODY_BYTES])
    body[-1] = 1
    with pytest.raises(KeySetRefused, match="not zero"):
        KeySet.open(resigned(bytes(body)), ROOT_PUBLIC)


@pytest.mark.parametrize(("version", "keys"), [(0, {}), (2**64, {}), (1, {0: bytes(32)}), (1, {1: bytes(31)})])
def test_what_does_not_fit_is_never_signed(version: int, keys: dict[int, bytes]) -> None:
    with pytest.raises(KeySetRefused):
        KeySet(version, keys, 0).sign(ROOT_PRIVATE)


def test_a_truncated_set_has_no_version() -> None:
    with pytest.raises(KeySetRefused, match="735 bytes"):
        version_of(bytes(735))
