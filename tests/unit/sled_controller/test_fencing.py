"""The fence decision: who may, who may not, and what either is told."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sled_controller.fencing import (
    RIGHT_MANAGE,
    RIGHT_READ,
    RIGHT_WRITE,
    AttachVerdict,
    Claim,
    Fence,
    Verdict,
    decide,
    decide_attach,
)

VOLUME, OTHER = UUID(int=1), UUID(int=2)
NOW, EXPIRY = 1000, 2000


def claim(fence: Fence, epoch: int = 5, number: int = 1, rights: int = 7, attached: bool = True) -> Claim:
    made = Claim(fence, epoch, number, rights, EXPIRY)
    made.attached = attached
    return made


def standing() -> Fence:
    return Fence(VOLUME, 5, 1, b"holder")


def test_the_standing_pair_is_admitted() -> None:
    fence = standing()
    assert decide(claim(fence), fence, VOLUME, RIGHT_WRITE, NOW) is Verdict.ADMIT
    assert not decide(claim(fence), fence, UUID(int=1), RIGHT_READ, EXPIRY)


@pytest.mark.parametrize(
    ("epoch", "number", "verdict"),
    [
        (4, 9, Verdict.FENCED_OFF),
        (5, 0, Verdict.SUPERSEDED),
        (5, 2, Verdict.SUPERSEDED),  # not the pair that stands, whatever it claims to be
        (6, 1, Verdict.SUPERSEDED),
    ],
)
def test_a_pair_that_does_not_equal_the_fence_is_refused(epoch: int, number: int, verdict: Verdict) -> None:
    fence = standing()
    assert decide(claim(fence, epoch, number), fence, VOLUME, RIGHT_WRITE, NOW) is verdict


def test_a_slot_without_receipt_is_not_attached() -> None:
    fence = standing()
    assert decide(claim(fence, attached=False), fence, VOLUME, RIGHT_WRITE, NOW) is Verdict.NOT_ATTACHED


@pytest.mark.parametrize("right", [RIGHT_READ, RIGHT_WRITE, RIGHT_MANAGE])
def test_a_right_that_the_credential_lacks_is_refused(right: int) -> None:
    fence = standing()
    assert decide(claim(fence, rights=7 & ~right), fence, VOLUME, right, NOW) is Verdict.NO_RIGHT


def test_another_volumes_namespace_is_refused_even_where_the_pairs_agree() -> None:
    fence = standing()
    assert decide(claim(fence), fence, OTHER, RIGHT_WRITE, NOW) is Verdict.OTHER_VOLUME
    other = Fence(OTHER, 5, 1, b"holder")
    assert decide(claim(fence), other, OTHER, RIGHT_WRITE, NOW) is Verdict.OTHER_VOLUME
    assert decide(claim(fence), other, VOLUME, RIGHT_WRITE, NOW) is Verdict.OTHER_VOLUME


def test_an_expired_credential_and_a_retired_key_are_refused() -> None:
    fence = standing()
    assert decide(claim(fence), fence, VOLUME, RIGHT_WRITE, EXPIRY + 1) is Verdict.EXPIRED
    retired = claim(fence)
    retired.key_current = False
    assert decide(retired, fence, VOLUME, RIGHT_WRITE, NOW) is Verdict.KEY_RETIRED


def test_a_fence_is_never_lowered() -> None:
    fence = standing()
    for epoch, number in ((5, 1), (5, 0), (4, 9)):
        with pytest.raises(AssertionError):
            fence.raise_to(epoch, number, b"holder", b"")


small = st.integers(0, 3)


@given(small, small, small, small, small, st.booleans(), st.booleans(), st.integers(0, 3000))
def test_nothing_is_admitted_unless_every_condition_holds(
    epoch: int, number: int, fence_epoch: int, fence_number: int, rights: int, attached: bool, current: bool, now: int
) -> None:
    fence = Fence(VOLUME, fence_epoch, fence_number, b"holder")
    made = claim(fence, epoch, number, rights, attached)
    made.key_current = current
    holds = (
        (epoch, number) == (fence_epoch, fence_number) and attached and current
        and bool(rights & RIGHT_WRITE) and now <= EXPIRY
    )  # fmt: skip
    assert (decide(made, fence, VOLUME, RIGHT_WRITE, now) is Verdict.ADMIT) == holds


@pytest.mark.parametrize(
    ("epoch", "number", "holder", "holds_pair", "verdict"),
    [
        (6, 1, b"other", False, AttachVerdict.RAISE),
        (5, 4, b"holder", False, AttachVerdict.RAISE),
        (5, 3, b"holder", True, AttachVerdict.RENEW),
        (5, 3, b"holder", False, AttachVerdict.SUPERSEDED),
        (5, 2, b"holder", True, AttachVerdict.SUPERSEDED),
        (5, 4, b"other", False, AttachVerdict.OTHER_HOLDER),
        (4, 9, b"holder", True, AttachVerdict.FENCED_OFF),
    ],
)
def test_an_attach_is_compared_with_the_fence(
    epoch: int, number: int, holder: bytes, holds_pair: bool, verdict: AttachVerdict
) -> None:
    assert decide_attach(Fence(VOLUME, 5, 3, b"holder"), epoch, number, holder, holds_pair) is verdict
