"""Every refusal as a problem document (RFC 9457): type, title, status, detail, and members that help."""

import http
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from head_node.authority.errors import AuthorityError, AuthorityUnavailable, RequestRefused
from head_node.store.errors import StoreError

TYPE_PREFIX = "urn:palisade:problem:"
MEDIA_TYPE = "application/problem+json"
# Validation errors told at once; a body can hold many more.
PATH_CHARS_LOGGED_MAX = 200
ERRORS_MAX = 16

_log = logging.getLogger(__name__)


def problem(status: int, slug: str, title: str, detail: str, **members: Any) -> Response:
    """A problem document as a response."""
    content = {"type": TYPE_PREFIX + slug, "title": title, "status": status, "detail": detail, **members}
    headers = {"www-authenticate": "Bearer"} if status == http.HTTPStatus.UNAUTHORIZED else None
    return JSONResponse(content, status, media_type=MEDIA_TYPE, headers=headers)


def of_error(error: AuthorityError) -> Response:
    """The document of a refusal."""
    return problem(error.status, error.slug, error.title, error.detail or error.title, **error.extra())


def _path(request: Request) -> str:
    """What was asked for, as far as it is fit for a log."""
    return request.url.path[:PATH_CHARS_LOGGED_MAX]


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem document."""

    @app.exception_handler(AuthorityError)
    async def refused(request: Request, error: AuthorityError) -> Response:
        level = logging.WARNING if error.status >= 500 else logging.INFO
        _log.log(
            level, "event=refused method=%s path=%r status=%d problem=%s detail=%r",
            request.method, _path(request), error.status, error.slug, error.detail,
        )  # fmt: skip
        return of_error(error)

    @app.exception_handler(StoreError)
    async def store_failed(request: Request, error: StoreError) -> Response:
        _log.error("event=store-failed method=%s path=%r error=%r", request.method, _path(request), str(error))
        return of_error(AuthorityUnavailable(str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        _log.info("event=invalid method=%s path=%r what=%s", request.method, _path(request), found[0]["type"])
        if any(entry["type"] == "json_invalid" for entry in found):
            return problem(400, "not-json", "The body is not JSON", str(found[0].get("ctx", {}).get("error", "")))
        errors = [{"where": "/".join(str(part) for part in e["loc"]), "what": e["msg"]} for e in found[:ERRORS_MAX]]
        detail = "; ".join(f"{entry['where']}: {entry['what']}" for entry in errors)
        return problem(RequestRefused.status, RequestRefused.slug, RequestRefused.title, detail, errors=errors)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        _log.info("event=invalid method=%s path=%r status=%d", request.method, _path(request), error.status_code)
        if error.status_code == 400 and request.method in ("POST", "PUT"):
            return problem(400, "not-json", "The body is not JSON", str(error.detail))
        title = http.HTTPStatus(error.status_code).phrase
        return problem(error.status_code, title.lower().replace(" ", "-"), title, str(error.detail))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _log.error("event=request-failed method=%s path=%r error=%r", request.method, _path(request), error)
        return problem(500, AuthorityError.slug, AuthorityError.title, "see the authority's log")
