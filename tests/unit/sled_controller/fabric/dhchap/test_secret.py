"""Secrets: the written form, what it may not be, what it is turned into."""

import hashlib
from base64 import b64encode
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import host

from sled_controller.errors import SecretMalformed
from sled_controller.fabric.dhchap.algorithms import HashId
from sled_controller.fabric.dhchap.secret import KEY_BYTES, Secret

# The example of NVM Express Base 2.0, 8.13.5.8.
EXAMPLE = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:"
EXAMPLE_KEY = bytes.fromhex("89aeb31a874eaf84841b46736b0dfdf2ba58d30aa2a545a3e235a3521e07594c")
TRANSFORMS = (None, *HashId)


def written(key: bytes, transform: str = "01", crc: int | None = None) -> str:
    value = crc32(key) if crc is None else crc
    return f"DHHC-1:{transform}:{b64encode(key + value.to_bytes(4, 'little')).decode()}:"


def test_the_example_of_the_specification_is_read_and_written() -> None:
    secret = Secret.parse(EXAMPLE)
    assert secret == Secret(EXAMPLE_KEY, None)
    assert secret.text() == EXAMPLE


@given(
    st.sampled_from(KEY_BYTES).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.sampled_from(TRANSFORMS),
)
def test_what_is_written_is_read_again(key: bytes, transform: HashId | None) -> None:
    secret = Secret(key, transform)
    assert Secret.parse(secret.text()) == secret
    assert secret.text() == written(key, f"{transform or 0:02}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "form"),
        ("DHHC-1:00:", "form"),
        (EXAMPLE[:-1], "form"),
        (EXAMPLE + ":", "form"),
        (EXAMPLE + " ", "form"),
        (EXAMPLE.replace("DHHC-1", "DHHC-2"), "form"),
        (EXAMPLE.lower(), "form"),
        (EXAMPLE.replace("ia6z", "ia6\u00fc"), "form"),
        (EXAMPLE.replace(":00:", ":04:"), "hash"),
        (EXAMPLE.replace(":00:", ":0:"), "hash"),
        (EXAMPLE.replace("ia6z", "ia6*"), "Base64"),
        (EXAMPLE.replace("aQ2n", "aQ0="), "32, 48 or 64"),
        (written(bytes(31)), "32, 48 or 64"),
        (written(bytes(33)), "32, 48 or 64"),
        (written(b""), "32, 48 or 64"),
        (written(bytes(68)), "form"),
        (written(bytes(47) + b"\1", crc=0).replace("A==", "B=="), "Base64"),
        (EXAMPLE.replace("ia6z", "ia6y"), "CRC-32"),
        (written(bytes(32), crc=0), "CRC-32"),
        ("DHHC-1:00:" + "A" * 1_000_000 + ":", "form"),
    ],
)
def test_anything_else_is_refused_and_not_repeated(text: str, reason: str) -> None:
    with pytest.raises(SecretMalformed, match=reason) as caught:
        Secret.parse(text)
    assert len(text) < 20 or text not in str(caught.value)


@given(st.text(max_size=120))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for candidate in (text, "DHHC-1:01:" + text):
        try:
            assert Secret.parse(candidate).text() == candidate
        except SecretMalformed:
            pass


def test_the_key_is_in_no_representation() -> None:
    secret = Secret.parse(EXAMPLE)
    for shown in (repr(secret), str(secret), f"{secret}"):
        assert "89aeb3" not in shown
        assert "\\x89" not in shown
        assert "ia6z" not in shown


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_generated_secret_is_as_long_as_its_hash(transform: HashId | None) -> None:
    entropy = host.FixedEntropy(b"generate")
    first, second = Secret.generate(entropy, transform), Secret.generate(entropy, transform)
    assert len(first.key) == (32 if transform is None else transform.digest_bytes)
    assert first.key != second.key
    assert first.transform is transform
    assert len(Secret.generate(entropy, transform, 64).key) == 64
    with pytest.raises(ValueError, match="33 bytes"):
        Secret.generate(entropy, transform, 33)


@pytest.mark.parametrize("hash_id", HashId)
def test_a_transformed_key_is_the_hmac_of_the_nqn(hash_id: HashId) -> None:
    """HMAC written out (RFC 2104), so that nothing of ours computes what is expected."""
    name, block = {HashId.SHA256: ("sha256", 64), HashId.SHA384: ("sha384", 128), HashId.SHA512: ("sha512", 128)}[
        hash_id
    ]
    padded = EXAMPLE_KEY.ljust(block, b"\0")
    inner = hashlib.new(name, bytes(byte ^ 0x36 for byte in padded) + b"nqn.hostNVMe-over-Fabrics").digest()
    expected = hashlib.new(name, bytes(byte ^ 0x5C for byte in padded) + inner).digest()
    assert Secret(EXAMPLE_KEY, hash_id).key_for("nqn.host") == expected


def test_an_untransformed_key_is_used_as_it_is() -> None:
    assert Secret(EXAMPLE_KEY, None).key_for("nqn.host") == EXAMPLE_KEY
