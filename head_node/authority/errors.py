"""Why the authority refuses, each with its HTTP status and the name of its problem type (RFC 9457)."""

from typing import Any, ClassVar

from head_node.store.records import VolumeRecord


class AuthorityError(Exception):
    """Base of the authority's refusals. `detail` is for people; `extra()` are members of the problem document."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "The authority failed"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)
        self.detail = detail

    def extra(self) -> dict[str, Any]:
        return {}


class RecordChanged(AuthorityError):
    """The record is not at the expected version: look at `record` and decide anew."""

    status, slug, title = 409, "record-changed", "The record has another version"

    def __init__(self, record: VolumeRecord) -> None:
        super().__init__(f"volume {record.volume} is at version {record.version}, epoch {record.epoch}")
        self.record = record

    def extra(self) -> dict[str, Any]:
        return {"record": self.record.to_json()}


class NotEligible(AuthorityError):
    """This head has not the standing for this change; asking again unchanged does not help."""

    status, slug, title = 403, "not-eligible", "Not eligible"


class Frozen(NotEligible):
    """The volume is frozen until an operator recovers it (F4)."""

    status, slug, title = 409, "volume-frozen", "The volume is frozen"


class Unauthorised(AuthorityError):
    """The signature, token or identity was not accepted."""

    status, slug, title = 401, "unauthorised", "Not authenticated"


class NotAllowed(AuthorityError):
    """The operator token is good, but of a lesser role than this takes: ask a holder of that role."""

    status, slug, title = 403, "not-allowed", "The operator token does not allow this"


class Unenrolled(Unauthorised):
    """The head is revoked, or was never enrolled here: it has no part in this rack, whatever it was told before."""

    status, slug, title = 401, "unenrolled", "Not a head of this rack"


class StaleInstance(Unauthorised):
    """The request was signed for another run of the authority: sign it again for `instance`."""

    status, slug, title = 401, "stale-instance", "Signed for another run of the authority"

    def __init__(self, instance: str, now_s: int) -> None:
        super().__init__("sign again, naming the instance and the time given here")
        self.instance = instance
        self.now_s = now_s

    def extra(self) -> dict[str, Any]:
        return {"instance": self.instance, "now_s": self.now_s}


class OtherTime(Unauthorised):
    """The request is too old, or from the future, by the authority's count: sign it again for `now_s`."""

    def __init__(self, now_s: int, detail: str) -> None:
        super().__init__(f"{detail}, or sign again for the time given here")
        self.now_s = now_s

    def extra(self) -> dict[str, Any]:
        return {"now_s": self.now_s}


class EnrolmentRefused(AuthorityError):
    """The join token is unknown, spent or expired, or the identity is taken or revoked: ask the operator."""

    status, slug, title = 403, "enrolment-refused", "Enrolment refused"


class NotFound(AuthorityError):
    """No such volume, node or token."""

    status, slug, title = 404, "not-found", "Not found"


class Conflict(AuthorityError):
    """What exists already stands against it."""

    status, slug, title = 409, "conflict", "Conflict"


class MayLose(AuthorityError):
    """What is asked for may lose acknowledged writes, as the text says: ask again with `may_lose` to accept that."""

    status, slug, title = 409, "may-lose", "This may lose acknowledged writes"


class TooEarly(AuthorityError):
    """A credential that may be about could still serve clients (F7): ask again `wait_ms` later."""

    status, slug, title = 409, "too-early", "A credential's term is not over yet"

    def __init__(self, wait_ms: int) -> None:
        super().__init__(f"a head may serve with a credential of this volume for another {wait_ms / 1000:.1f} s")
        self.wait_ms = wait_ms

    def extra(self) -> dict[str, Any]:
        return {"wait_ms": self.wait_ms}


class Unplaceable(AuthorityError):
    """There are not enough heads or sleds with room."""

    status, slug, title = 409, "unplaceable", "The volume cannot be placed"


class RequestRefused(AuthorityError):
    """The request is not well formed; it will never be accepted as it is."""

    status, slug, title = 422, "invalid-request", "The request is not valid"


class TooMany(AuthorityError):
    """A bound of the authority is reached: slow down and try again."""

    status, slug, title = 429, "too-many-requests", "Too many requests"


class AuthorityUnavailable(AuthorityError):
    """The authority cannot be reached, or does not know the outcome of a change: read the record, then try again."""

    status, slug, title = 503, "unavailable", "The authority is unavailable"


ERRORS_BY_SLUG: dict[str, type[AuthorityError]] = {
    kind.slug: kind
    for kind in (
        NotEligible,
        Frozen,
        Unauthorised,
        Unenrolled,
        EnrolmentRefused,
        NotFound,
        Conflict,
        Unplaceable,
        RequestRefused,
        TooMany,
        AuthorityUnavailable,
    )
}
