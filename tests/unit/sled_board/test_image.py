"""Images: golden in every byte, read back as built, and refused whatever byte of them is not as it was signed."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import firmware, host
from sled_board.errors import BoardError, DamagedImage, ImageError, ImageFieldRefused, WrongSignature
from sled_board.image import (
    IMAGE_BYTES_MAX,
    Tag,
    build_image,
    fit,
    image_bytes,
    read_image,
)
from sled_board.image.layout import (
    CRITICAL,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    SIGNATURE_AREA_BYTES,
    SIGNING_DOMAIN,
    TLV_AREA,
)

DATA = firmware.signed()
INNER = bytes(fit.unwrap(DATA))
SIGNED_BYTES = len(read_image(DATA).signed)
PAYLOAD_AT = SIGNED_BYTES + SIGNATURE_AREA_BYTES


def test_a_signed_image_is_the_golden_one() -> None:
    assert host.golden("firmware_image") == DATA


def test_what_is_built_is_what_is_read() -> None:
    image = read_image(DATA)
    assert (image.version, image.counter, image.hardware) == ("1.4.0", 3, ("qemu-virt-arm64",))
    assert (image.architecture, image.built_s) == ("arm64", firmware.BUILT_S)
    assert image.build_id == "0123456789abcdef0123456789abcdef01234567"
    assert (image.bootloader_min, image.python) == ("2023.01", "cp311")
    assert image.sbom_sha256 == hashlib.sha256(b"{}").digest()
    assert image.payload("application") == firmware.APPLICATION
    assert image.key_set == firmware.key_set()
    assert image.message == SIGNING_DOMAIN + INNER[:SIGNED_BYTES]
    assert [name for name, _ in image.signatures] == sorted(
        hashlib.sha256(key.public).digest()[:8] for key in (firmware.FIRST, firmware.SECOND)
    )


def test_the_id_is_that_of_the_signed_part_and_stays_when_the_image_is_signed_again() -> None:
    assert read_image(DATA).id == hashlib.sha256(INNER[:SIGNED_BYTES]).hexdigest()
    assert read_image(firmware.signed(keys=(firmware.THIRD,))).id == read_image(DATA).id


def test_payloads_are_views_into_what_was_read() -> None:
    held = bytearray(DATA)
    payload = read_image(held).payload("application")
    held[held.index(b"the sled controller")] = ord("T")
    assert payload[:3] == b"The"


def test_a_payload_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DamagedImage, match=r"no payload kernel, only application"):
        read_image(DATA).payload("kernel")


def test_an_image_tells_its_length_in_its_first_bytes() -> None:
    assert image_bytes(DATA[:8]) == len(DATA)


@pytest.mark.parametrize("start", [b"", b"\xd0\x0d\xfe", b"\0" * 8, b"\xff" * 8, b"PLFW\1\0\1\1"])
def test_what_begins_otherwise_is_no_image(start: bytes) -> None:
    with pytest.raises(DamagedImage, match=r"it begins with"):
        image_bytes(start)


def test_an_image_that_no_slot_can_hold_is_not_read() -> None:
    with pytest.raises(DamagedImage, match=r"at most"):
        image_bytes(DATA[:4] + (IMAGE_BYTES_MAX + 1).to_bytes(4, "big"))


# --- changed bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_byte_changed_anywhere_is_seen(flip: int) -> None:
    for position in range(len(DATA)):
        changed = bytearray(DATA)
        changed[position] ^= flip
        with pytest.raises(DamagedImage):
            read_image(changed)


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_a_byte_of_header_or_tlv_area_changed_behind_a_right_wrapping_is_refused(flip: int) -> None:
    for position in range(SIGNED_BYTES):
        with pytest.raises((DamagedImage, WrongSignature)):
            firmware.trust().check(read_image(firmware.rewrapped(DATA, position, flip)), hardware=firmware.HARDWARE)


def test_a_byte_of_the_signature_area_changed_behind_a_right_wrapping_is_refused() -> None:
    for position in range(SIGNED_BYTES, PAYLOAD_AT):
        with pytest.raises((DamagedImage, WrongSignature)):
            firmware.trust().check(read_image(firmware.rewrapped(DATA, position)), hardware=firmware.HARDWARE)


@given(st.integers(PAYLOAD_AT, len(INNER) - 1), st.integers(1, 255))
def test_a_byte_of_a_payload_changed_behind_a_right_wrapping_is_seen(position: int, flip: int) -> None:
    with pytest.raises(DamagedImage, match=r"SHA-256 of payload application"):
        read_image(firmware.rewrapped(DATA, position, flip))


def test_a_truncated_image_is_seen_at_every_length() -> None:
    for size in range(len(DATA)):
        with pytest.raises(DamagedImage):
            read_image(DATA[:size])


def test_bytes_behind_an_image_are_seen() -> None:
    with pytest.raises(DamagedImage, match=r"of the \d+ that its first bytes announce"):
        read_image(DATA + b"\0")


def test_the_inside_truncated_behind_a_right_wrapping_is_seen_at_every_length() -> None:
    for size in range(len(INNER)):
        with pytest.raises(DamagedImage):
            read_image(b"".join(fit.wrap(INNER[:size], "arm64", firmware.BUILT_S)))


@given(st.binary(max_size=5000))
def test_garbage_is_damaged_and_nothing_else(data: bytes) -> None:
    for inner in (data, INNER[:HEADER_BYTES] + data, INNER[:SIGNED_BYTES] + data):
        with pytest.raises(DamagedImage):
            read_image(b"".join(fit.wrap(inner, "arm64", firmware.BUILT_S)))


def test_a_tree_of_another_architecture_or_date_than_the_header_is_seen() -> None:
    for architecture, built_s in (("riscv", firmware.BUILT_S), ("arm64", 0)):
        with pytest.raises(DamagedImage, match=r"device tree"):
            read_image(b"".join(fit.wrap(INNER, architecture, built_s)))


def test_every_error_of_an_image_is_one_of_the_package() -> None:
    assert issubclass(DamagedImage, ImageError)
    assert issubclass(ImageError, BoardError)


# --- building ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,31}", fullmatch=True), min_size=1, max_size=4),
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,15}", fullmatch=True), st.binary(max_size=99), min_size=1, max_size=4
    ),
    st.dictionaries(st.integers(100, CRITICAL - 1), st.binary(max_size=99), max_size=5),
)
def test_whatever_fits_is_read_back(
    counter: int, hardware: list[str], payloads: dict[str, bytes], tlvs: dict[int, bytes]
) -> None:
    made = firmware.recipe(counter=counter, hardware=tuple(hardware), payloads=dict(payloads), tlvs=tlvs)
    image = read_image(build_image(made))
    assert (image.counter, image.hardware) == (counter, tuple(hardware))
    assert {name: bytes(content) for name, content in image.contents.items()} == payloads
    assert image.tlvs == made.tlvs


def test_the_same_recipe_gives_the_same_bytes() -> None:
    assert build_image(firmware.recipe()) == build_image(firmware.recipe())


@pytest.mark.parametrize("version", ["1.0.0", "0.0.0-0", "10.20.30-rc.1+exp.sha-5114f85", "1.0.0+0"])
def test_a_semantic_version_is_taken(version: str) -> None:
    assert read_image(build_image(firmware.recipe(version=version))).version == version


@pytest.mark.parametrize("version", ["", "1", "1.0", "01.0.0", "1.0.0-01", "v1.0.0", "1.0.0 ", "1.0.0-", "1.0.0\n"])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(ImageFieldRefused, match=r"semantic version"):
        build_image(firmware.recipe(version=version))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": "1.0.0-" + "x" * 59}, "more than 64 characters"),
        ({"counter": 1 << 32}, "counter"),
        ({"counter": -1}, "counter"),
        ({"hardware": ()}, "0 boards"),
        ({"hardware": ("a", "b", "c", "d", "e")}, "5 boards"),
        ({"hardware": ("Board",)}, "is no name"),
        ({"hardware": ("b" * 33,)}, "more than 32 characters"),
        ({"payloads": {str(number): b"" for number in range(5)}}, "5 payloads"),
        ({"payloads": {"p" * 17: b""}}, "more than 16 characters"),
        ({"payloads": {"application": memoryview(bytes(1)).cast("B", (1,))[:0], "Other": b""}}, "is no name"),
        ({"tlvs": {0: b""}}, "TLV type 0"),
        ({"tlvs": {99: bytes(1 << 16)}}, "65536 bytes"),
        ({"tlvs": {99: bytes(4096)}}, "at most 4096"),
        ({"tlvs": {Tag.SBOM_SHA256: b"short"}}, "digest of 5 bytes"),
        ({"tlvs": {Tag.BUILD_ID: b"two\nlines"}}, "build_id is not text"),
        ({"tlvs": {Tag.BOOTLOADER_MIN: b"2023.1"}}, "no release of U-Boot"),
        ({"tlvs": {Tag.PYTHON: b""}}, "python is not text"),
    ],
)
def test_a_field_that_does_not_fit_is_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(ImageFieldRefused, match=why):
        build_image(firmware.recipe(**changed))  # type: ignore[arg-type]


def test_more_payload_than_any_slot_holds_is_refused() -> None:
    half = memoryview(bytes(PAYLOAD_BYTES_MAX // 2 + 1))
    with pytest.raises(ImageFieldRefused, match=r"bytes of payloads, at most"):
        build_image(firmware.recipe(payloads={"a": half, "b": half}))


# --- the TLV area -----------------------------------------------------------------------------------------------------


def with_area(area: bytes) -> bytes:
    """The image, unsigned, with another TLV area."""
    inner = bytearray(INNER[:HEADER_BYTES] + area + INNER[SIGNED_BYTES:])
    inner[16:20] = len(area).to_bytes(4, "little")
    return b"".join(fit.wrap(bytes(inner), "arm64", firmware.BUILT_S))


def test_a_type_that_is_not_known_is_passed_over() -> None:
    assert read_image(with_area(TLV_AREA.build([{"type": 0x7FFF, "value": b"new"}]))).tlvs == {0x7FFF: b"new"}


def test_a_critical_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(DamagedImage, match=r"TLV type 0x8001 is critical"):
        read_image(with_area(TLV_AREA.build([{"type": CRITICAL | 1, "value": b""}])))


@pytest.mark.parametrize(
    ("area", "why"),
    [
        (TLV_AREA.build([{"type": 7, "value": b""}, {"type": 7, "value": b""}]), "must ascend"),
        (TLV_AREA.build([{"type": 8, "value": b""}, {"type": 7, "value": b""}]), "must ascend"),
        (TLV_AREA.build([{"type": 0, "value": b""}]), "must ascend"),
        (b"\7\0\5\0abcd", "does not end where"),
        (b"\7\0\5", "does not end where"),
    ],
)
def test_a_malformed_area_is_refused(area: bytes, why: str) -> None:
    with pytest.raises(DamagedImage, match=why):
        read_image(with_area(area))


def test_an_image_without_tlvs_is_one() -> None:
    image = read_image(with_area(b""))
    assert (dict(image.tlvs), image.build_id, image.sbom_sha256) == ({}, None, None)
