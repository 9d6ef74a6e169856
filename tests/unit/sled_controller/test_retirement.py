"""The statement that a volume is deleted: fixed in layout, signed by a key of the key set, good for nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller import credential, retirement
from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.keyset import KeySet
from sled_controller.retirement import RETIREMENT_BYTES, RETIREMENT_LAYOUT, Retirement

KEY = host.private_key(7)
KEY_SET = KeySet(3, {5: host.public_key(7)}, 1)
STATEMENT = Retirement(5, host.VOLUME, 9, 1_700_000_600_000)


def test_a_retirement_is_the_golden_one() -> None:
    assert STATEMENT.sign(KEY) == host.golden("retirement")
    assert Retirement.open(host.golden("retirement"), KEY_SET) == STATEMENT


@given(st.uuids(), st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_the_layout_is_the_one_described(volume: object, key_id: int, epoch: int, over_ms: int) -> None:
    statement = Retirement(key_id, volume, epoch, over_ms)  # type: ignore[arg-type]
    data = statement.sign(KEY)
    fields = RETIREMENT_LAYOUT.parse(data)
    assert RETIREMENT_LAYOUT.build(fields) == data
    assert len(data) == RETIREMENT_BYTES == RETIREMENT_LAYOUT.sizeof()
    assert Retirement.open(data, KeySet(1, {key_id: host.public_key(7)}, 1)) == statement


@pytest.mark.parametrize("position", range(RETIREMENT_BYTES))
def test_a_retirement_changed_anywhere_is_refused(position: int) -> None:
    data = bytearray(host.golden("retirement"))
    data[position] ^= 4
    with pytest.raises((CredentialMalformed, CredentialRefused)):
        Retirement.open(bytes(data), KEY_SET)


def test_a_key_that_has_left_the_set_retires_nothing() -> None:
    with pytest.raises(CredentialRefused, match="not in key set 4"):
        Retirement.open(host.golden("retirement"), KeySet(4, {6: host.public_key(7)}, 1))
    with pytest.raises(CredentialRefused, match="not one of key 5"):
        Retirement.open(host.golden("retirement"), KeySet(4, {5: host.public_key(8)}, 1))


def test_its_signature_can_stand_for_no_other_structure() -> None:
    assert retirement.SIGNING_DOMAIN != credential.SIGNING_DOMAIN
    assert retirement.SIGNING_DOMAIN.endswith(b"\0")


@given(st.binary(max_size=RETIREMENT_BYTES + 4))
def test_garbage_is_no_retirement(data: bytes) -> None:
    with pytest.raises((CredentialMalformed, CredentialRefused)):
        Retirement.open(data, KEY_SET)
