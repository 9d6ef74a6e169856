"""The ASGI application of the authority."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse

from head_node.api import access, heads, models, operators, problems, trail, wrapping
from head_node.api.heads import Rack
from head_node.authority.authority import Authority
from head_node.authority.errors import AuthorityUnavailable, NotFound

VERSION = "1"

_health = APIRouter(tags=["health"])


@_health.get("/healthz", operation_id="healthz", dependencies=[access.PUBLIC])
async def healthz() -> models.HealthzDocument:
    """The process answers."""
    return models.HealthzDocument(status="ok")


@_health.get("/readyz", operation_id="readyz", dependencies=[access.PUBLIC])
async def readyz(rack: Rack) -> models.HealthzDocument:
    """The store can be read and the authority is not stopping; else 503."""
    if rack.stopping:
        raise AuthorityUnavailable("the authority is stopping")
    await rack.keyring.current()
    return models.HealthzDocument(status="ready")


@_health.get("/v1/ca", operation_id="readCa", dependencies=[access.PUBLIC], response_class=PlainTextResponse)
async def read_ca(rack: Rack) -> PlainTextResponse:
    """The certificates (PEM) that this authority is verified by; the asker compares them with what its join token
    says."""
    if rack.certificate is None or rack.certificate.ca is None:
        raise NotFound("this authority has no certificates of its own to verify it by")
    return PlainTextResponse(rack.certificate.ca)


def create_app(authority: Authority | None, backup_folder: Path | None = None) -> FastAPI:
    """The application over `authority`; None is enough to describe it."""
    described: dict[int | str, dict[str, Any]] = {
        "4XX": {"description": "Refused", "content": {problems.MEDIA_TYPE: {"schema": _PROBLEM}}},
        "5XX": {"description": "Failed", "content": {problems.MEDIA_TYPE: {"schema": _PROBLEM}}},
    }
    app = FastAPI(
        title="Palisade authority",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses=described,
    )
    app.state.authority = authority
    app.state.backup_folder = backup_folder
    problems.install(app)
    for router in (_health, heads.router, operators.router, trail.router):
        access.state_access(router)
        app.include_router(router)
    if authority is not None:
        app.add_middleware(wrapping.AuditedChanges, authority=authority)
        app.add_middleware(wrapping.SignedReplies, authority=authority)
    app.add_middleware(wrapping.BoundedBodies)
    return app


_PROBLEM = models.ProblemDocument.model_json_schema()
