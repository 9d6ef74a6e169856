"""What happens around every request: its body is bounded before memory is taken, replies to heads are signed, changes
are in the audit trail before they are answered."""

import logging
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from head_node.api.problems import PATH_CHARS_LOGGED_MAX, of_error, problem
from head_node.authority import audit, signatures
from head_node.authority.authority import Authority
from head_node.authority.errors import AuthorityUnavailable
from head_node.authority.reply_trust import CERTIFICATE_HEADER
from sled_controller.environment import civil_ms

log = logging.getLogger(__name__)

# A status report of a head that serves thousands of volumes; everything else is far smaller.
BODY_BYTES_MAX = 1 << 20


BODY_BYTES_FREE = 64 * 1024
"""So much of each body comes out of no budget: every request but the largest reports fits."""
BODIES_BYTES_MAX = 8 * 1024 * 1024
"""What all bodies together may have beyond that. They come before anybody has proved anything, and what their JSON
becomes takes up to 25 times as much."""


class BodyRefused(Exception):
    """More arrived than was announced or is allowed."""


class BoundedBodies:
    """Refuses a request whose body is, or turns out to be, longer than BODY_BYTES_MAX with status 413, and with status
    503 one for which there is no memory now."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._spent_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 12 or int(announced) > BODY_BYTES_MAX:
            await self._refuse(scope, receive, send, _too_long())
            return
        received = charged = 0
        refusal: Response | None = None
        started = False

        async def bounded_receive() -> Message:
            nonlocal received, charged, refusal
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_BYTES_MAX:
                refusal = _too_long()
                raise BodyRefused
            more = max(0, received - BODY_BYTES_FREE) - charged
            if self._spent_bytes + more > BODIES_BYTES_MAX:
                refusal = of_error(AuthorityUnavailable("too many long bodies at once: try again"))
                raise BodyRefused
            self._spent_bytes += more
            charged += more
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started
            # The framework may turn BodyRefused into an error of its own; ours is the right one.
            if refusal is not None:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, bounded_receive, watched_send)
        except BodyRefused:
            pass
        finally:
            self._spent_bytes -= charged
        if refusal is not None and not started:
            await self._refuse(scope, receive, send, refusal)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, response: Response) -> None:
        log.info(
            "event=body_refused method=%s client=%s status=%d",
            scope["method"],
            scope.get("client"),
            response.status_code,
        )
        response.headers["connection"] = "close"
        await response(scope, receive, send)


def _too_long() -> Response:
    return problem(413, "content-too-large", "Content too large", f"a body has at most {BODY_BYTES_MAX} bytes")


class AuditedChanges:
    """Has a line in the audit trail before the reply to a change that an operator asked for, refused ones too.

    What no one has proved to ask for leaves none: strangers would fill the trail.
    """

    def __init__(self, app: ASGIApp, authority: Authority) -> None:
        self._app = app
        self._audit = authority.audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] not in ("GET", "HEAD"):
                await self._note(scope, message["status"])
            await send(message)

        with audit.request():
            await self._app(scope, receive, noting_send)

    async def _note(self, scope: Scope, status: int) -> None:
        actor = audit.asking()
        if not actor.name.startswith("token:"):
            return
        action = str(getattr(scope.get("route"), "operation_id", None) or scope["method"])
        log.info(
            "event=audit actor=%s source=%s action=%s path=%r status=%d",
            actor.name, actor.source, action, scope["path"][:PATH_CHARS_LOGGED_MAX], status,
        )  # fmt: skip
        self._audit.note(action, target=scope["path"], result=str(status))
        try:
            await self._audit.flush()
        except AuthorityUnavailable as error:  # it is written once the store takes it; the change has been made
            log.error("event=audit-not-written error=%r", str(error))


class SignedReplies:
    """Signs the reply to every signed request with the reply key, bound to that request's signature.

    A head takes other heads' and sleds' keys from these replies, so they must not come from anybody else.
    """

    def __init__(self, app: ASGIApp, authority: Authority) -> None:
        self._app = app
        self._authority = authority

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope) if scope["type"] == "http" else None
        if asked is None:
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body: list[bytes] = []

        async def signing_send(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            body.append(message.get("body", b""))
            if message.get("more_body", False) or start is None:
                return
            content = b"".join(body)
            start["headers"] = [*start["headers"], *self._fields(start["status"], content, asked)]
            await send(start)
            await send({"type": "http.response.body", "body": content})

        await self._app(scope, receive, signing_send)

    def _fields(self, status: int, content: bytes, asked: signatures.Asked) -> list[tuple[bytes, bytes]]:
        key = self._authority.replies.current
        if key is None:
            return []  # no head believes it: the root key has certified no reply key yet
        digest = signatures.content_digest(content)
        env = self._authority.env
        fields: dict[str, Any] = signatures.sign(
            signatures.reply_values(status, digest, asked),
            key.private,
            key_id=f"reply-{key.certificate.number}",
            created_s=civil_ms(env.clock) // 1000,
            nonce=env.entropy.bytes(16).hex(),
            tag=signatures.REPLY_TAG,
        )
        return [
            (name.encode(), value.encode("latin-1"))
            for name, value in {"content-digest": digest, CERTIFICATE_HEADER: key.raw.hex(), **fields}.items()
        ]


def _asked(scope: Scope) -> signatures.Asked | None:
    """The signed request as it came, None when it is not signed."""
    headers = dict(scope["headers"])
    signature, digest = headers.get(b"signature"), headers.get(b"content-digest", b"")
    if signature is None or max(len(signature), len(digest)) > signatures.HEADER_CHARS_MAX:
        return None
    path = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
    parts = (path, scope.get("query_string", b""), digest, signature)
    return signatures.Asked(scope["method"], *(part.decode("latin-1") for part in parts))
