"""What a sled's refusal means to the head that sent the command."""

from typing import Final

from sled_controller.association import Refusal
from sled_controller.errors import CommandFailed, CredentialExpired, CredentialRefused, FencedOff, SledError, Superseded
from spdk_bindings.nvme import Status, status_name

_REASONS: Final = {
    Refusal.OTHER_VOLUME: "it does not cover the namespace's volume",
    Refusal.NO_RIGHT: "it does not cover the operation",
    Refusal.KEY_RETIRED: "its key has left the key set",
    Refusal.MALFORMED: "it is malformed",
    Refusal.SIGNATURE: "its signature is not one of the sled's key set",
    Refusal.OTHER_HEAD: "it names another head",
    Refusal.OTHER_HOLDER: "its epoch stands with another holder",
    Refusal.NO_KEY_SET: "the sled has no key set",
    Refusal.HANDSHAKE: "the handshake failed",
    Refusal.KEY_SET: "the key set is not signed by the sled's root key",
    Refusal.ATTACH_NUMBER: "attach numbers start at 1, and do not jump to the end",
    Refusal.NAMESPACES_REMAIN: "the volume has a namespace on the sled",
    Refusal.NOT_OVER: "a credential of the volume may still be valid in sled time",
    Refusal.OLD_HOLDER: "another association has the volume in this epoch; a newer credential is needed",
    Refusal.NEWER_EPOCH: "the sled knows a newer epoch of the volume",
    Refusal.TIME_SERIAL: "the sled has taken a time statement of this or a higher serial",
    Refusal.OTHER_SLED: "the time statement is for another sled, or another start of this one",
    Refusal.NO_PLACE: "it does not count on this sled",
    Refusal.NO_SPACE: "it does not let the volume take so much of the sled",
}


def error_of(status: int, dw0: int, dw1: int, credential: bytes | None = None) -> SledError:
    """The error of a completion with `status` (SCT << 8 | SC, not 0); `credential` raised the fence, if known."""
    if status == Status.FENCED_OFF:
        return FencedOff(dw0 | dw1 << 32, credential)
    if status == Status.SUPERSEDED:
        return Superseded(dw0 | dw1 << 32)
    if status == Status.REFUSED:
        return CredentialRefused(reason_of(dw0), dw0)
    if status == Status.CREDENTIAL_EXPIRED:
        return CredentialExpired()
    return CommandFailed(status, status_name(status))


def reason_of(code: int) -> str:
    """A refusal code in words."""
    try:
        return _REASONS[Refusal(code)]
    except ValueError:
        return f"code {code}"
