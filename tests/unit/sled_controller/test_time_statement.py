"""The statement of time: fixed in layout, signed by the root key, for one sled and start of it where it says so."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller import credential, keyset, retirement, time_statement
from sled_controller.environment import TIME_MS_MAX
from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.sled_time import RELEASED_MS
from sled_controller.time_statement import SERIAL_MAX, TIME_STATEMENT_BYTES, TIME_STATEMENT_LAYOUT, TimeStatement

ROOT, PUBLIC = host.private_key(host.ROOT), host.public_key(host.ROOT)
STATEMENT = TimeStatement(4, host.NOW_MS, host.SLED, 17)


def test_a_time_statement_is_the_golden_one() -> None:
    assert STATEMENT.sign(ROOT) == host.golden("time_statement")
    assert TimeStatement.open(host.golden("time_statement"), PUBLIC) == STATEMENT


@given(st.integers(1, SERIAL_MAX), st.integers(RELEASED_MS, TIME_MS_MAX), st.uuids(), st.integers(0, 2**64 - 1))
def test_the_layout_is_the_one_described(serial: int, time_ms: int, sled: UUID, boot_counter: int) -> None:
    statement = TimeStatement(serial, time_ms, sled, boot_counter)
    data = statement.sign(ROOT)
    fields = TIME_STATEMENT_LAYOUT.parse(data)
    assert TIME_STATEMENT_LAYOUT.build(fields) == data
    assert len(data) == TIME_STATEMENT_BYTES == TIME_STATEMENT_LAYOUT.sizeof()
    assert TimeStatement.open(data, PUBLIC) == statement


@pytest.mark.parametrize("position", range(TIME_STATEMENT_BYTES))
def test_a_time_statement_changed_anywhere_is_refused(position: int) -> None:
    data = bytearray(host.golden("time_statement"))
    data[position] ^= 4
    with pytest.raises((CredentialMalformed, CredentialRefused)):
        TimeStatement.open(bytes(data), PUBLIC)


@pytest.mark.parametrize(
    "statement",
    [
        TimeStatement(0, host.NOW_MS),
        TimeStatement(SERIAL_MAX + 1, host.NOW_MS),
        TimeStatement(1, 0),
        TimeStatement(1, TIME_MS_MAX + 1),
        TimeStatement(1, (1 << 64) - 1),
        TimeStatement(1, host.NOW_MS, host.SLED, 1 << 64),
    ],
)
def test_a_number_that_would_end_a_sled_is_neither_signed_nor_taken(statement: TimeStatement) -> None:
    with pytest.raises(CredentialMalformed):
        statement.sign(ROOT)
    if statement.serial < 1 << 64 and statement.boot_counter < 1 << 64:
        body = time_statement.BODY.pack(
            time_statement.MAGIC, time_statement.VERSION, TIME_STATEMENT_BYTES, statement.serial, statement.sled.bytes,
            statement.boot_counter, statement.time_ms,
        )  # fmt: skip
        with pytest.raises(CredentialMalformed):
            TimeStatement.open(body + ROOT.sign(time_statement.SIGNING_DOMAIN + body), PUBLIC)


def test_only_the_root_key_states_time_and_its_signature_can_stand_for_no_other_structure() -> None:
    with pytest.raises(CredentialRefused, match="not the root key's"):
        TimeStatement.open(STATEMENT.sign(host.private_key(host.AUTHORITY)), PUBLIC)
    domains = {each.SIGNING_DOMAIN for each in (credential, keyset, retirement, time_statement)}
    assert len(domains) == 4
    assert time_statement.SIGNING_DOMAIN.endswith(b"\0")


def test_it_is_for_the_sled_and_the_start_that_it_names() -> None:
    assert STATEMENT.is_for(host.SLED, 17)
    assert not STATEMENT.is_for(host.SLED, 18)
    assert not STATEMENT.is_for(host.VOLUME, 17)
    assert TimeStatement(1, host.NOW_MS).is_for(host.SLED, 18)


@given(st.binary(max_size=TIME_STATEMENT_BYTES + 4))
def test_garbage_is_no_time_statement(data: bytes) -> None:
    with pytest.raises((CredentialMalformed, CredentialRefused)):
        TimeStatement.open(data, PUBLIC)
