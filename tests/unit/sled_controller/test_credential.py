"""Credentials: what is signed, what is refused, and that no byte can change."""

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller import credential as module
from sled_controller.credential import (
    BODY,
    BODY_BYTES,
    CREDENTIAL_BYTES,
    CREDENTIAL_LAYOUT,
    SLEDS_MAX,
    TERM_MS_MAX,
    Credential,
    Rights,
    epochs_end,
    parse_credential,
    verify,
)
from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.keyset import KeySet


@st.composite
def any_credential(draw: st.DrawFn) -> Credential:
    """Each field anywhere in its range."""
    key_id = draw(st.integers(1, 2**32 - 1))
    issued_ms = draw(st.integers(0, 2**64 - 1 - TERM_MS_MAX))
    return Credential(
        key_id=key_id,
        volume=draw(st.uuids()),
        head_key=draw(st.binary(min_size=32, max_size=32)),
        epoch=draw(st.integers(1, epochs_end(key_id) - 1)),
        rights=Rights(draw(st.integers(1, 7))),
        issued_ms=issued_ms,
        expires_ms=issued_ms + draw(st.integers(1, TERM_MS_MAX)),
        serial=draw(st.integers(0, 2**64 - 1)),
        blocks=draw(st.integers(0, 2**64 - 1)),
        namespaces=draw(st.integers(0, 2**32 - 1)),
        sleds=tuple(draw(st.lists(st.uuids(), max_size=SLEDS_MAX))),
    )


credentials = any_credential()


def test_a_signed_credential_is_the_golden_one() -> None:
    assert host.signed() == host.golden("credential")


def test_the_golden_credential_verifies_and_says_what_it_said() -> None:
    signed = parse_credential(host.golden("credential"))
    assert verify(signed, host.key_set()) == host.credential()


@given(credentials)
def test_what_is_signed_is_what_is_read(credential: Credential) -> None:
    data = credential.sign(host.private_key(host.AUTHORITY))
    assert len(data) == CREDENTIAL_BYTES
    key_set = KeySet(1, {credential.key_id: host.public_key(host.AUTHORITY)}, 0)
    assert verify(parse_credential(data), key_set) == credential


@given(credentials)
def test_the_fast_layout_equals_the_readable_one(credential: Credential) -> None:
    data = credential.sign(host.private_key(host.AUTHORITY))
    fields = CREDENTIAL_LAYOUT.parse(data)
    assert CREDENTIAL_LAYOUT.build(fields) == data
    assert BODY.size == BODY_BYTES
    assert CREDENTIAL_LAYOUT.sizeof() == CREDENTIAL_BYTES
    assert (fields.key_id, fields.epoch, fields.serial) == (credential.key_id, credential.epoch, credential.serial)
    assert (fields.volume, fields.head_key) == (credential.volume.bytes, credential.head_key)
    assert (fields.rights, fields.issued_ms, fields.expires_ms) == (
        credential.rights, credential.issued_ms, credential.expires_ms,
    )  # fmt: skip
    assert (fields.blocks, fields.namespaces) == (credential.blocks, credential.namespaces)
    assert tuple(fields.sleds[: fields.sled_count]) == tuple(sled.bytes for sled in credential.sleds)


@pytest.mark.parametrize("position", range(CREDENTIAL_BYTES))
def test_a_bit_flipped_anywhere_is_refused(position: int) -> None:
    for bit in (0, 7):
        data = bytearray(host.signed())
        data[position] ^= 1 << bit
        with pytest.raises((CredentialMalformed, CredentialRefused)):
            verify(parse_credential(data), host.key_set())


@given(st.binary(max_size=400))
def test_garbage_is_malformed_or_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises((CredentialMalformed, CredentialRefused)):
        verify(parse_credential(data), host.key_set())


@given(st.binary(min_size=CREDENTIAL_BYTES - 4, max_size=CREDENTIAL_BYTES - 4))
def test_garbage_behind_the_right_magic_too(data: bytes) -> None:
    with pytest.raises((CredentialMalformed, CredentialRefused)):
        verify(parse_credential(module.MAGIC + data), host.key_set())


@pytest.mark.parametrize("length", [0, CREDENTIAL_BYTES - 1, CREDENTIAL_BYTES + 1])
def test_a_wrong_length_is_malformed(length: int) -> None:
    with pytest.raises(CredentialMalformed, match=f"{length} bytes"):
        parse_credential(host.signed().ljust(length, b"\0")[:length])


def test_a_credential_forged_with_another_key_is_refused() -> None:
    forged = host.credential().sign(host.private_key(host.HEAD_KEY))
    with pytest.raises(CredentialRefused, match="signature"):
        verify(parse_credential(forged), host.key_set())


def test_a_key_that_left_the_key_set_counts_no_more() -> None:
    rotated = KeySet(2, {8: host.public_key(host.AUTHORITY)}, host.NOW_MS)
    with pytest.raises(CredentialRefused, match="key 7 is not in key set 2"):
        verify(parse_credential(host.signed()), rotated)


def test_a_signature_over_the_body_without_its_domain_does_not_count() -> None:
    body = host.credential().body()
    with pytest.raises(CredentialRefused):
        verify(parse_credential(body + host.private_key(host.AUTHORITY).sign(body)), host.key_set())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("epoch", 0, "epochs start at 1"),
        ("rights", 0, "rights"),
        ("rights", 8, "rights"),
        ("key_id", 0, "key id"),
        ("expires_ms", host.NOW_MS, "expires before"),
        ("expires_ms", host.NOW_MS + TERM_MS_MAX + 1, "its term is longer than"),
        ("expires_ms", 2**64 - 1, "its term is longer than"),
        ("issued_ms", 0, "its term is longer than"),
        ("epoch", epochs_end(7), "key 7 signs no epoch as high as"),
        ("epoch", 2**64 - 1, "key 7 signs no epoch as high as"),
    ],
)
def test_a_field_out_of_its_range_is_malformed_even_when_signed(field: str, value: int, words: str) -> None:
    fields = {name: getattr(host.credential(), name) for name in Credential.__slots__}
    with pytest.raises(CredentialMalformed, match=words):
        Credential(**{**fields, field: value}).sign(host.private_key(host.AUTHORITY))
    body = bytearray(host.credential().body())
    offset, layout = {
        "epoch": (64, "<Q"), "rights": (12, "<I"), "key_id": (8, "<I"), "issued_ms": (72, "<Q"),
        "expires_ms": (80, "<Q"),
    }[field]  # fmt: skip
    struct.pack_into(layout, body, offset, value)
    signature = host.private_key(host.AUTHORITY).sign(module.SIGNING_DOMAIN + bytes(body))
    with pytest.raises(CredentialMalformed, match=words):
        parse_credential(bytes(body) + signature)


def test_a_credential_of_another_version_is_malformed() -> None:
    data = bytearray(host.signed())
    struct.pack_into("<H", data, 4, 1)
    with pytest.raises(CredentialMalformed, match="version 1"):
        parse_credential(data)


def test_every_key_signs_epochs_that_none_before_it_can_have_signed() -> None:
    for key_id in (1, 7, 2**32 - 2):
        last = replace(host.credential(), key_id=key_id, epoch=epochs_end(key_id) - 1)
        last.body()
        with pytest.raises(CredentialMalformed, match="signs no epoch"):
            replace(last, epoch=last.epoch + 1).body()
        replace(last, epoch=last.epoch + 1, key_id=key_id + 1).body()
    assert epochs_end(2**32 - 1) < 2**64, "what follows the last epoch of the last key fits too"


def test_a_credential_that_does_not_say_counts_nowhere_and_takes_no_space() -> None:
    said = Credential(7, host.VOLUME, host.public_key(host.HEAD_KEY), 1, Rights.MANAGE, 0, 1, 0)
    assert (said.blocks, said.namespaces, said.sleds) == (0, 0, ())


@pytest.mark.parametrize(("offset", "value"), [(108, 25), (108, 2**32 - 1), (111, 1), (128, 1), (495, 1)])
def test_a_list_of_sleds_is_no_longer_than_its_places_and_zero_behind_its_end(offset: int, value: int) -> None:
    body = bytearray(host.credential().body())
    body[offset : offset + (value.bit_length() + 7) // 8] = value.to_bytes((value.bit_length() + 7) // 8, "little")
    signature = host.private_key(host.AUTHORITY).sign(module.SIGNING_DOMAIN + bytes(body))
    with pytest.raises(CredentialMalformed, match="sleds, at most 24"):
        parse_credential(bytes(body) + signature)


def test_more_sleds_than_there_are_places_are_never_signed() -> None:
    with pytest.raises(CredentialMalformed, match="25 sleds"):
        host.credential(sleds=(host.SLED,) * 25).body()


def test_a_head_key_of_another_length_is_never_signed() -> None:
    with pytest.raises(CredentialMalformed, match="head key of 31"):
        Credential(7, host.VOLUME, bytes(31), 1, Rights.READ, 0, 1, 0).sign(host.private_key(host.AUTHORITY))


def test_the_holder_is_the_hash_of_the_head_key() -> None:
    assert host.credential().holder == hashlib.sha256(host.public_key(host.HEAD_KEY)).digest()
