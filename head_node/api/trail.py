"""The routes by which operators manage their tokens and read what was done with them."""

from typing import Annotated

from fastapi import APIRouter, Query

from head_node.api import trail_models as models
from head_node.api.access import ADMIN, BEARER, VIEWER
from head_node.api.heads import Rack
from head_node.authority.audit import PAGE_MAX, asking
from head_node.authority.operator_tokens import OperatorToken

router = APIRouter(prefix="/v1", tags=["operators"], dependencies=[BEARER])


@router.post("/tokens", operation_id="createToken", dependencies=[ADMIN], status_code=201)
async def create_token(rack: Rack, body: models.OperatorTokenRequest) -> models.OperatorTokenDocument:
    """Make an operator token with a role, a name and an end."""
    text, token = await rack.tokens.create(body.name, body.role, body.valid_s * 1000, asking().name)
    return models.OperatorTokenDocument(token=text, **_shown(token).model_dump())


@router.get("/tokens", operation_id="listTokens", dependencies=[ADMIN])
async def list_tokens(rack: Rack) -> models.OperatorTokenList:
    """Operator tokens by name, without anything secret."""
    return models.OperatorTokenList(tokens=[_shown(token) for token in await rack.tokens.list()])


@router.delete("/tokens/{token}", operation_id="revokeToken", dependencies=[ADMIN], status_code=204)
async def revoke_token(rack: Rack, token: str) -> None:
    """Make an operator token (by name or id) worthless from now on."""
    await rack.tokens.revoke(token)


@router.get("/audit", operation_id="readAudit", dependencies=[VIEWER])
async def read_audit(
    rack: Rack,
    after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
) -> models.AuditPage:
    """The audit trail, oldest first, above sequence `after`; an empty page is its end."""
    lines = await rack.audit.page(after, limit)
    return models.AuditPage(lines=[models.AuditLine.model_validate(line) for line in lines])


def _shown(token: OperatorToken) -> models.OperatorTokenStatus:
    return models.OperatorTokenStatus.model_validate(token.to_json())
