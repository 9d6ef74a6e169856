"""Why a primary stops being one, and what a fenced-off answer is worth (F6): proof of a successor, or the word of a
faulty sled. Pure."""

import enum
from dataclasses import dataclass
from uuid import UUID

from sled_controller.credential import parse_credential, verify
from sled_controller.errors import CredentialMalformed, CredentialRefused, FencedOff
from sled_controller.keyset import KeySet


class End(enum.Enum):
    """Why a primary stopped being one."""

    FENCED = "fenced off"
    DEPOSED = "deposed"
    FROZEN = "frozen"
    GAVE_UP = "gave up"
    HANDED_OVER = "handed over"
    LOG_FAILED = "log failed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Outcome:
    end: End
    detail: str
    credential: bytes | None = None


class Verdict(enum.Enum):
    """What to do about a fenced-off answer while nothing is acknowledged."""

    SUCCEEDED = "a verified newer credential: step down"
    FAULTY = "what the sled shows proves nothing: report the sled, resume"
    UNPROVEN = "nothing to verify, or signed by a key that is not known here: ask the authority"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, why, and the epoch of the credential when it was genuine (0 otherwise)."""

    verdict: Verdict
    reason: str
    epoch: int = 0


def judge(fenced: FencedOff, *, volume: UUID, epoch: int, key_set: KeySet | None) -> Judgement:
    """Weigh `fenced`, received by the primary of `epoch` of `volume`.

    Expiry is not looked at: a credential that has run out has still raised the fence.
    """
    if fenced.credential is None:
        return Judgement(Verdict.UNPROVEN, "the sled shows no credential")
    try:
        signed = parse_credential(fenced.credential)
    except CredentialMalformed as error:
        return Judgement(Verdict.FAULTY, str(error))
    shown = signed.credential
    if key_set is None or shown.key_id not in key_set.keys:
        return Judgement(Verdict.UNPROVEN, f"signed by key {shown.key_id}, which is not known here")
    try:
        verify(signed, key_set)
    except CredentialRefused as error:
        return Judgement(Verdict.FAULTY, str(error))
    if shown.volume != volume:
        return Judgement(Verdict.FAULTY, f"the credential is for volume {shown.volume}")
    if shown.epoch <= epoch:
        return Judgement(Verdict.FAULTY, f"the credential is of epoch {shown.epoch}, ours is {epoch}", shown.epoch)
    return Judgement(Verdict.SUCCEEDED, f"epoch {shown.epoch} has begun, ours is {epoch}", shown.epoch)
