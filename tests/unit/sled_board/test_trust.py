"""Trust: m of n keys of the newest set that the root signed, the right board, no older generation, no developers."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import firmware, host
from kit.firmware import DEVELOPER, FIRST, HARDWARE, ROOT, SECOND, THIRD, FixedKey, key_set, recipe, signed, trust
from sled_board.errors import (
    DevelopmentKey,
    ImageFieldRefused,
    RolledBack,
    SigningFailed,
    WrongHardware,
    WrongSignature,
)
from sled_board.image import FirmwareKey, KeySet, Trust, build_image, read_image, sign_image, sign_key_set
from sled_board.image.key_set import verifies
from sled_board.image.layout import KEY_SET_BYTES, KEY_SET_DOMAIN, SIGNATURE_BYTES

WITH_DEVELOPER = key_set(2, 1, (FIRST, DEVELOPER))


def check(data: bytes, believed: Trust | None = None, *, hardware: str = HARDWARE, counter_min: int = 0) -> None:
    (believed or trust()).check(read_image(data), hardware=hardware, counter_min=counter_min)


def test_an_image_signed_by_enough_keys_is_trusted() -> None:
    check(signed())
    check(signed(keys=(FIRST, SECOND, THIRD)))
    check(signed(keys=(THIRD, FIRST)), trust(key_set()))


@pytest.mark.parametrize("keys", [(), (FIRST,)])
def test_too_few_signatures_are_refused(keys: tuple[FixedKey, ...]) -> None:
    with pytest.raises(WrongSignature, match=rf"signed by {len(keys)} of the 3 keys of key set 1, 2 must sign"):
        check(signed(keys=keys))


def test_an_image_never_signed_is_refused_for_want_of_a_key_set() -> None:
    with pytest.raises(WrongSignature, match=r"carries no key set"):
        check(build_image(recipe()))
    with pytest.raises(WrongSignature, match=r"signed by 0"):
        check(build_image(recipe()), trust(key_set()))


def test_a_key_set_of_another_root_is_refused() -> None:
    with pytest.raises(WrongSignature, match=r"key set 1 is not signed by root key"):
        check(signed(), Trust(FIRST.public))


def test_keys_of_a_stranger_under_his_own_key_set_are_refused() -> None:
    stranger = firmware.signer(66)
    own = sign_key_set(KeySet(9, 1, (FirmwareKey(stranger.public),)), stranger)
    data = signed(keys=(stranger,), under=own)
    for kept in (None, key_set()):
        with pytest.raises(WrongSignature, match=r"not signed by root key"):
            check(data, trust(kept))


def test_signatures_of_another_image_are_refused() -> None:
    theirs = read_image(signed(recipe(version="1.4.1")))
    taken = dataclasses.replace(read_image(signed()), signatures=theirs.signatures)
    with pytest.raises(WrongSignature, match=r"is not one of this image"):
        trust().check(taken, hardware=HARDWARE)


def test_one_key_does_not_sign_twice() -> None:
    image = read_image(signed(keys=(FIRST, FIRST)))
    with pytest.raises(WrongSignature, match=r"signed by 1 of the 3"):
        trust().check(image, hardware=HARDWARE)


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_a_newer_set_of_the_board_takes_a_key_out() -> None:
    with pytest.raises(WrongSignature, match=r"signed by 1 of the 2 keys of key set 2"):
        check(signed(keys=(FIRST, SECOND)), trust(key_set(2, 2, (SECOND, THIRD))))


def test_a_newer_set_of_the_image_brings_a_key_in() -> None:
    newcomer = firmware.signer(77)
    newer = key_set(2, 2, (newcomer, THIRD))
    data = signed(keys=(newcomer, THIRD), under=newer)
    check(data, trust(key_set()))
    assert trust(key_set()).newest_key_set(read_image(data)) == newer


def test_an_older_set_of_the_image_counts_for_nothing() -> None:
    older, newer = key_set(1, 1, (FIRST,)), key_set(2, 1, (SECOND,))
    with pytest.raises(WrongSignature, match=r"signed by 0 of the 1 keys of key set 2"):
        check(signed(keys=(FIRST,), under=older), trust(newer))
    assert trust(newer).newest_key_set(read_image(signed(keys=(FIRST,), under=older))) == newer


def test_signatures_stay_when_the_key_set_is_replaced_but_those_of_keys_gone() -> None:
    data = sign_image(read_image(signed(keys=(FIRST, SECOND))), None, key_set(2, 1, (SECOND, THIRD)))
    assert [name for name, _ in read_image(data).signatures] == [FirmwareKey(SECOND.public).id]
    check(data)


# --- development keys -------------------------------------------------------------------------------------------------


def test_a_development_key_counts_on_an_open_board_only() -> None:
    data = signed(keys=(DEVELOPER,), under=WITH_DEVELOPER)
    check(data, trust(locked=False))
    with pytest.raises(DevelopmentKey, match=r"signed by 0 of the 2 keys .* besides development keys"):
        check(data)


def test_a_development_key_beside_enough_others_does_no_harm() -> None:
    check(signed(keys=(DEVELOPER, FIRST), under=WITH_DEVELOPER))


# --- board and generation ---------------------------------------------------------------------------------------------


def test_an_image_for_another_board_is_refused() -> None:
    with pytest.raises(WrongHardware, match=r"it is for qemu-virt-arm64; this board is other"):
        check(signed(), hardware="other")


def test_an_image_may_be_for_several_boards() -> None:
    data = signed(recipe(hardware=("one", "two")))
    check(data, hardware="one")
    check(data, hardware="two")


@pytest.mark.parametrize("counter_min", [0, firmware.COUNTER - 1, firmware.COUNTER])
def test_a_counter_as_high_as_the_board_has_seen_is_accepted(counter_min: int) -> None:
    check(signed(), counter_min=counter_min)


def test_a_lower_counter_is_refused() -> None:
    with pytest.raises(RolledBack, match=r"rollback counter is 3, this board accepts 4 and above"):
        check(signed(), counter_min=firmware.COUNTER + 1)


def test_the_signature_is_looked_at_before_anything_that_it_vouches_for() -> None:
    with pytest.raises(WrongSignature):
        check(signed(keys=()), hardware="other", counter_min=99)


# --- key sets ---------------------------------------------------------------------------------------------------------


def test_a_signed_key_set_is_the_golden_one() -> None:
    assert key_set(2, 1, (FIRST, DEVELOPER)) == host.golden("firmware_key_set")


@given(
    st.integers(1, 2**64 - 1),
    st.dictionaries(st.binary(min_size=32, max_size=32), st.booleans(), min_size=1, max_size=16),
    st.data(),
)
def test_a_key_set_signed_is_the_one_opened(version: int, keys: dict[bytes, bool], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, len(keys)))
    made = KeySet(version, threshold, tuple(FirmwareKey(*key) for key in keys.items()))
    opened = KeySet.open(sign_key_set(made, ROOT), ROOT.public)
    assert (opened.version, opened.threshold, set(opened.keys)) == (version, threshold, set(made.keys))


def test_a_byte_of_a_key_set_changed_anywhere_is_refused() -> None:
    for position in range(KEY_SET_BYTES):
        changed = bytearray(key_set())
        changed[position] ^= 0x10
        with pytest.raises(WrongSignature):
            KeySet.open(bytes(changed), ROOT.public)


@given(st.binary(max_size=KEY_SET_BYTES + 8))
def test_garbage_is_no_key_set(data: bytes) -> None:
    with pytest.raises(WrongSignature):
        KeySet.open(data, ROOT.public)


def resigned(body: bytes) -> bytes:
    return body + ROOT.sign(KEY_SET_DOMAIN + body)


@pytest.mark.parametrize(
    ("position", "value", "why"),
    [
        (6, 0, "0 keys"), (6, 17, "17 keys"), (7, 0, "0 of 3"), (7, 4, "4 of 3"), (8, 0, "version 0"),
        (6, 2, "a place without a key"), (48, 2, "unknown flag"), (52, 1, "damaged"), (4, 2, "damaged"),
    ],
)  # fmt: skip
def test_a_set_that_the_root_signed_is_still_held_to_its_form(position: int, value: int, why: str) -> None:
    body = bytearray(key_set()[:-SIGNATURE_BYTES])
    body[position] = value
    with pytest.raises(WrongSignature, match=why):
        KeySet.open(resigned(bytes(body)), ROOT.public)


def test_keys_in_another_order_or_twice_are_refused() -> None:
    body = key_set()[:-SIGNATURE_BYTES]
    for places in (body[56:96] + body[16:56], body[16:56] * 2):
        with pytest.raises(WrongSignature, match=r"ascend|twice"):
            KeySet.open(resigned(body[:16] + places + body[96:]), ROOT.public)


@pytest.mark.parametrize("made", [
    KeySet(0, 1, (FirmwareKey(FIRST.public),)),
    KeySet(1, 2, (FirmwareKey(FIRST.public),)),
    KeySet(1, 1, ()),
    KeySet(1, 1, (FirmwareKey(FIRST.public), FirmwareKey(FIRST.public, True))),
    KeySet(1, 1, (FirmwareKey(b"short"),)),
])  # fmt: skip
def test_a_set_that_makes_no_sense_is_not_signed(made: KeySet) -> None:
    with pytest.raises(ImageFieldRefused, match=r"key set: "):
        sign_key_set(made, ROOT)


# --- signing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Liar:
    """A signer that returns whatever it likes."""

    public: bytes
    returned: bytes

    def sign(self, message: bytes) -> bytes:
        return self.returned


@pytest.mark.parametrize("returned", [b"", bytes(64), bytes(65)])
def test_a_signature_that_does_not_verify_is_not_put_in(returned: bytes) -> None:
    with pytest.raises(SigningFailed, match=r"does not verify"):
        sign_image(read_image(signed(keys=())), Liar(FIRST.public, returned))


def test_a_key_that_is_not_in_the_set_does_not_sign() -> None:
    with pytest.raises(ImageFieldRefused, match=r"is not in key set 1"):
        sign_image(read_image(signed(keys=())), DEVELOPER)


def test_the_first_signature_needs_a_key_set() -> None:
    with pytest.raises(ImageFieldRefused, match=r"one must be given"):
        sign_image(read_image(build_image(recipe())), FIRST)


def test_something_that_is_no_key_verifies_nothing() -> None:
    assert not verifies(b"short", bytes(64), b"")
