"""Everything that the sled controller and its clients raise, each with what the caller can do about it."""


class SledError(Exception):
    """Base of all errors of this package."""


class SledUnavailable(SledError):
    """The association is gone or was never there; open another one, the command may or may not have been done."""


class FencedOff(SledError):
    """A newer epoch exists on the sled: acknowledge nothing, verify `credential`, step down if it is newer (F6).

    `epoch` is what the sled says; `credential` the signed credential that raised the fence, None when the sled could
    not show one.
    """

    def __init__(self, epoch: int, credential: bytes | None = None) -> None:
        super().__init__(f"fenced off: the sled knows epoch {epoch}")
        self.epoch = epoch
        self.credential = credential


class Superseded(SledError):
    """A newer attach of the same epoch exists: use that association, or attach with a higher number."""

    def __init__(self, epoch: int, attach_number: int | None = None) -> None:
        which = "a newer attach" if attach_number is None else f"attach {attach_number}"
        super().__init__(f"superseded: the sled knows {which} of epoch {epoch}")
        self.epoch = epoch
        self.attach_number = attach_number


class CommandFailed(SledError):
    """The sled carried the command out and it failed, or refused it for what it is; `status` is SCT << 8 | SC."""

    def __init__(self, status: int, name: str, detail: str = "") -> None:
        super().__init__(f"{name} ({status:#05x})" + (f": {detail}" if detail else ""))
        self.status = status
        self.name = name


class CredentialMalformed(SledError):
    """These bytes are no credential: wrong length, magic, version or field; ask the authority for another one."""


class CredentialRefused(SledError):
    """The credential is well formed but does not count here; `reason` says why. Renew it at the authority.

    `code` is DW0 of a sled's answer, 0 when the refusal was made locally.
    """

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(f"credential refused: {reason}")
        self.reason = reason
        self.code = code


class CredentialExpired(CredentialRefused):
    """The credential's term is over in the sled's time. If it is not over here, the two have different times."""

    def __init__(self) -> None:
        super().__init__("it has expired in sled time")


class KeySetRefused(SledError):
    """The key set is malformed or not signed by the root key; keep the one you have."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"key set refused: {reason}")
        self.reason = reason


class HandshakeFailed(SledError):
    """The other side did not prove who it is, or broke the handshake; close, check the identity that you expect."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"handshake failed: {reason}")
        self.reason = reason


class SecretMalformed(SledError):
    """These characters are no DH-HMAC-CHAP secret; `reason` says why without repeating them. Copy it again, whole."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a DH-HMAC-CHAP secret: {reason}")
        self.reason = reason


class DhValueRefused(SledError):
    """The other side's Diffie-Hellman value would give no secret; fail the authentication."""


class AuthenticationFailed(SledError):
    """An in-band authentication came to nothing: check both sides' secrets and algorithms, then connect again.

    `explanation` is the reason code explanation of AUTH_Failure1 and 2 (`dhchap.messages.Explanation`).
    """

    def __init__(self, explanation: int, reason: str) -> None:
        super().__init__(f"authentication failed: {reason}")
        self.explanation = explanation
        self.reason = reason


class ReceiptRefused(SledError):
    """The receipt is not the sled's answer to this ATTACH; count the sled as not attached (F3, F7)."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"receipt refused: {reason}")
        self.reason = reason


class NonceReused(SledError):
    """A MAC was asked for under a count already used: it would leak the key, so it is not made. End the association."""

    def __init__(self, count: int, last: int) -> None:
        super().__init__(f"count {count} asked for, {last} is already used")
        self.count = count
        self.last = last


class Locked(SledError):
    """The settings name another root key than this sled was given for good; the text names both and the way out."""


class QueueFull(SledError):
    """Every place of the queue is taken; wait for a completion."""


class ManagementHostsUnusable(SledError):
    """The file of management hosts cannot be used; the text names it, the entry and the remedy, never a secret."""
