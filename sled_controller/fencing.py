"""The fence decision (F1): may this command, in this slot, take effect on this volume now?

One pure function, called for every credentialed command by the sled, the simulator and the property tests. It knows
nothing of transports, devices or MACs: whoever calls it has verified the MAC over the whole command before.
"""

from enum import IntEnum
from typing import Final
from uuid import UUID

RIGHT_READ: Final = 1
RIGHT_WRITE: Final = 2
RIGHT_MANAGE: Final = 4


class Verdict(IntEnum):
    """What becomes of a command; everything but ADMIT (0, so falsy) refuses it and says why."""

    ADMIT = 0
    NOT_ATTACHED = 1  # no such slot, or its receipt is not given yet
    FENCED_OFF = 2  # a newer epoch exists
    SUPERSEDED = 3  # a newer attach of the same epoch exists
    OTHER_VOLUME = 4  # the credential does not cover the namespace's volume
    NO_RIGHT = 5  # the credential does not cover the operation
    KEY_RETIRED = 6  # its key has left the key set
    EXPIRED = 7  # in sled time


class Fence:
    """A volume's fence as the sled holds it in memory: the pair that a command's slot must equal, and who raised it.

    Only ever raised, and raised here before anything else is done about it (F3).
    """

    __slots__ = ("attach_number", "credential", "epoch", "holder", "volume")

    def __init__(
        self, volume: UUID, epoch: int = 0, attach_number: int = 0, holder: bytes = b"", credential: bytes = b""
    ) -> None:
        self.volume = volume
        self.epoch = epoch
        self.attach_number = attach_number
        self.holder = holder
        self.credential = credential

    def raise_to(self, epoch: int, attach_number: int, holder: bytes, credential: bytes) -> None:
        """Raise the fence to a higher pair; the caller has checked the credential."""
        assert (epoch, attach_number) > (self.epoch, self.attach_number), "a fence is never lowered"
        self.epoch = epoch
        self.attach_number = attach_number
        self.holder = holder
        self.credential = credential


class Claim:
    """What a slot holds: the pair it was attached with and what its credential grants. The base of a slot."""

    __slots__ = ("attach_number", "attached", "epoch", "expires_ms", "fence", "key_current", "rights", "volume")

    def __init__(self, fence: Fence, epoch: int, attach_number: int, rights: int, expires_ms: int) -> None:
        self.fence = fence
        self.volume = fence.volume
        self.epoch = epoch
        self.attach_number = attach_number
        self.rights = rights
        self.expires_ms = expires_ms
        self.attached = False  # true from the receipt to the detach
        self.key_current = True


_ADMIT: Final = Verdict.ADMIT


def decide(claim: Claim, fence: Fence, volume: UUID, right: int, now_ms: int) -> Verdict:
    """Admit or refuse a command of `claim`'s slot that needs `right` on `volume`, whose fence is `fence`.

    `now_ms` is sled time. The common case is attribute reads only: it runs once per command on the hot path.
    """
    own = fence.volume
    if (volume is not own and volume != own) or (claim.volume is not own and claim.volume != own):
        return Verdict.OTHER_VOLUME
    if claim.epoch != fence.epoch or claim.attach_number != fence.attach_number:
        return Verdict.FENCED_OFF if claim.epoch < fence.epoch else Verdict.SUPERSEDED
    if not claim.attached:
        return Verdict.NOT_ATTACHED
    if not claim.rights & right:
        return Verdict.NO_RIGHT
    if now_ms > claim.expires_ms:
        return Verdict.EXPIRED
    if not claim.key_current:
        return Verdict.KEY_RETIRED
    return _ADMIT


class AttachVerdict(IntEnum):
    """What an ATTACH of a verified credential does to a volume's fence."""

    RAISE = 0  # a higher pair: fence, drain, make durable, then the receipt
    RENEW = 1  # the pair that stands, in the slot that holds it: only the expiry moves
    FENCED_OFF = 2
    SUPERSEDED = 3
    OTHER_HOLDER = 4  # an equal epoch from another holder (F2)


def decide_attach(fence: Fence, epoch: int, attach_number: int, holder: bytes, holds_pair: bool) -> AttachVerdict:
    """Compare an attach with the fence; `holds_pair` says that the asking association's slot has the standing pair."""
    if epoch < fence.epoch:
        return AttachVerdict.FENCED_OFF
    if epoch > fence.epoch:
        return AttachVerdict.RAISE
    if holder != fence.holder:
        return AttachVerdict.OTHER_HOLDER
    if attach_number > fence.attach_number:
        return AttachVerdict.RAISE
    if attach_number == fence.attach_number and holds_pair:
        return AttachVerdict.RENEW
    return AttachVerdict.SUPERSEDED
